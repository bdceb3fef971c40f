"""Rows of a shard as they lie in part files: ids, vectors and a lookup at once, facts when first asked for."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.delta import is_in
from memory_store.errors import CorruptFile
from memory_store.keeping import Piece, pieces_of
from memory_store.manifest import Manifest
from memory_store.mips.base import ShardVectors
from memory_store.mips.workers import give_way
from memory_store.parts import live_rows, numbers, open_part, take_rows, vectors_of
from memory_store.placement import Slice
from memory_store.storage import Storage

# N rows here, D dimension, C fact ids asked for, F of them found, M rows that are dead

__all__ = ["DeadRows", "Rows"]

DeadRows = Mapping[str, NDArray[np.int64]]
"""Rows of facts parts that are deleted or overwritten, by the path of the part; see parts.dead_rows."""

_FIRST_STAND_IN = -2  # -1 stands for no fact
_FEW_ROWS = 1 << 17  # read before a search notices


class Rows:
    """The rows of some slices of parts. Never changes, so generations share it.

    without_dead: leave out the rows that are dead now (that copies, so it is for few rows); otherwise they stay, and a
    dead row whose fact lives on in another row here goes by a stand-in id below -1, so that ids are unique. `serves`
    tells in which other generations that is right, `dead_here` which of the rows here are dead in one.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        slices: Sequence[Slice],
        dead: DeadRows,
        *,
        without_dead: bool,
        threads: int = 1,
    ) -> None:
        """threads: how many part files are read at a time, for their checksums."""
        self._storage = storage
        self.pieces = pieces_of(manifest, slices)
        self.starts = np.cumsum([0, *(piece.rows for piece in self.pieces)])
        self._facts: dict[int, pa.Table] = {}
        self._generation = manifest.generation
        tables = _open_pieces(storage, self.pieces, threads)
        ids_N = np.concatenate([np.zeros(0, dtype=np.int64), *(_int64(table["fact_id"]) for table in tables)])
        self._stored_ids_N = ids_N  # of all rows of the pieces, under their own ids
        chunks = [vectors_of(table) for table in tables] if manifest.vectors else []
        for chunk in chunks:
            if chunk.shape[1] != manifest.dim:
                raise CorruptFile(
                    f"generation {manifest.generation}: expected vectors of dimension {manifest.dim}, "
                    f"found {chunk.shape[1]}; run `hmn verify`"
                )
        # By their numbers within the pieces: rows that were left out, and the others where there are any; where none
        # were, rows that go by a stand-in.
        dead_M = self._dead_in_pieces(dead)
        self._left_out_M = dead_M if without_dead else dead_M[:0]
        self._kept_N: NDArray[np.int64] | None = None
        self._hidden_M = dead_M[:0]
        if without_dead and len(dead_M):
            self._kept_N = live_rows(len(ids_N), dead_M)
            if chunks:
                chunks = [ShardVectors(fact_ids_N=ids_N, chunks=chunks, dim=manifest.dim).gather(self._kept_N)]
            ids_N = ids_N[self._kept_N]
        elif len(dead_M):
            self._hidden_M = _repeated(ids_N, dead_M)
            if len(self._hidden_M):
                ids_N = ids_N.copy()
                ids_N[self._hidden_M] = _FIRST_STAND_IN - self._hidden_M
        self.vectors = ShardVectors(fact_ids_N=ids_N, chunks=chunks, dim=manifest.dim)
        self._by_id = _ranked(ids_N)  # at once: the first upsert or fetch had better not wait for it

    @property
    def num_rows(self) -> int:
        return self.vectors.num_rows

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self.vectors.chunks) + 3 * self.vectors.fact_ids_N.nbytes

    def open_facts(self, numbers: Sequence[int]) -> None:
        """Map the facts of these pieces, for every later take_facts."""
        for number in numbers:
            self._facts_of(number)

    def take_facts(self, rows_F: NDArray[np.int64], columns: Sequence[str] | None) -> pa.Table:
        """The facts of rows [F], in the order asked, as copies that outlive the mapping; columns None: all.

        Opens no parts but those that hold these rows.
        """
        piece_F, row_F = self.places(rows_F)
        pieces = np.unique(piece_F)
        tables = [self._facts_of(number) for number in pieces.tolist()]
        table = pa.concat_tables(tables)
        before_F = np.cumsum([0, *(len(one) for one in tables)])[np.searchsorted(pieces, piece_F)]
        start_F = np.array([piece.start for piece in self.pieces], dtype=np.int64)[piece_F]
        return take_rows(table if columns is None else table.select(list(columns)), before_F + row_F - start_F)

    def _facts_of(self, number: int) -> pa.Table:
        """The facts of one piece; their ids are held against the vectors' ids."""
        table = self._facts.get(number)
        if table is None:
            piece = self.pieces[number]
            table = open_part(self._storage, piece.facts).slice(piece.start, piece.rows)
            ids_n = self._stored_ids_N[self.starts[number] : self.starts[number + 1]]
            if not np.array_equal(_int64(table["fact_id"]), ids_n):
                raise CorruptFile(
                    f"generation {self._generation}: expected facts and vectors with the same ids in the same "
                    "order, found others; run `hmn verify`"
                )
            self._facts[number] = table
        return table

    def find(self, fact_ids_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions [F] in the request, rows [F] here) of the ids that are here, dead or alive."""
        if self.num_rows == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        sorted_ids_N, row_by_rank_N = self._by_id
        order_C = np.argsort(fact_ids_C, kind="stable")  # in order, neighbours are found in what is cached
        wanted_C = fact_ids_C[order_C]
        rank_C = np.searchsorted(sorted_ids_N, wanted_C).clip(max=len(sorted_ids_N) - 1)
        found_C = np.zeros(len(wanted_C), dtype=np.bool_)
        found_C[order_C] = (sorted_ids_N[rank_C] == wanted_C) & (wanted_C >= 0)
        row_C = np.empty(len(wanted_C), dtype=np.int64)
        row_C[order_C] = row_by_rank_N[rank_C]
        positions_F = np.flatnonzero(found_C)
        return positions_F, row_C[positions_F]

    def dead_here(self, dead: DeadRows) -> NDArray[np.int64]:
        """The numbers of the rows here [M] that are dead, sorted."""
        dead_M = self._dead_in_pieces(dead)
        if self._kept_N is None or not len(dead_M) or not self.num_rows:
            return dead_M if self._kept_N is None else dead_M[:0]
        rank_M = np.searchsorted(self._kept_N, dead_M).clip(max=len(self._kept_N) - 1)
        here_M: NDArray[np.int64] = rank_M[self._kept_N[rank_M] == dead_M]
        return here_M

    def _dead_in_pieces(self, dead: DeadRows) -> NDArray[np.int64]:
        """The numbers of the dead rows within the pieces, sorted, those that were left out among them."""
        found = [np.zeros(0, dtype=np.int64)]
        for piece, first in zip(self.pieces, self.starts, strict=False):
            of_part = dead.get(piece.facts.path)
            if of_part is not None:
                start, stop = np.searchsorted(of_part, [piece.start, piece.stop])
                found.append(of_part[start:stop] - piece.start + first)
        return np.concatenate(found)

    def serves(self, unseen_M: NDArray[np.int64], dead: DeadRows) -> bool:
        """Whether these rows are right for a generation that sees all but those of these numbers, sorted, and in which
        these are dead: what was left out must be dead there, and what goes by a stand-in be unseen."""
        return _are_in(self._hidden_M, unseen_M) and (
            not len(self._left_out_M) or _are_in(self._left_out_M, self._dead_in_pieces(dead))
        )

    def places(self, rows_F: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number of the piece [F], row in its part [F]) of rows here."""
        numbers_F = rows_F if self._kept_N is None else self._kept_N[rows_F]
        piece_F = np.searchsorted(self.starts, numbers_F, side="right") - 1
        first = np.array([piece.start for piece in self.pieces], dtype=np.int64)
        return piece_F, numbers_F - self.starts[piece_F] + first[piece_F]


