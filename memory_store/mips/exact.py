"""The default index: every row is scanned cheaply, and what the scan could hide is proven away or searched again."""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.errors import UnknownIndex
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors, check_queries
from memory_store.mips.bounds import GroupBounds
from memory_store.mips.calibrate import PRECISIONS, ScanPlan, is_sound, measured_plan
from memory_store.mips.dense import search_dense
from memory_store.mips.device import device_plan, no_device
from memory_store.mips.device_scan import DeviceScan
from memory_store.mips.encode import BAND_GROUPS, COPY_DTYPES, GROUP_ROWS, encode, padded, read_copy, saved_copy
from memory_store.mips.live import LiveRows
from memory_store.mips.scan import MOST_COLUMNS, BlockScan, CopyScan, StoredScan
from memory_store.mips.scratch import Scratch
from memory_store.mips.shortlist import GroupUpperBounds, Settled, UpperBounds, settle
from memory_store.mips.workers import Workers, builders
from memory_store.topk import NO_FACT, PartialTopK

# N rows in the shard, G groups of rows in a band, S bands, D dimension, B queries, b of them in a scan, K slots

__all__ = ["ExactIndex", "SearchCounts", "build_exact", "exact_bytes", "is_saved", "restore_exact", "saved_bytes"]

_ROWS_PER_SLOT = 64  # with fewer rows per slot of the answer, that is four groups, most would be scored anyway
_MOST_SHARE = 64  # a scan in float32 takes as long per query as looking at one row in 64
_MOST_PAIRS = 2**17  # of a query and one of the first k groups; with the second look, 64 MiB of row numbers
_SAVED_BOUND_BYTES = 3 * 8 / GROUP_ROWS  # per row
_BOUND_BYTES = (3 * 4 + 2 * 4) / GROUP_ROWS + _SAVED_BOUND_BYTES  # per row: of both scans, and as they are saved
_WORKSPACE_BYTES = (1 + 1 / BAND_GROUPS) * 4 * MOST_COLUMNS / GROUP_ROWS  # per row: what one search writes and reads
_SAVED_VALUES = 2**27  # 1M rows of 128: from here on, a file of a quarter of the vectors' size is worth it
_SMALL_VALUES = 2**24  # 128K rows of 128: about 50 ms
_MORE_GROUPS = 3  # times k: what a second look at the bounds may add; with the first k, less than all groups
_log = logging.getLogger(__name__)

Encoded = tuple[Tensor | None, GroupBounds]
"""What `encode` returns: the copy of the rows, if any, and what the proof knows of them."""


@dataclass(frozen=True, kw_only=True)
class SearchCounts:
    """How an index found its answers so far.

    looked_at_rows: rows in groups that the bounds did not rule out. escalated: queries that the scan of each name could
    not prove.
    """

    queries: int
    looked_at_rows: int
    escalated: Mapping[str, int]


