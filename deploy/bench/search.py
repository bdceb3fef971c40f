"""[ray] `hmn bench search`: the exact index against faiss in one run, with equal threads; two Ray shards beside it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import click
import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deploy.bench.in_a_row import in_a_row
from deploy.console import Console
from deploy.options import examples, json_option
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.mips.calibrate import measured_plan
from memory_store.mips.oracle import exhaustive_search
from memory_store.progress import Progress, silent
from memory_store.ray_session import ensure_ray
from memory_store.topk import merge

# N facts in the memory, D dimension, B queries, K slots

__all__ = ["command", "run_search_bench"]

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], NDArray[np.int64]]

ROWS_AT_ONCE = 65_536
CHECKED_QUERIES = 16
BLAS_ALWAYS = 0  # faiss: from this many queries on, products go through BLAS; 0 is the honest baseline
INSTALLED_REPEATS = 3  # faiss as installed may take seconds per search
PAUSE_S = 0.1  # between two engines, so that spinning OpenMP threads of the one do not slow the other
IN_A_ROW_S = 0.3  # searches of one engine
SHARDS = 2


def run_search_bench(
    n: int = 1_000_000,
    dim: int = 128,
    batch: int = 128,
    k: int = 10,
    threads: int = 2,
    repeats: int = 9,
    seed: int = 0,
    *,
    on_ray: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Median search times over n normal random vectors, for `batch` queries and for one, all ways in rows in turn.

    exact: the default index in this process. exact_shards, exact_ray: two shards of half the threads each, in this
    process and as Ray actors. faiss_blas: IndexFlatIP with its BLAS threshold at 0; faiss_installed: with the threshold
    it comes with. Ratios are medians of the ratios within one turn. The ids are held against float64 brute force.
    """
    rng = np.random.default_rng(seed)
    fact_ids_N = rng.permutation(n).astype(np.int64)
    vectors_ND = rng.standard_normal((n, dim), dtype=np.float32)
    with ExitStack() as stack:
        url = stack.enter_context(tempfile.TemporaryDirectory(prefix="hmn-search-"))
        _write(url, fact_ids_N, vectors_ND, progress)
        per_shard = max(threads // SHARDS, 1)
        measured_plan(n, dim)  # measured once per process: not a part of any build
        began_s = time.perf_counter()
        memories = {"exact": stack.enter_context(open_memory(url, threads=threads))}
        build_s = time.perf_counter() - began_s
        memories["exact_shards"] = stack.enter_context(open_memory(url, shards=SHARDS, threads=per_shard))
        if on_ray:
            ensure_ray(max(threads, SHARDS))
            ray_memory = open_memory(url, shards=SHARDS, threads=per_shard, backend="ray")
            memories["exact_ray"] = stack.enter_context(ray_memory)
        searches: dict[str, Search] = {name: _by_memory(memory, k) for name, memory in memories.items()}
        searches |= _by_faiss(fact_ids_N, vectors_ND, k, threads)
        batches = []
        for size in dict.fromkeys((batch, 1)):
            times_ms = _measure(searches, dim, size, repeats, rng, progress)
            batches.append(_summary(size, times_ms))
        wrong = _count_wrong(searches, fact_ids_N, vectors_ND, k, rng)
        memory_bytes = sum(shard.bytes for shard in memories["exact"].stats().shards)
    plan = measured_plan(n, dim)
    return {
        "facts": n,
        "dim": dim,
        "k": k,
        "threads": threads,
        "repeats": repeats,
        "scan": {"one": plan.few, "batch": plan.many},
        "open_s": build_s,
        "index_bytes": memory_bytes - vectors_ND.nbytes,
        "batches": batches,
        "checked_queries": CHECKED_QUERIES,
        "wrong": wrong,
    }


def _write(url: str, fact_ids_N: NDArray[np.int64], vectors_ND: Vectors, progress: Progress) -> None:
    with MemoryWriter(url, dim=vectors_ND.shape[1]) as writer:
        for start in range(0, len(fact_ids_N), ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, len(fact_ids_N))
            writer.append(pa.table({"fact_id": fact_ids_N[start:stop]}), vectors_ND[start:stop])
            progress("vectors", stop, len(fact_ids_N), unit="rows")


def _by_memory(memory: Memory, k: int) -> Search:
    return lambda queries_BD: memory.search(queries_BD, k).fact_ids_BK


def _by_faiss(fact_ids_N: NDArray[np.int64], vectors_ND: Vectors, k: int, threads: int) -> dict[str, Search]:
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    faiss.omp_set_num_threads(threads)
    installed = faiss.cvar.distance_compute_blas_threshold

    def search_with(threshold: int) -> Search:
        def search(queries_BD: Vectors) -> NDArray[np.int64]:
            faiss.cvar.distance_compute_blas_threshold = threshold
            try:
                row_BK = index.search(queries_BD, k)[1]
            finally:
                faiss.cvar.distance_compute_blas_threshold = installed
            return np.where(row_BK >= 0, fact_ids_N[row_BK], -1)

        return search

    return {"faiss_blas": search_with(BLAS_ALWAYS), "faiss_installed": search_with(installed)}


def _measure(
    searches: Mapping[str, Search], dim: int, batch: int, repeats: int, rng: np.random.Generator, progress: Progress
) -> dict[str, list[float]]:
    """Milliseconds of a search, its mean over a row of them, for every turn; the first turn warms up, uncounted."""
    times_ms: dict[str, list[float]] = {name: [] for name in searches}
    for turn in range(repeats + 1):
        queries_BD = rng.standard_normal((batch, dim), dtype=np.float32)
        for name, search in searches.items():
            if name == "faiss_installed" and turn > INSTALLED_REPEATS:
                continue
            time.sleep(PAUSE_S)
            search(queries_BD)  # wakes what slept
            if turn:
                times_ms[name].append(1000 * in_a_row(partial(_repeat, search, queries_BD), IN_A_ROW_S)[0])
        progress(f"{batch} queries", turn, repeats, unit="turns")
    return times_ms


def _repeat(search: Search, queries_BD: Vectors, _number: int) -> None:
    search(queries_BD)


def _summary(batch: int, times_ms: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    def ratio(slow: str, fast: str) -> float:
        pairs = zip(times_ms[slow], times_ms[fast], strict=False)  # as installed, faiss has had fewer turns
        return statistics.median(slow_ms / fast_ms for slow_ms, fast_ms in pairs)

    summary: dict[str, Any] = {
        "queries": batch,
        "median_ms": {name: statistics.median(times) for name, times in times_ms.items()},
        "least_ms": {name: min(times) for name, times in times_ms.items()},
        "times_as_fast_as_faiss_blas": ratio("faiss_blas", "exact"),
        "times_as_fast_as_faiss_installed": ratio("faiss_installed", "exact"),
    }
    if "exact_ray" in times_ms:
        summary["ray_over_in_process"] = ratio("exact_ray", "exact")
    return summary


def _count_wrong(
    searches: Mapping[str, Search],
    fact_ids_N: NDArray[np.int64],
    vectors_ND: Vectors,
    k: int,
    rng: np.random.Generator,
) -> dict[str, int]:
    """Per search, queries whose ids differ from those of a float64 product with every row."""
    queries_BD = rng.standard_normal((CHECKED_QUERIES, vectors_ND.shape[1]), dtype=np.float32)
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(fact_ids_N), ROWS_AT_ONCE)]
    found = [exhaustive_search(fact_ids_N[rows], vectors_ND[rows], queries_BD, k) for rows in parts]
    expected_BK = merge(found, k).fact_ids_BK
    return {
        name: int((search(queries_BD) != expected_BK).any(axis=1).sum())
        + int((search(queries_BD[:1]) != expected_BK[:1]).any())
        for name, search in searches.items()
    }