def _are_in(some_M: NDArray[np.int64], sorted_M: NDArray[np.int64]) -> bool:
    return not len(some_M) or (len(some_M) <= len(sorted_M) and bool(is_in(some_M, sorted_M).all()))


def _ranked(ids_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ids in ascending order [N], the row of each [N])."""
    if (np.diff(ids_N) > 0).all():  # as ingest and writers leave them
        return ids_N, np.arange(len(ids_N))
    row_by_rank_N = np.argsort(ids_N, kind="stable")
    return ids_N[row_by_rank_N], row_by_rank_N


def _repeated(ids_N: NDArray[np.int64], dead_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """The dead rows whose id another row has too."""
    values, count = np.unique(ids_N, return_counts=True)
    return dead_M[np.isin(ids_N[dead_M], values[count > 1])]


def _open_pieces(storage: Storage, pieces: Sequence[Piece], threads: int) -> list[pa.Table]:
    def opened(piece: Piece) -> pa.Table:
        return open_part(storage, piece.vectors or piece.facts).slice(piece.start, piece.rows)

    if sum(piece.rows for piece in pieces) < _FEW_ROWS:
        return [opened(piece) for piece in pieces]
    with ThreadPoolExecutor(min(threads, len(pieces)), thread_name_prefix="hmn-open", initializer=give_way) as pool:
        return list(pool.map(opened, pieces))


def _int64(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return numbers(pc.cast(column, pa.int64()))
