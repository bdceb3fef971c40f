"""One shard's state and operations: the rows it holds of each loaded generation, and the index over them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, NoVectors
from memory_store.index_files import IndexedRows, open_index
from memory_store.manifest import Manifest, Part, read_manifest
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import MipsIndex, ShardVectors
from memory_store.parts import FACTS_SCHEMA, open_part, vectors_of
from memory_store.placement import Slice, place
from memory_store.recall import RecallReport
from memory_store.storage import Storage
from memory_store.topk import PartialTopK

# N rows in this shard, B queries, K slots, D dimension, C fact ids asked for, F of them found here

__all__ = ["FoundFacts", "FoundVectors", "Shard", "ShardConfig", "ShardStats"]


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """All that a shard needs to find its rows again after a restart.

    threads: intra-op threads of its index. resident: how many generations stay loaded, so that the old one serves while
    the new one is loaded. recall_share: share of the queries that an approximate index answers again exactly, in the
    background, to know its recall. target_recall: the recall that it is to keep by looking further, or less far.
    """

    url: str
    shard: int
    num_shards: int
    index: str = "exact"
    threads: int = 1
    resident: int = 2
    recall_share: float = 0.0
    target_recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """One line of `stats()`. bytes: mapped vectors plus what the index holds. restarts: as seen by the caller.

    recall: what the repeated searches say of an approximate index; None before the first, and for an exact one.
    """

    shard: int
    rows: int
    bytes: int
    index: str
    generation: int
    generations_resident: tuple[int, ...]
    pid: int
    incarnation: str
    restarts: int = 0
    recall: RecallReport | None = None


@dataclass(frozen=True, eq=False)
class FoundFacts:
    """positions_F: where in the request each row of the table belongs."""

    positions_F: NDArray[np.int64]
    table: pa.Table


@dataclass(frozen=True, eq=False)
class FoundVectors:
    """positions_F: where in the request each row of vectors_FD (float32) belongs."""

    positions_F: NDArray[np.int64]
    vectors_FD: NDArray[np.float32]


class _Snapshot:
    """The shard's rows of one generation: ids and vectors mapped at once, facts when first asked for."""

    def __init__(self, storage: Storage, manifest: Manifest, config: ShardConfig) -> None:
        self.manifest = manifest
        self._storage = storage
        placed = manifest.vectors or manifest.facts
        self._slices = place([part.rows for part in placed], config.num_shards)[config.shard]
        id_tables = [self._rows_of(placed, piece) for piece in self._slices]
        ids_N = np.concatenate([np.zeros(0, dtype=np.int64), *(_int64(table["fact_id"]) for table in id_tables)])
        chunks = [vectors_of(table) for table in id_tables] if manifest.vectors else []
        for chunk in chunks:
            if chunk.shape[1] != manifest.dim:
                raise CorruptFile(
                    f"generation {manifest.generation}: expected vectors of dimension {manifest.dim}, "
                    f"found {chunk.shape[1]}; run `hmn verify`"
                )
        self.vectors = ShardVectors(fact_ids_N=ids_N, chunks=chunks, dim=manifest.dim)
        self.index: MipsIndex | None = self._open_index(config) if manifest.vectors else None
        self._row_by_rank_N = np.argsort(ids_N, kind="stable")
        self._sorted_ids_N = ids_N[self._row_by_rank_N]

    def _open_index(self, config: ShardConfig) -> MipsIndex:
        parts = self.manifest.vectors
        slices = tuple((parts[piece.part].checksum, piece.start, piece.stop) for piece in self._slices)
        rows = IndexedRows(generation=self.manifest.generation, slices=slices)
        index = open_index(self._storage, config.index, self.vectors, config.threads, rows)
        if isinstance(index, ApproximateIndex) and config.recall_share > 0:
            index.measure_recall(config.recall_share, config.target_recall)
        return index

    @property
    def recall(self) -> RecallReport | None:
        """What the index's recall meter has found, if it has one."""
        meter = self.index.meter if isinstance(self.index, ApproximateIndex) else None
        return None if meter is None else meter.report()

    def _rows_of(self, parts: Sequence[Part], piece: Slice) -> pa.Table:
        return open_part(self._storage, parts[piece.part]).slice(piece.start, piece.rows)

    @cached_property
    def facts(self) -> pa.Table:
        """The fact rows, in the row order of the vectors; their ids are held against the vectors' ids."""
        tables = [self._rows_of(self.manifest.facts, piece) for piece in self._slices]
        if not tables:
            return FACTS_SCHEMA.empty_table()
        table = pa.concat_tables(tables)
        if not np.array_equal(_int64(table["fact_id"]), self.vectors.fact_ids_N):
            raise CorruptFile(
                f"generation {self.manifest.generation}: expected facts and vectors with the same ids in the same "
                "order, found others; run `hmn verify`"
            )
        return table

    def locate(self, fact_ids_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions [F] in the request, rows [F] here) of the ids that this shard holds."""
        if len(self._sorted_ids_N) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        rank_C = np.searchsorted(self._sorted_ids_N, fact_ids_C).clip(max=len(self._sorted_ids_N) - 1)
        positions_F = np.flatnonzero(self._sorted_ids_N[rank_C] == fact_ids_C)
        return positions_F, self._row_by_rank_N[rank_C[positions_F]]

    def require_index(self) -> MipsIndex:
        if self.index is None:
            raise NoVectors(
                f"expected embedded facts, found generation {self.manifest.generation} with facts but no vectors; "
                "run `hmn embed` or open an older generation"
            )
        return self.index

    @property
    def nbytes(self) -> int:
        mapped = sum(chunk.nbytes for chunk in self.vectors.chunks)
        lookup = 3 * self.vectors.fact_ids_N.nbytes
        return mapped + lookup + (self.index.nbytes if self.index is not None else 0)


class Shard:
    """The rows of one shard, in every generation that is asked for; thread-safe.

    A generation is loaded when it is first needed, also by a search: that is all a restarted shard has to do to serve
    again. The least recently used generation beyond `config.resident` is let go.
    """

    def __init__(self, config: ShardConfig) -> None:
        self.config = config
        self._incarnation = uuid4().hex
        self._storage = Storage(config.url)
        self._snapshots: OrderedDict[int, _Snapshot] = OrderedDict()
        self._snapshots_lock = threading.Lock()
        self._load_lock = threading.Lock()

    def load(self, generation: int) -> int:
        """Make a generation ready to search; returns its rows here. The generations in use go on serving."""
        return self._snapshot(generation).vectors.num_rows

    def search(self, generation: int, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The best k rows of this shard in one generation; see MipsIndex.search."""
        return self._snapshot(generation).require_index().search(queries_BD, k)

    def fetch(self, generation: int, fact_ids_C: NDArray[np.int64], columns: Sequence[str] | None) -> FoundFacts:
        """The fact rows that this shard holds, as copies that outlive the mapping."""
        snapshot = self._snapshot(generation)
        positions_F, rows_F = snapshot.locate(fact_ids_C)
        table = snapshot.facts if columns is None else snapshot.facts.select(list(columns))
        return FoundFacts(positions_F, table.take(pa.array(rows_F)) if len(rows_F) else table.slice(0, 0))

    def vectors(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundVectors:
        """The stored vectors that this shard holds, as float32 copies."""
        snapshot = self._snapshot(generation)
        snapshot.require_index()
        positions_F, rows_F = snapshot.locate(fact_ids_C)
        return FoundVectors(positions_F, snapshot.vectors.gather(rows_F))

    def release(self, keep_generation: int) -> None:
        """Let every other generation go, now that no caller needs it any more."""
        with self._snapshots_lock:
            for generation in [held for held in self._snapshots if held != keep_generation]:
                del self._snapshots[generation]

    def stats(self, generation: int) -> ShardStats:
        """Rows, bytes and process of this shard, as it serves one generation."""
        snapshot = self._snapshot(generation)
        with self._snapshots_lock:
            resident = tuple(sorted(self._snapshots))
        return ShardStats(
            shard=self.config.shard,
            rows=snapshot.vectors.num_rows,
            bytes=snapshot.nbytes,
            index=self.config.index,
            generation=generation,
            generations_resident=resident,
            pid=os.getpid(),
            incarnation=self._incarnation,
            recall=snapshot.recall,
        )

    def _snapshot(self, generation: int) -> _Snapshot:
        held = self._held(generation)
        if held is not None:
            return held
        with self._load_lock:  # one load at a time; whoever waited finds it done
            held = self._held(generation)
            if held is None:
                held = _Snapshot(self._storage, read_manifest(self._storage, generation), self.config)
                self._hold(generation, held)
            return held

    def _held(self, generation: int) -> _Snapshot | None:
        with self._snapshots_lock:
            if generation in self._snapshots:
                self._snapshots.move_to_end(generation)
            return self._snapshots.get(generation)

    def _hold(self, generation: int, snapshot: _Snapshot) -> None:
        with self._snapshots_lock:
            self._snapshots[generation] = snapshot
            while len(self._snapshots) > self.config.resident:
                self._snapshots.popitem(last=False)


def _int64(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(), dtype=np.int64)
