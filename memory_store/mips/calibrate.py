"""Which precision scans fastest here: measured once per process and dimension, among kernels that keep the proof."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.encode import GROUP_ROWS, CopyPrecision, encode
from memory_store.mips.scan import FEW_QUERIES, MOST_COLUMNS, BlockScan, CopyScan, StoredScan
from memory_store.mips.scratch import Scratch
from memory_store.mips.workers import Workers

# N rows, G groups of rows, D dimension, B queries

__all__ = ["PRECISIONS", "ScanPlan", "hard_queries", "hard_rows", "is_sound", "measured_plan"]

_PROBED_COLUMNS = (1, *range(16, MOST_COLUMNS + 1, 16))  # the widths that a search uses
_UNMEASURED_ROWS = 8192  # with so few rows any precision will do, and float32 needs no copy
_SLICE_ROWS = 4096
_REPEATS = 7
_COPY_MUST_GAIN = 1.2  # a copy takes memory and time to build; less than this it is not worth


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """copy: the low precision kept in memory, if any. few, many: precision of the first scan by size of the batch.

    A precision of "float64" means no scan at all.
    """

    copy: CopyPrecision | None
    few: str
    many: str

    @property
    def needs_scan(self) -> bool:
        return self.many != "float64"

    def levels(self, batch: int) -> tuple[str, ...]:
        """The scans to try in turn, before the float64 search that always succeeds."""
        first = self.few if batch <= FEW_QUERIES else self.many
        return () if first == "float64" else tuple(dict.fromkeys([first, "float32"]))


PRECISIONS: Final[Mapping[str, ScanPlan]] = MappingProxyType(
    {
        "int8": ScanPlan(copy="int8", few="int8", many="int8"),
        "bfloat16": ScanPlan(copy="bfloat16", few="bfloat16", many="bfloat16"),
        "float32": ScanPlan(copy=None, few="float32", many="float32"),
        "float64": ScanPlan(copy=None, few="float64", many="float64"),
    }
)


def measured_plan(num_rows: int, dim: int) -> ScanPlan:
    """The plan for an index of this size: float32 for few rows, else what is fastest on this processor.

    Whatever is chosen, the answers are the same; a copy is kept only where it pays.
    """
    return PRECISIONS["float32"] if num_rows <= _UNMEASURED_ROWS else _fastest(dim)


@lru_cache(maxsize=64)
def _fastest(dim: int) -> ScanPlan:
    rows_ND = np.random.default_rng(0).standard_normal((_SLICE_ROWS, dim), dtype=np.float32)
    workers = Workers(1)
    scans = {
        name: _build_scan(name, rows_ND, workers) for name in ("int8", "bfloat16", "float32") if is_sound(name, dim)
    }
    queries_BD = rows_ND[:MOST_COLUMNS].astype(np.float64)
    many_s = _time(scans, queries_BD, workers)
    few_s = _time(scans, queries_BD[:1], workers)
    many = min(many_s, key=lambda name: many_s[name] * (_COPY_MUST_GAIN if PRECISIONS[name].copy else 1.0))
    copy = PRECISIONS[many].copy
    few = min((name for name in few_s if PRECISIONS[name].copy in (copy, None)), key=few_s.__getitem__)
    return ScanPlan(copy=copy, few=few, many=many)


@lru_cache(maxsize=64)
def is_sound(name: str, dim: int) -> bool:
    """Whether torch's product in this precision is there, and keeps what the proof assumes of it, for this dimension.

    Not every build does: without VNNI, for one, int8 products are added in 16 bits that overflow. Beyond 133,000
    values, sums overflow even 32 bits.
    """
    if PRECISIONS[name].copy is None:
        return True
    if dim == 1:  # torch 2.13 mistakes a column for a row in int8, and reads beyond it
        return False
    hard_ND = hard_rows(dim)
    try:
        scan = _build_scan(name, hard_ND, Workers(1))
        return isinstance(scan, CopyScan) and all(
            scan.keeps_its_promise(hard_queries(hard_ND, columns)) for columns in _PROBED_COLUMNS
        )
    except (AttributeError, NotImplementedError, RuntimeError):  # how torch says that a product is not there
        return False


def hard_rows(dim: int) -> NDArray[np.float32]:
    """Rows that, as queries of each other, overflow 16-bit sums and lose small terms in sums of too few bits, or in
    factors of too few. A group of each kind, then random ones."""
    tail_D, odd_D = np.full(dim, 2.0**-9, dtype=np.float32), np.full(dim, 0.5 + 3 * 2.0**-13, dtype=np.float32)
    tail_D[0] = odd_D[0] = 1.0
    ones_D = np.ones(dim, dtype=np.float32)
    alike_5D = np.stack([ones_D, -ones_D, tail_D, tail_D[::-1], odd_D])
    random_nD = np.random.default_rng(0).standard_normal((MOST_COLUMNS, dim), dtype=np.float32)
    return np.concatenate([np.repeat(alike_5D, GROUP_ROWS, axis=0), random_nD])


def hard_queries(rows_ND: NDArray[np.float32], columns: int) -> NDArray[np.float64]:
    """So many of these rows as queries, some of every kind if there are several."""
    return rows_ND[:: len(rows_ND) // columns][:columns].astype(np.float64)


def _build_scan(name: str, rows_ND: NDArray[np.float32], workers: Workers) -> BlockScan:
    vectors = ShardVectors(np.arange(len(rows_ND)), [rows_ND], rows_ND.shape[1])
    copy = PRECISIONS[name].copy
    copy_ND, bounds = encode(vectors, copy, workers)
    return StoredScan(vectors, bounds) if copy is None or copy_ND is None else CopyScan(copy, copy_ND, bounds)


def _time(scans: Mapping[str, BlockScan], queries_BD: NDArray[np.float64], workers: Workers) -> dict[str, float]:
    """Processor seconds of one scan of the slice: the best of several, taken in turns.

    The time of the thread alone counts, and the best of several, so that other work on the machine decides nothing.
    """
    runs = {name: _ScanOfAll(scan, queries_BD) for name, scan in scans.items()}
    for _ in range(_REPEATS):
        for run in runs.values():
            workers.run(run)
    return {name: run.best_s for name, run in runs.items()}


class _ScanOfAll:
    """A task that scans all rows once and remembers the least time it has taken."""

    def __init__(self, scan: BlockScan, queries_BD: NDArray[np.float64]) -> None:
        self.best_s = float("inf")
        self._scan = scan
        self._queries = scan.prepare(queries_BD)
        self._bounds_GB = torch.empty((scan.num_groups, len(queries_BD)))
        self._scratch = Scratch()

    def __call__(self, _worker: int) -> None:
        started_s = time.thread_time()
        self._scan.scan(slice(0, self._scan.num_groups), self._queries, self._scratch, self._bounds_GB)
        self.best_s = min(self.best_s, time.thread_time() - started_s)
