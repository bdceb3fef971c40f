"""One case of `hmn bench ann`, in a process of its own: an index is built, and searched beside the exact index."""

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from deploy.bench.ann_engines import ENGINES, Built
from deploy.bench.in_a_row import in_a_row
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import ShardVectors
from memory_store.mips.registry import build_index
from memory_store.mips.rescore import score_pairs
from memory_store.recall import Checked, RecallWindow

# N rows, D dimension, B queries, b of them in a batch, K slots

__all__ = ["QUERIES", "TARGET", "VECTORS", "measure"]

Vectors = NDArray[np.float32]

VECTORS, QUERIES = "vectors.npy", "queries.npy"
_PAUSE_S = 0.02  # between two measurements, so that spinning OpenMP threads of the one do not slow the other
_IN_A_ROW_S = 0.1  # searches of one index
TARGET = 0.95
_CHECKS = 48  # of 16 queries each, that the effort follows
_FOLLOWED = 128  # searched at once for these checks, at least
_NEARLY_ALL = 0.999  # recall that more effort cannot add to
_HALVINGS = 3  # of the way between the efforts around the target
_HOPELESS = 0.2  # times the speed of the exact index; more effort will only be slower


def measure(folder: Path, engine: str, *, batch: int, k: int, threads: int, turns: int) -> dict[str, Any]:
    """Build one engine over the vectors in a folder, and search it at rising effort, in turns with the exact index.

    recall: share of slots whose true score reaches that of the k-th best row, over all queries. times_exact: the
    median over turns of (time of the exact index / time of this one) for the same batch.
    """
    torch.set_num_threads(threads)
    vectors_ND: Vectors = np.load(folder / VECTORS, mmap_mode="r")
    queries_BD: Vectors = np.load(folder / QUERIES)
    rows = ShardVectors(np.arange(len(vectors_ND)), [vectors_ND], vectors_ND.shape[1])
    exact = build_index("exact", rows, threads)
    exact.search(queries_BD[:batch], k)  # what is measured or taken once per process
    kth_B = exact.search(queries_BD, k).scores_BK[:, -1]
    before_bytes = _private_bytes()
    began_s = time.perf_counter()
    built = ENGINES[engine].build(vectors_ND, threads)
    build_s = time.perf_counter() - began_s
    held_bytes = max(_private_bytes() - before_bytes, 0)
    batches = [queries_BD[start : start + batch] for start in range(0, len(queries_BD), batch)]
    points: list[dict[str, float]] = []

    def measure_at(effort: int) -> dict[str, float]:
        found_BK = np.concatenate([built.search(queries_bD, k, effort) for queries_bD in batches])
        recall = float(_count_right(rows, queries_BD, found_BK, kth_B).mean() / k)
        point = _timed(lambda queries_bD: exact.search(queries_bD, k), built, batches, k, effort, turns)
        points.append({"effort": effort, "recall": recall, **point})
        return points[-1]

    for effort in built.efforts:
        point = measure_at(effort)
        recall, faster = point["recall"], point["times_exact"]
        if recall >= _NEARLY_ALL or faster < _HOPELESS or (faster < 1 and recall >= TARGET):
            break
    _close_in(points, measure_at)
    package = ENGINES[engine].package
    return {
        "settings": built.settings,
        "effort_name": built.effort_name,
        "version": str(getattr(import_module(package), "__version__", "")),
        "build_s": build_s,
        "bytes": held_bytes,
        "points": sorted(points, key=lambda point: point["effort"]),
        **({} if built.follows is None else {"target": _follow(built.follows, rows, queries_BD, kth_B, batch, k)}),
    }


def _close_in(points: list[dict[str, float]], measure_at: Callable[[int], dict[str, float]]) -> None:
    """Look for the least effort that reaches the target, between the highest that does not and the lowest that does."""
    below = [int(point["effort"]) for point in points if point["recall"] < TARGET]
    reaching = [int(point["effort"]) for point in points if point["recall"] >= TARGET]
    if not below or not reaching:
        return
    low, high = max(below), min(reaching)
    for _ in range(_HALVINGS):
        if high - low < 2:
            return
        middle = (low + high) // 2
        low, high = (low, middle) if measure_at(middle)["recall"] >= TARGET else (middle, high)


def _follow(
    index: ApproximateIndex, rows: ShardVectors, queries_BD: Vectors, kth_B: NDArray[np.float64], batch: int, k: int
) -> dict[str, Any]:
    """What target_recall comes to: its effort follows one half of the queries, and the other half is what counts."""
    half, batch = max(len(queries_BD) // 2, 1), max(batch, _FOLLOWED)
    live_BD, held_BD = queries_BD[:half], queries_BD[half:]
    index.effort = index.source.default_effort if index.source is not None else 1
    index.measure_recall(1.0, TARGET, time_share=1.0)
    meter = index.meter
    assert meter is not None
    for check in range(_CHECKS):
        start = check * batch % len(live_BD)
        index.search(live_BD[start : start + batch], k)
        meter.wait()
    effort = index.effort
    found = index.search(held_BD, k)
    meter.wait()
    window = RecallWindow()
    window.add(Checked(k, int(right), 0.0) for right in _count_right(rows, held_BD, found.fact_ids_BK, kth_B[half:]))
    report = window.report(effort)
    assert report is not None
    return {
        "recall": report.recall,
        "low": report.low,
        "high": report.high,
        "effort": effort,
        "all_rows": index.searches_all_rows,
        "target": TARGET,
    }


def _timed(
    exact: Callable[[Vectors], object], built: Built, batches: list[Vectors], k: int, effort: int, turns: int
) -> dict[str, float]:
    """Medians over turns; in each, batches are searched in a row by the exact index and at once by the other."""
    exact_s: list[float] = []
    engine_s: list[float] = []
    for turn in range(turns):
        for search, times_s in ((exact, exact_s), (lambda q: built.search(q, k, effort), engine_s)):
            search_batch = partial(_search_batch, search, batches)
            time.sleep(_PAUSE_S)
            search_batch(turn)
            times_s.append(in_a_row(search_batch, _IN_A_ROW_S, first=turn + 1)[0])
        if engine_s[0] * _HOPELESS > exact_s[0]:
            break
    return {
        "ms": 1000 * statistics.median(engine_s),
        "exact_ms": 1000 * statistics.median(exact_s),
        "queries_per_s": len(batches[0]) / statistics.median(engine_s),
        "times_exact": statistics.median(slow / fast for slow, fast in zip(exact_s, engine_s, strict=True)),
    }


def _search_batch(search: Callable[[Vectors], object], batches: list[Vectors], number: int) -> None:
    search(batches[number % len(batches)])


def _count_right(
    rows: ShardVectors, queries_BD: Vectors, found_BK: NDArray[np.int64], kth_B: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many of each query's rows reach its k-th best score; a row that is named twice counts once."""
    sorted_BK = np.sort(found_BK, axis=1)
    sorted_BK[:, 1:][sorted_BK[:, 1:] == sorted_BK[:, :-1]] = -1
    query_P, slot_P = np.nonzero(sorted_BK >= 0)
    score_P = score_pairs(rows, sorted_BK[query_P, slot_P], queries_BD.astype(np.float64), query_P)
    right_B = np.bincount(query_P, score_P >= kth_B[query_P], minlength=len(queries_BD))
    return np.minimum(right_B, found_BK.shape[1]).astype(np.int64)


def _private_bytes() -> int:
    """Resident memory that is not mapped from files, after what was freed has been given back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    result = measure(Path(case.pop("folder")), case.pop("engine"), **case)
    print(json.dumps(result))
