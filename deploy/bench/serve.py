"""`hmn bench serve`: questions per second and latency over HTTP, one at a time and many at once."""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click
import httpx
import numpy as np

from deploy.bench.serve_load import TIMEOUT_S, Load, drive, percentile_ms
from deploy.console import Console
from deploy.options import examples, json_option
from deploy.serve.settings import Source
from deploy.serve.source import located
from memory_store.errors import EmptyInput, HmnError
from memory_store.manifest import read_manifest
from memory_store.parts import open_part
from memory_store.progress import Progress, silent
from memory_store.storage import Storage

__all__ = ["command", "questions_about", "run_serve_bench"]

QUESTIONS = 2_000
STOP_S = 60.0


class ServiceDidNotStart(HmnError):
    """The service that was to be measured ended before it answered."""


def run_serve_bench(
    url: str,
    texts: list[str],
    *,
    clients: int = 64,
    seconds: float = 10.0,
    turns: int = 3,
    k: int = 5,
    token: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a running service: one client, then `clients` of them, so many turns; the first turn warms up.

    Ratios are medians of the ratios within one turn, so that what slows the machine slows both. Latencies are those of
    all turns together. The load comes from this process: it shares the machine with the service.
    """
    loads: dict[str, list[Load]] = {"one_at_a_time": [], "concurrent": []}

    async def all_turns() -> dict[str, Any]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=TIMEOUT_S) as http:
            served: dict[str, Any] = (await http.get("/v1/memory")).raise_for_status().json()
            for turn in range(turns + 1):
                for name, number in (("one_at_a_time", 1), ("concurrent", clients)):
                    load = await drive(http, texts, clients=number, seconds=seconds, k=k)
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
        "k": k,
        "seconds": seconds,
        "turns": turns,
        "one_at_a_time": _summary(loads["one_at_a_time"]),
        "concurrent": _summary(loads["concurrent"]),
        "times_as_many": statistics.median(gains) if gains else None,
    }


def _summary(loads: list[Load]) -> dict[str, Any]:
    latencies_s = [latency_s for load in loads for latency_s in load.latencies_s]
    batches = sum(load.batches for load in loads)
    failures: dict[str, int] = {}
    for load in loads:
        for reason, times in load.failures.items():
            failures[reason] = failures.get(reason, 0) + times
    return {
        "clients": loads[0].clients,
        "questions": len(latencies_s),
        "questions_per_s": statistics.median(load.questions_per_s for load in loads),
        "p50_ms": percentile_ms(latencies_s, 0.50),
        "p99_ms": percentile_ms(latencies_s, 0.99),
        "questions_per_batch": sum(load.batched for load in loads) / batches if batches else None,
        "refused": sum(load.refused for load in loads),
        "failed": sum(load.failed for load in loads),
        "failures": failures,
    }


def questions_about(source: Source, seed: int = 0) -> list[str]:
    """Questions made of names and relations in the memory of a run. Raises EmptyInput where it has none."""
    storage = Storage(str(source.memory))
    manifest = read_manifest(storage, source.generation)
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for number in rng.permutation(len(manifest.facts)):
        table = open_part(storage, manifest.facts[int(number)]).select(["subject", "relation"])
        rows = rng.permutation(len(table))[: QUESTIONS - len(texts)]
        texts.extend(
            f"what is the {_spaced(row['relation'])} of {row['subject']}"[:500]
            for row in table.take(rows).to_pylist()
            if row["subject"] and row["relation"]
        )
        if len(texts) >= QUESTIONS:
            break
    if not texts:
        raise EmptyInput(f"expected facts with a subject and a relation in {storage.shown}, found none to ask about")
    return texts


def _spaced(relation: str) -> str:
    return relation.replace("/", " ").replace("_", " ")


@contextmanager
def _service(options: list[str]) -> Iterator[str]:
    """`hmn serve` in processes of its own, until the end of the block; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "deploy.jobs.serve", *options, "--port", str(port), "--poll-s", "0", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = json.loads(process.stdout.readline() or "{}")
            if "url" not in started:
                raise ServiceDidNotStart(started.get("error", {}).get("message", "the service ended as it started"))
            yield started["url"]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@click.command(
    "serve",
    epilog=examples(
        "hmn bench serve --run runs/geonames",
        "hmn bench serve --run runs/geonames --backend ray --shards 2 --clients 128 --json",
        "hmn bench serve --run runs/geonames --url http://127.0.0.1:8000",
    ),
)
@click.option("--run", "run_dir", metavar="RUN", required=True, help="The run that is served, and asked about.")
@click.option("--url", metavar="URL", help="Measure a service of RUN that is running there; else one is started.")
@click.option("--memory", "memory_url", metavar="URL", help="Another memory, embedded by RUN's model.")
@click.option("--backend", type=click.Choice(["local", "ray"]), help="Of the service that is started. [as trained]")
@click.option("--shards", type=click.IntRange(1), help="Of the service that is started. [as trained]")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Of the service; 1: no batches.")
@click.option("--clients", type=click.IntRange(1), default=64, show_default=True, help="Clients at the same time.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Of each measurement.")
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Measured turns.")
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, help="Facts per question.")
@json_option
@click.pass_obj
def command(
    console: Console,
    run_dir: str,
    url: str | None,
    memory_url: str | None,
    backend: str | None,
    shards: int | None,
    batch: int,
    clients: int,
    seconds: float,
    turns: int,
    k: int,
) -> int:
    """Load a service of RUN over HTTP: one client that waits for every answer, then many clients that do.

    Exit status 1 when a request failed other than by declared backpressure (429).
    """
    texts = questions_about(located(Source(run_dir=run_dir, memory=memory_url)))
    options = ["--run", run_dir, "--batch", str(batch)]
    for flag, value in (("--memory", memory_url), ("--backend", backend), ("--shards", shards)):
        if value is not None:
            options += [flag, str(value)]
    with nullcontext(url) if url else _service(options) as address:
        result = run_serve_bench(
            address,
            texts,
            clients=clients,
            seconds=seconds,
            turns=turns,
            k=k,
            token=os.environ.get("HMN_TOKEN"),
            progress=console.progress,
        )
    console.result(result, lambda: _show(console, result))
    return 1 if result["one_at_a_time"]["failed"] or result["concurrent"]["failed"] else 0


def _show(console: Console, result: dict[str, Any]) -> None:
    columns = ("clients", "questions/s", "p50, ms", "p99, ms", "questions per search", "refused (429)", "failed")
    keys = ("clients", "questions_per_s", "p50_ms", "p99_ms", "questions_per_batch", "refused", "failed")
    rows = [[result[way][key] for key in keys] for way in ("one_at_a_time", "concurrent")]
    gain = result["times_as_many"]
    console.table(
        columns,
        rows,
        title=f"{result['facts']:,} facts, D = {result['dim']}, K = {result['k']}, {result['shards']} shards "
        f"({result['backend']})",
        notes=[f"{gain:.1f} times as many questions a second as one at a time"] if gain else [],
    )
