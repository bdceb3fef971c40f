"""`hmn bench live`: what writes cost beside a rebuild, and what searches feel of upserts, a compaction, a re-index."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from memory_store.memory import Memory
    from memory_store.topk import TopK

# N facts, n facts of one upsert, D dimension, B queries of a search

__all__ = ["LiveFigures", "Searches", "command", "run_live_bench", "search_during"]

_K = 10
_QUERIES = 8
_REBUILDS = 3
_UPSERTS = 5


@dataclass(frozen=True, kw_only=True)
class Searches:
    """What one searcher saw while something went on. wrong: answers that miss a fact which must be there, or mix."""

    during: str
    searches: int
    failed: int
    wrong: int
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LiveFigures:
    """Seconds unless the name says otherwise. rebuild_s: all facts written, committed, loaded and indexed once more.

    rebuild_s, upsert_s, delete_s: medians of several; writes are durable and visible. gain: rebuild_s / upsert_s.
    """

    facts: int
    dim: int
    upserted: int
    rebuild_s: float
    upsert_s: float
    delete_s: float
    gain: float
    compaction_s: float
    compaction_rows: int
    searches: tuple[Searches, ...]


def run_live_bench(
    folder: Path,
    *,
    facts: int,
    dim: int,
    upserted: int,
    seconds: float,
    backend: str = "local",
    shards: int = 1,
    rate: float = 10.0,
    seed: int = 0,
    progress: Progress = silent,
) -> LiveFigures:
    """Measure in an empty folder. seconds: how long searches are timed idle, under upserts, and under re-embeddings of
    all facts, until the last one ends; rate: how many of them a second."""
    import numpy as np
    import pyarrow as pa

    from memory_store.opening import open_memory
    from memory_store.storage import Storage
    from memory_store.upkeep import sweep
    from memory_store.writer import MemoryWriter

    rng = np.random.default_rng(seed)

    def made(ids: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.float32]]:
        return pa.table({"fact_id": ids}), rng.standard_normal((len(ids), dim), dtype=np.float32)

    table, vectors_ND = made(np.arange(facts))
    beacon_D = np.zeros(dim, dtype=np.float32)
    beacon_D[0] = 100.0  # the best answer to a query along the first axis, whatever else comes and goes
    vectors_ND[0] = beacon_D

    def encode(facts_table: pa.Table) -> NDArray[np.float32]:
        ids_N = facts_table["fact_id"].to_numpy()
        fresh_ND = rng.standard_normal((len(ids_N), dim), dtype=np.float32)
        fresh_ND[ids_N == 0] = beacon_D
        return fresh_ND

    def built(name: str, table: pa.Table, vectors_ND: NDArray[np.float32]) -> Memory:
        with MemoryWriter(str(folder / name), dim=dim) as writer:
            writer.append(table, vectors_ND)
        return open_memory(str(folder / name), shards, backend="ray" if backend == "ray" else "local", compaction=None)

    rebuilds = []
    for number in range(_REBUILDS):
        started_s = time.monotonic()
        memory = built(f"memory-{number}", table, vectors_ND)
        rebuilds.append(time.monotonic() - started_s)
        if number < _REBUILDS - 1:
            memory.close()
            shutil.rmtree(folder / f"memory-{number}")
    with memory:
        progress("live", 1, 6, note="rebuilt")
        del table, vectors_ND
        upserts, deletes = [], []
        for number in range(_UPSERTS):
            half = upserted // 2
            fresh = np.arange(half) + facts + number * half
            known = rng.choice(np.arange(1, facts), upserted - half, replace=False)
            batch = made(np.concatenate([fresh, known]))
            upserts.append(_timed(partial(memory.upsert, *batch)))
            deletes.append(_timed(partial(memory.delete, fresh[: half // 2])))
        progress("live", 2, 6, note="upserted")
        queries_BD = rng.standard_normal((_QUERIES, dim), dtype=np.float32)
        queries_BD[0] = beacon_D
        search = partial(search_during, memory, queries_BD, rate=rate)
        watched = [search("nothing else", lambda: time.sleep(seconds))]

        def trickle() -> None:
            """1,000 facts a second, as one commit each."""
            first = 10 * facts
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                began_s = time.monotonic()
                memory.upsert(*made(np.arange(first, first + 1000)))
                first += 1000
                time.sleep(max(0.0, 1.0 - (time.monotonic() - began_s)))

        watched.append(search("1,000 upserts a second", trickle))
        progress("live", 4, 6, note="searched")
        compaction: list[Any] = []
        watched.append(search("a compaction", lambda: compaction.append(_compacted(memory))))
        progress("live", 5, 6, note="compacted")

        def reembed() -> None:
            """All facts, again and again."""
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                memory.reindex(encode)
                sweep(Storage(memory.url))

        watched.append(search("re-embeddings", reembed))
    progress("live", 6, 6, note="re-embedded")
    rows, compaction_s = compaction[0]
    rebuild_s, upsert_s = median(rebuilds), median(upserts)
    return LiveFigures(
        facts=facts,
        dim=dim,
        upserted=upserted,
        rebuild_s=rebuild_s,
        upsert_s=upsert_s,
        delete_s=median(deletes),
        gain=rebuild_s / upsert_s,
        compaction_s=compaction_s,
        compaction_rows=rows,
        searches=tuple(watched),
    )


def _compacted(memory: Memory) -> tuple[int, float]:
    """(rows copied, seconds until the compacted generation serves)"""
    from memory_store.compaction import compact
    from memory_store.storage import Storage

    started_s = time.monotonic()
    summary = compact(Storage(memory.url))
    memory.refresh()
    return summary.rows, time.monotonic() - started_s


def _timed(work: Callable[[], object]) -> float:
    started_s = time.monotonic()
    work()
    return time.monotonic() - started_s


def search_during(
    memory: Memory,
    queries_BD: NDArray[np.float32],
    during: str,
    work: Callable[[], object],
    *,
    k: int = _K,
    rate: float | None = None,
    is_wrong: Callable[[TopK], bool] = lambda answer: bool(answer.fact_ids_BK[0, 0] != 0),
) -> Searches:
    """One searcher, from before the work begins until it has ended: without a pause, or `rate` times a second.

    At a rate, a search counts from when it was due: one that is held up holds up those that are due meanwhile.
    is_wrong: judges every answer; by default, fact 0 must be the first for the first query. An answer that leaves rows
    out, or is of an older generation than one before it, is wrong in any case.
    """
    import numpy as np

    from memory_store.errors import HmnError

    stop = threading.Event()
    times_s: list[float] = []
    failed = wrong = 0

    def search() -> None:
        nonlocal failed, wrong
        newest = 0
        due_s = time.monotonic()
        while not stop.is_set():
            if rate is not None:
                due_s += 1 / rate
                if stop.wait(max(0.0, due_s - time.monotonic())) and times_s:
                    break
            began_s = time.monotonic() if rate is None else min(due_s, time.monotonic())
            try:
                answer = memory.search(queries_BD, k)
            except HmnError:
                failed += 1
                continue
            times_s.append(time.monotonic() - began_s)
            wrong += is_wrong(answer) or answer.coverage != 1.0 or answer.generation < newest
            newest = answer.generation

    searcher = threading.Thread(target=search)
    searcher.start()
    try:
        seconds = _timed(work)
    finally:
        stop.set()
        searcher.join()
    p50_ms, p99_ms = np.percentile(np.array(times_s) * 1e3, [50, 99])
    return Searches(
        during=during,
        searches=len(times_s),
        failed=failed,
        wrong=wrong,
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        slowest_ms=max(times_s) * 1e3,
        seconds=seconds,
    )


@click.command(
    "live",
    short_help="Writes, compaction and re-indexing while searches go on.",
    epilog=examples("hmn bench live", "hmn bench live --facts 100000 --seconds 3 --json"),
)
@click.option(
    "--facts", type=click.IntRange(min=1000), default=1_000_000, show_default=True, help="Facts to begin with."
)
@click.option("--dim", type=click.IntRange(min=1), default=128, show_default=True, help="Dimension of the vectors.")
@click.option("--upserted", type=click.IntRange(min=2), default=10_000, show_default=True, help="Facts of one upsert.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="Of searching.")
@click.option("--backend", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Shards of the memory.")
@click.option(
    "--rate", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Searches of 8 queries a second."
)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def command(
    console: Console,
    facts: int,
    dim: int,
    upserted: int,
    seconds: float,
    backend: str,
    shards: int,
    rate: float,
    seed: int,
) -> int:
    """Time upserts, deletes, a compaction and a rebuild of one memory, and searches while they go on.

    Every answer is checked for a fact that is always there, and for generations that only grow. Exit status 1 if a
    search failed or an answer was wrong.
    """
    with tempfile.TemporaryDirectory(prefix="hmn-bench-live-") as folder:
        figures = run_live_bench(
            Path(folder),
            facts=facts,
            dim=dim,
            upserted=upserted,
            seconds=seconds,
            backend=backend,
            shards=shards,
            rate=rate,
            seed=seed,
            progress=console.progress,
        )
    console.result(asdict(figures), lambda: _show(console, figures))
    return 1 if any(line.failed or line.wrong for line in figures.searches) else 0


def _show(console: Console, figures: LiveFigures) -> None:
    console.pairs(
        {
            "facts": f"{figures.facts:,} of dimension {figures.dim}",
            "rebuild": f"{figures.rebuild_s:.2f} s: written, committed, loaded, indexed",
            "upsert": f"{figures.upsert_s * 1e3:.0f} ms for {figures.upserted:,} facts",
            "rebuild / upsert": f"{figures.gain:.0f}",
            "delete": f"{figures.delete_s * 1e3:.0f} ms for {figures.upserted // 4:,} facts",
            "compaction": f"{figures.compaction_s:.2f} s, {figures.compaction_rows:,} rows copied",
        }
    )
    console.write()
    console.table(
        ("searches during", "searches", "failed", "wrong", "p50 ms", "p99 ms", "seconds"),
        [
            (line.during, line.searches, line.failed, line.wrong, line.p50_ms, line.p99_ms, line.seconds)
            for line in figures.searches
        ],
    )
