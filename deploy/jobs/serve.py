"""`hmn serve`: a trained run behind HTTP."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from uuid import uuid4

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option
from memory_store.errors import ConfigError, HmnError

__all__ = ["command"]

# Ray Serve kills an HTTP front that takes more than 5 s to start or 10 s to say that it is well. On a machine that is
# busy with training, that is how long things take.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
FRONT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.serve.front.middlewares"}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class PortTaken(HmnError):
    """Another process listens there."""


@click.command(
    "serve",
    short_help="A trained run behind HTTP.",
    epilog=examples(
        "hmn serve --run runs/geonames",
        "HMN_TOKEN=$(openssl rand -hex 32) hmn serve --run runs/geonames --port 9000",
        "hmn serve --run runs/geonames --backend ray --shards 2 --host 0.0.0.0 --token-for all",
    ),
)
@click.option(
    "--run", "run_dir", metavar="RUN", required=True, help="The trained run that answers, or a link that may be moved."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Where it listens.")
@click.option("--memory", "url", metavar="URL", help="Read another memory, embedded by this run's model.")
@click.option("--generation", type=click.IntRange(min=1), help="Serve this one, and roll out nothing newer.")
@click.option(
    "--backend", type=click.Choice(["local", "ray"]), help="Shards in the replica, or as Ray actors. [as trained]"
)
@click.option("--shards", type=click.IntRange(min=1), help="How many ways the rows are divided. [as trained]")
@click.option("--shard-replicas", type=click.IntRange(min=1), help="Copies of each shard. [as trained]")
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the model.")
@click.option(
    "--partial",
    is_flag=True,
    help="Answer without the rows of a shard that is away; `coverage` says what is left.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Most questions in one search."
)
@click.option(
    "--waiting", type=click.IntRange(min=1), default=1024, show_default=True, help="Questions in the queue; then 429."
)
@click.option("--most-k", type=click.IntRange(min=1), default=100, show_default=True, help="Most facts per question.")
@click.option(
    "--poll-s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds between two looks for a newer generation or checkpoint; 0: only POST /v1/refresh looks.",
)
@click.option(
    "--token-for",
    type=click.Choice(["writes", "all"]),
    default="writes",
    show_default=True,
    help="What the token in HMN_TOKEN is asked for.",
)
@json_option
@click.pass_obj
def command(
    console: Console,
    run_dir: str,
    host: str,
    port: int,
    url: str | None,
    generation: int | None,
    backend: str | None,
    shards: int | None,
    shard_replicas: int | None,
    replicas: int,
    partial: bool,
    batch: int,
    waiting: int,
    most_k: int,
    poll_s: float,
    token_for: str,
) -> None:
    """Answer questions over HTTP until Ctrl-C: POST /v1/ask, POST /v1/search, GET /v1/memory, /metrics, and a page.

    Questions that come at the same time are answered by one search. Newer generations and models of RUN are rolled out
    without a pause, and so is another run where RUN is a link that comes to lead to it. A token in the environment
    variable HMN_TOKEN allows what changes something.
    """
    from deploy.serve.settings import SHARED_PREFIX, Access, Limits, ServeSettings, Source
    from deploy.serve.source import located

    source = Source(
        run_dir=run_dir,
        memory=url,
        generation=generation,
        backend=backend,
        shards=shards,
        shard_replicas=shard_replicas,
        partial=partial,
        name=f"{SHARED_PREFIX}{uuid4().hex}" if replicas > 1 else None,
    )
    settings = ServeSettings(
        source=located(source),
        limits=Limits(batch=batch, waiting=waiting, k=most_k, items=min(64, batch)),
        access=Access.from_token(os.environ.pop("HMN_TOKEN", None), reads=token_for == "all"),  # no child inherits it
        poll_s=poll_s,
    )
    local = not os.environ.get("RAY_ADDRESS")
    if local:
        _check_free(host, port)
    if host not in LOOPBACK and token_for == "writes":
        console.say(f"Whoever reaches {host}:{port} may read; --token-for all asks everybody for the token.")

    for name, value in (PATIENCE | FRONT).items():  # read when Ray Serve loads, here and in its processes
        os.environ.setdefault(name, value)
    from deploy.serve.replica import serve_run

    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def started() -> None:
        console.result(
            {"url": address, "run": run_dir, "replicas": replicas},
            lambda: console.write(f"Serving {run_dir} at {address} (the page to try it, and the API); Ctrl-C ends it."),
        )

    console.say(f"Starting {replicas} replica{'s' if replicas > 1 else ''} ...")
    serve_run(settings, host=host, port=port, replicas=replicas, started=started, local=local)


def _check_free(host: str, port: int) -> None:
    """Refuse a port that is taken at once: Ray would say so after minutes, and not in one line."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ConfigError(f"expected a host name or address, found {host!r}: {error.strerror or error}") from None
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"expected {host}:{port} to be free, found: {error.strerror}; choose another one with --port"
            ) from None


if __name__ == "__main__":
    main(command)