@click.command(
    "search",
    epilog=examples(
        "hmn bench search", "hmn bench search --facts 100000 --dim 256 --json", "hmn bench search --no-ray"
    ),
)
@click.option("--facts", type=click.IntRange(1), default=1_000_000, show_default=True, help="Vectors in the memory.")
@click.option("--dim", type=click.IntRange(1), default=128, show_default=True)
@click.option("--queries", type=click.IntRange(1), default=128, show_default=True, help="Of a batch; one is timed too.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of every engine.")
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True, help="Measured turns.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--ray/--no-ray", "on_ray", default=True, show_default=True, help="Also two shards on Ray.")
@json_option
@click.pass_obj
def command(
    console: Console, facts: int, dim: int, queries: int, k: int, threads: int, repeats: int, seed: int, on_ray: bool
) -> int:
    """Time exact search against faiss IndexFlatIP, all in one run, and check the answers against float64.

    Exit status 1 when an answer of the exact index is wrong.
    """
    result = run_search_bench(facts, dim, queries, k, threads, repeats, seed, on_ray=on_ray, progress=console.progress)
    console.result(result, lambda: _show(console, result))
    return 1 if any(count for name, count in result["wrong"].items() if name.startswith("exact")) else 0


def _show(console: Console, result: Mapping[str, Any]) -> None:
    names = {
        "exact": f"exact, in-process ({result['scan']['batch']})",
        "exact_shards": f"exact, {SHARDS} shards in-process",
        "exact_ray": f"exact, {SHARDS} shards on Ray",
        "faiss_blas": "faiss IndexFlatIP, BLAS threshold 0",
        "faiss_installed": "faiss IndexFlatIP, as installed",
    }
    rows = [
        [label, *(batch["median_ms"][name] for batch in result["batches"]), result["wrong"][name]]
        for name, label in names.items()
        if name in result["wrong"]
    ]
    columns = ["search", *(f"{batch['queries']} queries, ms" for batch in result["batches"]), "wrong"]
    notes = [
        f"{batch['queries']} queries: {batch['times_as_fast_as_faiss_blas']:.1f} times as fast as faiss with BLAS"
        + (f"; Ray takes {batch['ray_over_in_process']:.2f} times as long" if "ray_over_in_process" in batch else "")
        for batch in result["batches"]
    ]
    title = f"{result['facts']:,} vectors, D = {result['dim']}, K = {result['k']}, {result['threads']} threads"
    console.table(columns, rows, title=title, notes=notes)
