"""`hmn bench serve`: questions a second and latency over HTTP: alone, together, while things change or die."""

import asyncio
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from deploy.bench.serve_load import Connect, Load, Request, connect_to, drive, get, percentile_ms
from deploy.bench.serve_world import World, synthetic_world, world_of_run
from deploy.console import Console
from deploy.options import examples, json_option
from deploy.serve.settings import Source
from deploy.serve.source import located
from memory_store.errors import ConfigError, HmnError
from memory_store.progress import Progress, silent

__all__ = ["Disturbance", "command", "run_disturbed", "run_serve_bench", "running_service"]

STOP_S = 60.0
WATCH_S = 0.25
SHARD_PROCESS = "ray::ShardActor"


class ServiceDidNotStart(HmnError):
    """The service that was to be measured ended before it answered."""


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Something that happens to the service under load: begin it, and then ask `over` until it is."""

    name: str
    begin: Callable[[], Any]
    over: Callable[[Any], Any]


def run_serve_bench(
    connect: Connect,
    requests: list[Request],
    *,
    clients: int = 64,
    seconds: float = 10.0,
    turns: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a running service: one client, then `clients` of them, so many turns; the first turn warms up.

    Ratios are medians of the ratios within one turn, so that what slows the machine slows both. Latencies are those of
    all turns together. The load comes from this process: it shares the machine with the service.
    """
    loads: dict[str, list[Load]] = {"one_at_a_time": [], "concurrent": []}

    async def all_turns() -> dict[str, Any]:
        served: dict[str, Any] = json.loads(await get(connect, "/v1/memory"))
        for turn in range(turns + 1):
            for name, number in (("one_at_a_time", 1), ("concurrent", clients)):
                load = await drive(connect, requests, clients=number, seconds=seconds)
                if turn:
                    loads[name].append(load)
            progress("load", turn, turns, unit="turns")
        return served

    served = asyncio.run(all_turns())
    gains = [
        many.questions_per_s / one.questions_per_s
        for one, many in zip(loads["one_at_a_time"], loads["concurrent"], strict=True)
        if one.questions_per_s
    ]
    return {
        "facts": served["facts"],
        "dim": served["dim"],
        "shards": len(served["shards"]),
        "backend": served["backend"],
        "seconds": seconds,
        "turns": turns,
        "one_at_a_time": _summary(loads["one_at_a_time"]),
        "concurrent": _summary(loads["concurrent"]),
        "times_as_many": statistics.median(gains) if gains else None,
    }


def run_disturbed(
    connect: Connect, requests: list[Request], disturbance: Disturbance, *, clients: int, seconds: float
) -> dict[str, Any]:
    """The same load while something happens; it goes on for `seconds` at least, and until that is over."""

    async def disturbed() -> Load:
        is_over = asyncio.Event()

        async def watch() -> None:
            begun = await asyncio.to_thread(disturbance.begin)
            while not await asyncio.to_thread(disturbance.over, begun):
                await asyncio.sleep(WATCH_S)
            is_over.set()

        watching = asyncio.create_task(watch())
        try:
            # a disturbance that failed is over too: what it raised is raised below
            load = await drive(
                connect, requests, clients=clients, seconds=seconds, until=lambda: is_over.is_set() or watching.done()
            )
        finally:
            if not watching.done():
                watching.cancel()
        await watching
        return load

    return _summary([asyncio.run(disturbed())])


def _summary(loads: list[Load]) -> dict[str, Any]:
    latencies_s = [latency_s for load in loads for latency_s in load.latencies_s]
    batches = sum(load.batches for load in loads)
    failures: dict[str, int] = {}
    for load in loads:
        for reason, times in load.failures.items():
            failures[reason] = failures.get(reason, 0) + times
    return {
        "clients": loads[0].clients,
        "seconds": sum(load.seconds for load in loads),
        "questions": len(latencies_s),
        "questions_per_s": statistics.median(load.questions_per_s for load in loads),
        "p50_ms": percentile_ms(latencies_s, 0.50),
        "p99_ms": percentile_ms(latencies_s, 0.99),
        "questions_per_batch": sum(load.batched for load in loads) / batches if batches else None,
        "refused": sum(load.refused for load in loads),
        "failed": sum(load.failed for load in loads),
        "failures": failures,
    }


