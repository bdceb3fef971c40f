"""[ray] `hmn bench distributed`: shards on Ray against one process, and against a plain faiss index per Ray actor."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store import MemoryWriter, open_memory
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES
from memory_store.progress import Progress, silent
from memory_store.ray_session import ensure_ray

# N facts, n of them in a shard, D dimension, B queries, K slots

__all__ = ["command", "run_distributed_bench"]

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], NDArray[np.int64]]

SHARDS = (1, 2, 4)
ROWS_AT_ONCE = 65_536
BLAS_ALWAYS = 0  # faiss: from this many queries on, products go through BLAS; 0 is the honest baseline
PAUSE_S = 0.02  # between two measurements, so that spinning threads of the one do not slow the other


class _FaissActor:
    """What one would write in an afternoon: an index of faiss over a slice of the rows, searched by its caller."""

    def __init__(self, path: str, start: int, stop: int, factory: str, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = BLAS_ALWAYS
        rows_nD = np.ascontiguousarray(np.load(path, mmap_mode="r")[start:stop])
        self._start = start
        self._index = faiss.index_factory(rows_nD.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        self._index.train(rows_nD)
        self._index.add(rows_nD)

    def ready(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries_BD: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        scores_BK, row_BK = self._index.search(queries_BD, k)
        return scores_BK, np.where(row_BK >= 0, row_BK + self._start, -1)


def run_distributed_bench(
    n: int = 1_000_000,
    dim: int = 128,
    batch: int = 128,
    k: int = 10,
    index: str = "exact",
    factory: str = "Flat",
    shards: Sequence[int] = SHARDS,
    threads: int = 2,
    repeats: int = 9,
    seed: int = 0,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The same searches through shards on Ray, one process, and faiss in as many actors; normal random vectors.

    All have `threads` threads together; more shards than threads have one each. Ratios are medians of those within
    one turn. different: queries of the last turn whose ids are not those of the one process.
    """
    parse_index(index, INDEXES)
    rng = np.random.default_rng(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hmn-distributed-")))
        vectors_ND = rng.standard_normal((n, dim), dtype=np.float32)
        np.save(folder / "vectors.npy", vectors_ND)
        url = str(folder / "memory")
        with MemoryWriter(url, dim=dim) as writer:
            for start in range(0, n, ROWS_AT_ONCE):
                stop = min(start + ROWS_AT_ONCE, n)
                writer.append(pa.table({"fact_id": np.arange(start, stop)}), vectors_ND[start:stop])
                progress("vectors", stop, n, unit="rows")
        del vectors_ND
        ensure_ray(max(threads, *shards))
        alone = stack.enter_context(open_memory(url, index=index, threads=threads))
        ways = []
        for number, count in enumerate(shards):
            per_shard = max(threads // count, 1)
            with ExitStack() as open_now:
                ours = open_now.enter_context(
                    open_memory(url, shards=count, index=index, threads=per_shard, backend="ray")
                )
                theirs = _faiss_actors(folder / "vectors.npy", n, count, factory, per_shard, k, open_now)
                searches: dict[str, Search] = {
                    "one_process": lambda queries_BD: alone.search(queries_BD, k).fact_ids_BK,
                    "shards": lambda queries_BD, memory=ours: memory.search(queries_BD, k).fact_ids_BK,  # type: ignore[misc]
                    "faiss_actors": theirs,
                }
                ways.append(
                    {"shards": count, "threads_each": per_shard, **_measure(searches, rng, batch, dim, repeats)}
                )
            progress("shards", number + 1, len(shards), unit="ways")
    return {
        "facts": n, "dim": dim, "queries": batch, "k": k, "index": index, "faiss": factory, "threads": threads,
        "repeats": repeats, "ways": ways,
    }  # fmt: skip


def _faiss_actors(
    path: Path, n: int, count: int, factory: str, threads: int, k: int, stack: ExitStack
) -> Callable[[Vectors], NDArray[np.int64]]:
    ends = [n * number // count for number in range(count + 1)]
    remote: Any = ray.remote(_FaissActor)
    options = remote.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}}, num_cpus=0)
    actors = [options.remote(str(path), start, stop, factory, threads) for start, stop in pairwise(ends)]
    for actor in actors:
        stack.callback(ray.kill, actor)
    ray.get([actor.ready.remote() for actor in actors])

    def search(queries_BD: Vectors) -> NDArray[np.int64]:
        found = ray.get([actor.search.remote(queries_BD, k) for actor in actors])
        scores_BC = np.concatenate([scores for scores, _ in found], axis=1)
        ids_BC = np.concatenate([ids for _, ids in found], axis=1)
        best_BK = np.argsort(-scores_BC, axis=1, kind="stable")[:, :k]
        merged_BK: NDArray[np.int64] = np.take_along_axis(ids_BC, best_BK, axis=1)
        return merged_BK

    return search