class ExactIndex:
    """Exact search: upper bounds from a scan in low precision, true scores of all that reaches the top k, a proof.

    A query for which too many rows come near is searched again in higher precision: int8 or bfloat16, float32, float64.
    """

    def __init__(
        self,
        vectors: ShardVectors,
        plan: ScanPlan,
        workers: Workers,
        encoded: Encoded | None = None,
        device: torch.device | None = None,
    ) -> None:
        """encoded: what `encode` made of these rows for this plan; computed when None. device: where the copy is held
        and scanned; by the workers, in main memory, when None. Raises torch.OutOfMemoryError of the device."""
        self.plan = plan
        self.device = "cpu" if device is None else str(device)
        self._vectors = vectors
        self._workers = workers
        self._scans: dict[str, BlockScan] = {}
        self._saved: GroupBounds | None = None
        if plan.needs_scan:
            is_small = vectors.num_rows * vectors.dim < _SMALL_VALUES  # encoded before a search notices
            copy_ND, bounds = encoded or encode(vectors, plan.copy, workers if is_small else builders(workers.count))
            if is_saved(vectors.num_rows, vectors.dim) and plan.copy != "float32":
                self._saved = bounds
            if plan.copy is not None and copy_ND is not None:
                self._scans[plan.copy] = (
                    CopyScan(plan.copy, copy_ND, bounds)
                    if device is None
                    else DeviceScan(plan.copy, copy_ND, bounds, device)
                )
            self._scans.setdefault("float32", StoredScan(vectors, bounds))
        self._lock = threading.Lock()
        self._idle_workspace: _Workspace | None = None
        self._queries = 0
        self._looked_at_rows = 0
        self._escalated = dict.fromkeys(self._scans, 0)

    @property
    def nbytes(self) -> int:
        """Bytes held, those on a device among them."""
        workspace, saved = self._idle_workspace, self._saved
        bounds = 0 if saved is None else saved.scale_G.nbytes + saved.residual_G.nbytes + saved.norm_G.nbytes
        scans = (scan.nbytes for scan in self._scans.values())
        return sum(scans) + bounds + (workspace.nbytes if workspace is not None else 0)

    @property
    def saved_arrays(self) -> SavedArrays | None:
        """The copy and its bounds; None where they are computed as quickly as they would be read."""
        if self._saved is None:
            return None
        scan = self._scans[self.plan.copy or "float32"]
        return saved_copy(scan.held_rows() if isinstance(scan, CopyScan) else None, self._saved)

    @property
    def counts(self) -> SearchCounts:
        """What the searches so far had to do."""
        with self._lock:
            return SearchCounts(
                queries=self._queries, looked_at_rows=self._looked_at_rows, escalated=dict(self._escalated)
            )

    def search(self, queries_BD: NDArray[np.float32], k: int, live: LiveRows | None = None) -> PartialTopK:
        """The k facts of largest inner product per query, of the live rows, by default all; see MipsIndex.search."""
        wide_BD = check_queries(queries_BD, self._vectors.dim, k).astype(np.float64)
        if self._workers.count > 1:
            return self._search(wide_BD, k, live)
        # One hand-over, not one for every step.
        (answer,) = self._workers.side_by_side([partial(self._search, wide_BD, k, live)])
        return answer

    def _search(self, wide_BD: NDArray[np.float64], k: int, live: LiveRows | None) -> PartialTopK:
        answer = PartialTopK(
            fact_ids_BK=np.full((len(wide_BD), k), NO_FACT, dtype=np.int64),
            scores_BK=np.full((len(wide_BD), k), -np.inf),
        )
        zero_B: NDArray[np.bool_] = ~np.any(wide_BD, axis=1)
        if zero_B.any():
            self._answer_zero_queries(zero_B, live, answer)
        pending = np.flatnonzero(~zero_B)
        if k * _ROWS_PER_SLOT <= (self._vectors.num_rows if live is None else live.count):
            for name in self.plan.levels(len(pending)):
                pending = self._answer_by_scan(name, wide_BD, k, live, pending, answer)
        for chunk in _chunks(pending, _at_most(MOST_COLUMNS, k)):
            _fill(answer, chunk, search_dense(self._vectors, wide_BD[chunk], k, self._workers, live))
        with self._lock:
            self._queries += len(wide_BD)
        return answer

    def _answer_zero_queries(self, zero_B: NDArray[np.bool_], live: LiveRows | None, answer: PartialTopK) -> None:
        """Every row scores 0, so the smallest ids win."""
        ids_N, k = self._vectors.fact_ids_N, answer.fact_ids_BK.shape[1]
        ids_N = ids_N if live is None else ids_N[live.mask_N]
        smallest_K = np.sort(np.partition(ids_N, k)[:k] if k < len(ids_N) else ids_N)
        answer.fact_ids_BK[zero_B, : len(smallest_K)] = smallest_K
        answer.scores_BK[zero_B, : len(smallest_K)] = 0.0

    def _answer_by_scan(
        self,
        name: str,
        queries_BD: NDArray[np.float64],
        k: int,
        live: LiveRows | None,
        pending: NDArray[np.int64],
        answer: PartialTopK,
    ) -> NDArray[np.int64]:
        """Fill in the answers that the scan of this name can prove; returns the queries that it could not."""
        with self._lock:
            workspace, self._idle_workspace = self._idle_workspace or _Workspace(self._workers.count), None
        unproven = [pending[:0]]
        looked_at_rows = 0
        scan = self._scans[name]
        for chunk in _chunks(pending, _at_most(scan.most_columns(len(pending)), k)):
            try:
                found = self._scan_chunk(scan, queries_BD[chunk], k, live, workspace)
            except torch.OutOfMemoryError as full:  # of a device that others use as well
                _log.warning("a search goes on with this processor: %s", full)
                found, unproven = [], [*unproven, chunk]
            for part, settled in found:
                _fill(answer, chunk[part], settled.answer)
                unproven.append(chunk[part][~settled.settled_b])
                looked_at_rows += settled.looked_at_rows
        left = np.concatenate(unproven)
        with self._lock:
            self._idle_workspace = workspace
            self._looked_at_rows += looked_at_rows
            self._escalated[name] += len(left)
        return left

    def _scan_chunk(
        self, scan: BlockScan, queries_bD: NDArray[np.float64], k: int, live: LiveRows | None, workspace: "_Workspace"
    ) -> list[tuple[slice, Settled]]:
        """First the workers, or a device, bound all rows; then the workers share the queries, to settle each."""
        batch, dim = queries_bD.shape
        padded_BD = np.concatenate([queries_bD, np.zeros((scan.padded_columns(batch) - batch, dim))])
        if isinstance(scan, DeviceScan):
            with scan.one_at_a_time:
                return self._settle_chunk(scan, scan.upper_bounds(padded_BD), queries_bD, k, live, workspace)
        return self._settle_chunk(scan, self._bound_rows(scan, padded_BD, workspace), queries_bD, k, live, workspace)

    def _bound_rows(
        self, scan: BlockScan, queries_BD: NDArray[np.float64], workspace: "_Workspace"
    ) -> GroupUpperBounds:
        """The workers share the rows."""
        columns = len(queries_BD)
        num_groups = padded(self._vectors.num_rows) // GROUP_ROWS
        num_bands = -(-num_groups // BAND_GROUPS)
        bounds_GB = workspace.shared.take("bounds", (num_bands * BAND_GROUPS, columns), torch.float32)
        bands_SB = workspace.shared.take("bands", (num_bands, columns), torch.float32)
        bounds_GB[num_groups:] = -torch.inf
        # By a worker, since threads that torch starts for the caller would go on to take the workers' cores.
        (queries,) = self._workers.side_by_side([partial(scan.prepare, queries_BD)])
        block_groups = scan.block_rows(columns, -(-self._vectors.num_rows // self._workers.count)) // GROUP_ROWS
        blocks = iter(range(0, num_bands * BAND_GROUPS, block_groups))

        def bound_rows(worker: int) -> None:
            for start in blocks:
                groups = slice(start, min(start + block_groups, num_groups))
                scan.scan(groups, queries, workspace.of_worker[worker], bounds_GB[groups])
                bands = slice(start // BAND_GROUPS, -(-groups.stop // BAND_GROUPS))
                whole_GB = bounds_GB[start : bands.stop * BAND_GROUPS]
                torch.amax(whole_GB.view(-1, BAND_GROUPS, columns), dim=1, out=bands_SB[bands])

        self._workers.run(bound_rows)
        return GroupUpperBounds(
            bounds_SGb=bounds_GB.numpy().reshape(num_bands, BAND_GROUPS, columns),
            bands_Sb=bands_SB.numpy(),
            unit_b=queries.bounds.unit_B,
        )

    def _settle_chunk(
        self,
        scan: BlockScan,
        upper_bounds: UpperBounds[Any],
        queries_bD: NDArray[np.float64],
        k: int,
        live: LiveRows | None,
        workspace: "_Workspace",
    ) -> list[tuple[slice, Settled]]:
        """The workers share the queries."""
        batch, num_groups = len(queries_bD), padded(self._vectors.num_rows) // GROUP_ROWS
        parts = _shares(batch, self._workers.count)
        settled: list[tuple[slice, Settled]] = []

        def settle_queries(worker: int) -> None:
            part = parts[worker]
            if part.start < part.stop:
                found = settle(
                    self._vectors,
                    queries_bD[part],
                    k,
                    upper_bounds.of_queries(part),
                    longest=scan.longest,
                    scratch=workspace.of_worker[worker],
                    more_groups=_MORE_GROUPS * k,
                    most_groups=_MORE_GROUPS * k + num_groups // _MOST_SHARE,
                    live=live,
                )
                settled.append((part, found))

        self._workers.run(settle_queries)
        return settled


class _Workspace:
    """The buffers of one running search, kept for the next."""

    def __init__(self, workers: int) -> None:
        self.shared = Scratch()
        self.of_worker = [Scratch() for _ in range(workers)]

    @property
    def nbytes(self) -> int:
        return self.shared.nbytes + sum(scratch.nbytes for scratch in self.of_worker)


def build_exact(vectors: ShardVectors, options: Mapping[str, str], threads: int) -> ExactIndex:
    """Build the index `exact`; the option `scan` fixes the precision that is otherwise chosen by measurement.

    Raises DeviceUnavailable for device=cuda where there is no GPU, or none with room.
    """
    return _made(vectors, options, threads, lambda plan: None)


def restore_exact(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ExactIndex:
    """The index from its saved copy of the rows, which stays in the mapped file; ValueError where another copy than the
    saved one is scanned faster here, or that one cannot be scanned."""

    def read(plan: ScanPlan) -> Encoded:
        encoded = read_copy(arrays, vectors.num_rows, vectors.dim)
        found = None if encoded[0] is None else encoded[0].dtype
        expected = None if plan.copy is None else COPY_DTYPES[plan.copy]
        if found != expected:
            raise ValueError(f"expected a copy in {expected}, which is fastest here, found {found}")
        return encoded

    return _made(vectors, spec.options, threads, read)


def _made(
    vectors: ShardVectors, options: Mapping[str, str], threads: int, encoded: Callable[[ScanPlan], Encoded | None]
) -> ExactIndex:
    workers = Workers(threads)
    try:
        placed = device_plan(vectors, options)
        if placed is not None:
            plan, device = placed
            return ExactIndex(vectors, plan, workers, encoded(plan), device)
    except torch.OutOfMemoryError as full:  # others took what was free
        no_device(options, str(full).strip().rstrip("."))
    plan = _plan(vectors, options)
    return ExactIndex(vectors, plan, workers, encoded(plan))


def _plan(vectors: ShardVectors, options: Mapping[str, str]) -> ScanPlan:
    scan = options.get("scan", "auto")
    if scan == "auto":
        return measured_plan(vectors.num_rows, vectors.dim)
    if scan not in PRECISIONS:
        raise UnknownIndex(f"expected exact?scan= one of auto, {', '.join(PRECISIONS)}; found {scan!r}")
    return PRECISIONS[scan if is_sound(scan, vectors.dim) else "float32"]


def exact_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What the index will hold once it has searched a large batch: its copy, in what this processor scans fastest, the
    bounds of the proof, and the workspace of one search at a time."""
    return math.ceil(padded(rows) * (dim * _planned_value_bytes(spec, rows, dim) + _BOUND_BYTES + _WORKSPACE_BYTES))


def is_saved(rows: int, dim: int) -> bool:
    """Whether the copy of so many rows is kept in a file, which other processes map instead of making it again."""
    return rows * dim >= _SAVED_VALUES


def saved_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """The copy of so many rows and its bounds, as a file holds them and as they are made in memory."""
    return math.ceil(padded(rows) * (dim * _planned_value_bytes(spec, rows, dim) + _SAVED_BOUND_BYTES))


def _planned_value_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """Of the copy."""
    scan = spec.options.get("scan", "auto")
    copy = (measured_plan(rows, dim) if scan == "auto" else PRECISIONS.get(scan, PRECISIONS["bfloat16"])).copy
    return 0 if copy is None else COPY_DTYPES[copy].itemsize


def _chunks(pending: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(pending), width):
        yield pending[start : start + width]


def _at_most(columns: int, k: int) -> int:
    """Fewer columns where k is so large that the rows to score would not fit in memory for all of them."""
    return max(min(columns, _MOST_PAIRS // k), 1)


def _shares(items: int, count: int) -> list[slice]:
    ends = [items * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _fill(answer: PartialTopK, queries: NDArray[np.int64], found: PartialTopK) -> None:
    answer.fact_ids_BK[queries] = found.fact_ids_BK
    answer.scores_BK[queries] = found.scores_BK