@contextmanager
def running_service(options: list[str], token: str) -> Iterator[tuple[str, int]]:
    """`hmn serve` in processes of its own, until the end of the block; gives its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "deploy.jobs.serve", *options, "--port", str(port), "--poll-s", "1", "--json"]
    environment = os.environ | {"HMN_TOKEN": token}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            started = json.loads(process.stdout.readline() or "{}")
            if "url" not in started:
                raise ServiceDidNotStart(started.get("error", {}).get("message", "the service ended as it started"))
            yield started["url"], process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _reindexing(connect: Connect, world: World, run_dir: str) -> Disturbance:
    """All facts embedded anew by another process; over when the service answers from that."""

    def generation() -> int:
        served = json.loads(asyncio.run(get(connect, "/v1/memory")))
        return int(served["generation"])

    def begin() -> tuple[int, subprocess.Popen[bytes]]:
        order = json.dumps({"memory": world.memory, "run_dir": run_dir, "synthetic": world.synthetic})
        return generation(), subprocess.Popen([sys.executable, "-m", "deploy.bench.serve_world", order])

    def over(begun: tuple[int, subprocess.Popen[bytes]]) -> bool:
        before, process = begun
        if process.poll() not in (None, 0):
            raise HmnError(f"the re-index ended with status {process.returncode}")
        return process.poll() == 0 and generation() > before

    return Disturbance(name="during_reindex", begin=begin, over=over)


def _kill(connect: Connect, service_pid: int) -> Disturbance:
    """kill -9 of one shard actor; over when the service has seen it come back."""

    def restarts() -> float:
        lines = asyncio.run(get(connect, "/metrics")).decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("hmn_shard_restarts{"))

    def begin() -> float:
        before = restarts()
        shards = [
            process
            for process in psutil.Process(service_pid).children(recursive=True)
            if (process.cmdline() or [""])[0].startswith(SHARD_PROCESS)
        ]
        if not shards:
            raise HmnError(f"expected shard actors among the processes of the service ({service_pid}), found none")
        shards[0].kill()
        return before

    return Disturbance(name="during_kill", begin=begin, over=lambda before: restarts() > before)


@click.command(
    "serve",
    epilog=examples(
        "hmn bench serve --run runs/geonames",
        "hmn bench serve --run runs/geonames --backend ray --shards 2 --disturb --json",
        "hmn bench serve --run runs/geonames --vectors 1000000 --backend ray --shards 2 --disturb",
        "hmn bench serve --run runs/geonames --url http://127.0.0.1:8000",
    ),
)
@click.option("--run", "run_dir", metavar="RUN", required=True, help="The run that is served, and asked about.")
@click.option("--url", metavar="URL", help="Measure a service of RUN that is running there; else one is started.")
@click.option("--memory", "memory_url", metavar="URL", help="Another memory, embedded by RUN's model.")
@click.option("--vectors", type=click.IntRange(1), metavar="N", help="Search N synthetic vectors instead.")
@click.option("--backend", type=click.Choice(["local", "ray"]), help="Of the service that is started. [as trained]")
@click.option("--shards", type=click.IntRange(1), help="Of the service that is started. [as trained]")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Of the service; 1: no batches.")
@click.option("--clients", type=click.IntRange(1), default=64, show_default=True, help="Clients at the same time.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Of each measurement.")
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Measured turns.")
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, help="Facts per question.")
@click.option("--disturb", is_flag=True, help="Also during a re-index, and with shard actors while one is killed.")
@json_option
@click.pass_obj
def command(
    console: Console,
    run_dir: str,
    url: str | None,
    memory_url: str | None,
    vectors: int | None,
    backend: str | None,
    shards: int | None,
    batch: int,
    clients: int,
    seconds: float,
    turns: int,
    k: int,
    disturb: bool,
) -> int:
    """Load a service of RUN over HTTP: one client that waits for every answer, then many clients that do.

    Exit status 1 when a request failed other than by declared backpressure: 429 or 503 with Retry-After.
    """
    if url and (disturb or vectors):
        raise ConfigError("--disturb and --vectors need a service that this command starts: leave --url out")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hmn-serve-")))
        if vectors:
            world = synthetic_world(run_dir, vectors, k, folder, console.progress)
        else:
            source = located(Source(run_dir=run_dir, memory=memory_url))
            world = world_of_run(source, k, folder if disturb else None)
        token, pid = os.environ.get("HMN_TOKEN") or secrets.token_hex(16), 0
        if url is None:
            url, pid = stack.enter_context(
                running_service(_options(run_dir, world.memory, batch, backend=backend, shards=shards), token)
            )
        connect = connect_to(url, token)
        result = run_serve_bench(
            connect, world.requests, clients=clients, seconds=seconds, turns=turns, progress=console.progress
        )
        result["k"] = k
        disturbances = [_reindexing(connect, world, run_dir)] if disturb else []
        if disturb and result["backend"] == "ray":
            disturbances.append(_kill(connect, pid))
        for one in disturbances:
            result[one.name] = run_disturbed(connect, world.requests, one, clients=clients, seconds=seconds)
    console.result(result, lambda: _show(console, result))
    return 1 if any(result[way]["failed"] for way in _ways(result)) else 0


def _options(run_dir: str, memory: str, batch: int, **chosen: str | int | None) -> list[str]:
    options = ["--run", run_dir, "--memory", memory, "--batch", str(batch)]
    for name, value in chosen.items():
        options += [f"--{name}", str(value)] if value is not None else []
    return options


def _ways(result: dict[str, Any]) -> list[str]:
    return [way for way in ("one_at_a_time", "concurrent", "during_reindex", "during_kill") if way in result]


def _show(console: Console, result: dict[str, Any]) -> None:
    columns = ("", "clients", "questions/s", "p50, ms", "p99, ms", "per search", "refused (429, 503)", "failed")
    keys = ("clients", "questions_per_s", "p50_ms", "p99_ms", "questions_per_batch", "refused", "failed")
    rows = [[way.replace("_", " "), *(result[way][key] for key in keys)] for way in _ways(result)]
    gain = result["times_as_many"]
    console.table(
        columns,
        rows,
        title=f"{result['facts']:,} facts, D = {result['dim']}, K = {result['k']}, {result['shards']} shards "
        f"({result['backend']})",
        notes=[f"{gain:.1f} times as many questions a second as one at a time"] if gain else [],
    )
