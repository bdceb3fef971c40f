"""Rows with the index over them, shared by generations; and what one generation sees of them."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.delta import is_in, search_live
from memory_store.keeping import Piece, gaps
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import MipsIndex
from memory_store.mips.dense import search_dense
from memory_store.mips.exact import ExactIndex
from memory_store.mips.few_rows import FewRows
from memory_store.mips.live import LiveRows
from memory_store.mips.workers import Workers
from memory_store.parts import sorted_union
from memory_store.recall import RecallReport
from memory_store.rows import DeadRows, Rows
from memory_store.topk import PartialTopK

# N rows here, M of them dead, B queries, K slots, D dimension, C fact ids asked for, F of them found

__all__ = ["HeldRows", "SeenRows"]


class HeldRows:
    """Rows and the index over them, None without vectors. Never changes, so generations share it; thread-safe."""

    def __init__(self, rows: Rows, index: MipsIndex | None) -> None:
        self.rows = rows
        self.index = index

    @property
    def recall(self) -> RecallReport | None:
        """What the index's recall meter has found, if it has one."""
        meter = self.index.meter if isinstance(self.index, ApproximateIndex) else None
        return None if meter is None else meter.report()

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + (0 if self.index is None else self.index.nbytes)

    def unseen(self, wanted: Sequence[Piece], dead: DeadRows) -> NDArray[np.int64]:
        """The numbers of the rows [M], sorted, that a generation does not see here.

        wanted: the pieces that it has on this shard; dead: its dead rows. A row outside them is in a part that it no
        longer names, or on another shard: it counts as dead, and its facts are never asked for.
        """
        outside = []
        for number, start, stop in gaps(self.rows.pieces, wanted):
            first = int(self.rows.starts[number]) - self.rows.pieces[number].start
            outside.append(np.arange(first + start, first + stop))
        dead_M = self.rows.dead_here(dead)
        return sorted_union([*outside, dead_M]) if outside else dead_M


class SeenRows:
    """What one generation sees of the rows: those that are not dead in it, at their places in its manifest."""

    def __init__(self, held: HeldRows, dead_M: NDArray[np.int64], part_by_piece: Sequence[int]) -> None:
        """dead_M: numbers of the rows that it does not see, sorted. part_by_piece: the position of the part of each
        piece in its manifest; -1 for one that it does not name."""
        self.held = held
        self._dead_M = dead_M
        self._dead_ids_M = np.sort(held.rows.vectors.fact_ids_N[dead_M])
        self._part_by_piece = np.array(part_by_piece, dtype=np.int64)
        self._facts_are_open = False

    @property
    def num_rows(self) -> int:
        """Live rows."""
        return self.held.rows.num_rows - len(self._dead_M)

    @cached_property
    def _live(self) -> LiveRows | None:
        return LiveRows.all_but(self._dead_M, self.held.rows.num_rows) if len(self._dead_M) else None

    def search(self, queries_BD: NDArray[np.float32], k: int) -> PartialTopK | None:
        """The best k live rows; None where nothing is to be searched."""
        index, vectors = self.held.index, self.held.rows.vectors
        if index is None:
            return None
        if isinstance(index, ExactIndex | FewRows):
            return index.search(queries_BD, k, self._live)

        def exhaustively(queries_bD: NDArray[np.float32], slots: int) -> PartialTopK:
            return search_dense(vectors, queries_bD.astype(np.float64), slots, Workers(1), self._live)

        return search_live(index, vectors.num_rows, self._dead_ids_M, queries_BD, k, exhaustively)

    def find(self, fact_ids_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions [F] in the request, row numbers [F]) of the ids that are live here."""
        positions_F, rows_F = self.held.rows.find(fact_ids_C)
        if len(self._dead_M) and len(rows_F):
            live_F = ~is_in(rows_F, self._dead_M)
            positions_F, rows_F = positions_F[live_F], rows_F[live_F]
        return positions_F, rows_F

    def take_facts(self, rows_F: NDArray[np.int64], columns: Sequence[str] | None) -> pa.Table:
        """The facts of live rows; see Rows.take_facts. The first call opens all parts that the generation names, while
        it is leased, and never one that it does not name: that may be swept."""
        if not self._facts_are_open:
            self.held.rows.open_facts(np.flatnonzero(self._part_by_piece >= 0).tolist())
            self._facts_are_open = True
        return self.held.rows.take_facts(rows_F, columns)

    def places(self, rows_F: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(position [F] of the part in the manifest, row [F] in that part) of live rows."""
        piece_F, row_F = self.held.rows.places(rows_F)
        return self._part_by_piece[piece_F], row_F
