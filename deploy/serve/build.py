"""[ray] The service as `serve deploy` and KubeRay's RayService start it: an application made from a few arguments."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from deploy.serve.replica import APP_NAME, HEALTH_CHECK_S, REQUESTS_BEYOND_QUEUE, Replica
from deploy.serve.settings import Access, Limits, ServeSettings, Source
from deploy.serve.source import located

__all__ = ["ServiceArgs", "app"]


class ServiceArgs(BaseModel):
    """What `args` of the application in a Serve config may say; as the options of `hmn serve`.

    shared: all replicas use the same shards, which outlive them, under the name of the application; for backend "ray".
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    memory: str | None = None
    generation: int | None = Field(default=None, ge=1)
    backend: Literal["local", "ray"] | None = None
    shards: int | None = Field(default=None, ge=1)
    shared: bool = False
    partial: bool = False
    batch: int = Field(default=128, ge=1)
    waiting: int = Field(default=1024, ge=1)
    most_k: int = Field(default=100, ge=1)
    poll_s: float = Field(default=5.0, ge=0)
    token_for: Literal["writes", "all"] = "writes"


def app(args: ServiceArgs) -> Application:
    """The application for a run; the token that writes is read from HMN_TOKEN in the environment of the node.

    Raises ConfigError, MemoryNotFound, GenerationNotFound or VersionMismatch for what cannot be served.
    """
    source = Source(
        run_dir=args.run,
        memory=args.memory,
        generation=args.generation,
        backend=args.backend,
        shards=args.shards,
        partial=args.partial,
        name=APP_NAME if args.shared else None,
    )
    limits = Limits(batch=args.batch, waiting=args.waiting, k=args.most_k, items=min(64, args.batch))
    settings = ServeSettings(
        source=located(source),
        limits=limits,
        access=Access.from_token(os.environ.get("HMN_TOKEN"), reads=args.token_for == "all"),
        poll_s=args.poll_s,
    )
    as_deployment = serve.deployment(
        name=APP_NAME,
        # more than the queue holds, so that it is the application that says 429
        max_ongoing_requests=settings.limits.waiting + REQUESTS_BEYOND_QUEUE,
        graceful_shutdown_timeout_s=settings.limits.deadline_s,
        health_check_timeout_s=HEALTH_CHECK_S,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return as_deployment(Replica).bind(settings)