def _measure(
    searches: Mapping[str, Search], rng: np.random.Generator, batch: int, dim: int, repeats: int
) -> dict[str, Any]:
    """Medians of all ways in turns, the same queries in each; the first turn warms up and does not count."""
    times_s: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, NDArray[np.int64]] = {}
    for turn in range(repeats + 1):
        queries_BD = rng.standard_normal((batch, dim), dtype=np.float32)
        for name, search in searches.items():
            time.sleep(PAUSE_S)
            started_s = time.perf_counter()
            found[name] = search(queries_BD)
            if turn:
                times_s[name].append(time.perf_counter() - started_s)

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(one / other for one, other in zip(times_s[slow], times_s[fast], strict=True))

    return {
        "median_ms": {name: 1000 * statistics.median(times) for name, times in times_s.items()},
        "over_one_process": ratio("shards", "one_process"),
        "times_as_fast_as_faiss_actors": ratio("faiss_actors", "shards"),
        "different": {
            name: int((found[name] != found["one_process"]).any(axis=1).sum()) for name in ("shards", "faiss_actors")
        },
    }


@click.command(
    "distributed",
    epilog=examples(
        "hmn bench distributed",
        "hmn bench distributed --index ivf --faiss IVF4096,Flat --json",
        "hmn bench distributed --facts 100000 --shards 1,2",
    ),
)
@click.option("--facts", type=click.IntRange(1), default=1_000_000, show_default=True, help="Vectors in the memory.")
@click.option("--dim", type=click.IntRange(1), default=128, show_default=True)
@click.option("--queries", type=click.IntRange(1), default=128, show_default=True, help="Of a batch.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--index", default="exact", show_default=True, help="Of our shards.")
@click.option("--faiss", "factory", default="Flat", show_default=True, help="Factory string of the plain actors.")
@click.option("--shards", default=",".join(map(str, SHARDS)), show_default=True, help="Numbers of shards to try.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of all shards together.")
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True, help="Measured turns.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def command(
    console: Console,
    facts: int,
    dim: int,
    queries: int,
    k: int,
    index: str,
    factory: str,
    shards: str,
    threads: int,
    repeats: int,
    seed: int,
) -> None:
    """Time one search through 1, 2 and 4 shards on Ray, in one process, and through a plain faiss index per Ray actor.

    All in turns with the same queries and as many threads in all.
    """
    try:
        counts = [int(count) for count in shards.split(",")]
    except ValueError:
        raise click.UsageError(f"expected --shards as whole numbers with commas between, found {shards!r}") from None
    result = run_distributed_bench(
        facts, dim, queries, k, index, factory, counts, threads, repeats, seed, progress=console.progress
    )
    console.result(result, lambda: _show(console, result))


def _show(console: Console, result: Mapping[str, Any]) -> None:
    rows = [
        [
            way["shards"],
            way["threads_each"],
            *(way["median_ms"][name] for name in ("one_process", "shards", "faiss_actors")),
            way["over_one_process"],
            way["times_as_fast_as_faiss_actors"],
            *way["different"].values(),
        ]
        for way in result["ways"]
    ]
    columns = [
        "shards", "threads each", "one process, ms", "shards on Ray, ms", "faiss actors, ms", "times one process",
        "times faiss actors", "other ids: shards", "faiss",
    ]  # fmt: skip
    title = (
        f"{result['facts']:,} vectors, D = {result['dim']}, K = {result['k']}, {result['queries']} queries at once, "
        f"{result['index']} against faiss {result['faiss']}, {result['threads']} threads"
    )
    console.table(columns, rows, title=title)
