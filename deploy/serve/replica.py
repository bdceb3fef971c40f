"""[ray] Puts the application on Ray Serve: one deployment whose replicas each hold a model."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from deploy.serve.app import make_app
from deploy.serve.claim import Claim, ServiceRunning, end_left_over, end_shared
from deploy.serve.engine import RunEngine
from deploy.serve.settings import ServeSettings
from memory_store.errors import RayUnavailable
from memory_store.ray_session import ensure_ray

__all__ = ["APP_NAME", "serve_run"]

APP_NAME = "hmn"  # of a service that a Serve config describes
COMMAND_APP_NAME = "hmn-serve"  # of one that `hmn serve` runs, and ends: never that of another
HEALTH_CHECK_S = 60.0  # a replica that is slow because the machine is busy lives
HEALTH_PERIOD_S = 1.0  # how long a replica may be dead before Ray notices, and starts the next one
ROUTING_S = 5.0  # what a request may wait for a replica, beside what it may wait in one
REQUESTS_BEYOND_QUEUE = 256  # reach the application besides those it may queue, so that it is the one that says 429


@serve.ingress()
class Replica:
    """One copy of the model, over shards of its own or shared ones."""

    def __init__(self, settings: ServeSettings) -> None:
        logging.getLogger("hmn.serve").setLevel(logging.INFO)
        self._settings = settings
        self._engine = RunEngine(settings.source)

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._engine, self._settings)


def serve_run(
    settings: ServeSettings, *, host: str, port: int, replicas: int, started: Callable[[], None], local: bool
) -> None:
    """Serve until SIGINT or SIGTERM. started is called when requests are answered.

    local: Ray was started for this alone and ends with it; else only the application is taken off the cluster. Raises
    ServiceRunning where something answers in that cluster already, which stays as it is.
    """
    ensure_ray()
    claim = None if local else Claim(settings.source.run_dir)
    stop = threading.Event()
    place = ProxyLocation.HeadOnly if local else ProxyLocation.EveryNode
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    try:
        _start_front(place, host, port, quiet, timeout_s=settings.limits.deadline_s + ROUTING_S)
        as_deployment = serve.deployment(
            name=APP_NAME,
            num_replicas=replicas,
            max_ongoing_requests=settings.limits.waiting + REQUESTS_BEYOND_QUEUE,
            graceful_shutdown_timeout_s=settings.limits.deadline_s,
            health_check_timeout_s=HEALTH_CHECK_S,
            health_check_period_s=HEALTH_PERIOD_S,
            logging_config=quiet,
        )
        application = as_deployment(Replica).bind(settings)
        serve.run(application, name=COMMAND_APP_NAME, route_prefix="/", logging_config=quiet)
        if claim is not None:  # by now no replica of a service that was killed is left
            end_left_over(settings.source.name)
        for number in (signal.SIGINT, signal.SIGTERM):  # before this, Ctrl-C breaks off the start
            signal.signal(number, lambda *_: stop.set())
        started()
        stop.wait()
    except RayServeException as error:
        if "is being used by application" not in str(error):
            raise
        raise ServiceRunning(
            "expected the address / to be free in this Ray cluster, found another application of Ray Serve there; see "
            "`serve status`, and serve from another cluster"
        ) from error
    finally:
        if claim is None:
            serve.shutdown()  # type: ignore[no-untyped-call]  # ray leaves it untyped
            ray.shutdown()
        else:
            serve.delete(COMMAND_APP_NAME)
            end_shared(settings.source.name)
            claim.release()


def _start_front(place: ProxyLocation, host: str, port: int, quiet: LoggingConfig, *, timeout_s: float) -> None:
    try:
        options = {"host": host, "port": port, "request_timeout_s": timeout_s}
        serve.start(proxy_location=place, http_options=options, logging_config=quiet)
    except (RayActorError, TimeoutError) as error:
        raise RayUnavailable(
            f"expected Ray Serve to listen on {host}:{port}, found that its HTTP front did not start; is the machine "
            "too busy? Run the same command again"
        ) from error
