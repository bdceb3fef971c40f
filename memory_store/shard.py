"""One shard's state and operations: the rows it holds of each loaded generation, and the index over them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.manifest import read_manifest
from memory_store.parts import FACTS_SCHEMA
from memory_store.recall import RecallReport
from memory_store.snapshot import ShardConfig, Snapshot
from memory_store.storage import Storage
from memory_store.topk import PartialTopK

# N rows in this shard, B queries, K slots, D dimension, C fact ids asked for, F of them found here

__all__ = ["CopyStats", "FoundFacts", "FoundPlaces", "FoundVectors", "Shard", "ShardConfig", "ShardStats"]


@dataclass(frozen=True, kw_only=True)
class CopyStats:
    """One copy of a shard. serving: it is asked; a copy that is not is being brought back. pid: None where it did
    not answer."""

    replica: int
    serving: bool
    pid: int | None
    restarts: int


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """One line of `stats()`. bytes: mapped vectors plus what the index holds. restarts: as seen by the caller.

    rows: live ones; fresh_rows: those of them that are searched beside the main index: written since the last
    compaction, or so few that the main index was not built anew for them.
    recall: what the repeated searches say of an approximate index; None before the first, and for an exact one.
    device: where the main index is scanned: "cpu", or a GPU.
    copies: where a shard is served more than once; the line is then that of the first copy that serves, restarts are
    those of all copies. hedged: calls that were late and went to a second copy too; failed_over: calls that another
    copy answered because one failed.
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
    fresh_rows: int = 0
    recall: RecallReport | None = None
    copies: tuple[CopyStats, ...] = ()
    hedged: int = 0
    failed_over: int = 0
    device: str = "cpu"


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundPlaces:
    """positions_F: where in the request each id stands; part_F: which part of the manifest holds it; row_F: where."""

    positions_F: NDArray[np.int64]
    part_F: NDArray[np.int64]
    row_F: NDArray[np.int64]


class Shard:
    """The rows of one shard, in every generation that is asked for; thread-safe.

    A generation is loaded when it is first needed, also by a search: that is all a restarted shard has to do to serve
    again. The least recently used generation beyond `config.resident` is let go, a proposed one first.
    """

    def __init__(self, config: ShardConfig) -> None:
        self.config = config
        self._incarnation = uuid4().hex
        self._storage = Storage(config.url)
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._snapshots_lock = threading.Lock()
        self._load_lock = threading.Lock()

    def load(self, generation: int) -> int:
        """Make a generation ready to search; returns its rows here. The generations in use go on serving."""
        return self._snapshot(generation).num_rows

    def search(self, generation: int, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The best k rows of this shard in one generation; see MipsIndex.search."""
        return self._snapshot(generation).search(queries_BD, k)

    def fetch(self, generation: int, fact_ids_C: NDArray[np.int64], columns: Sequence[str] | None) -> FoundFacts:
        """The fact rows that this shard holds, as copies that outlive the mapping."""
        found = self._snapshot(generation).find(fact_ids_C)
        tables = []
        for seen, _, rows_F in found:
            if len(rows_F):
                tables.append(seen.take_facts(rows_F, columns))
        names = FACTS_SCHEMA.names if columns is None else list(columns)
        nothing = FACTS_SCHEMA.empty_table().select(names)
        positions_F = np.concatenate([positions for _, positions, _ in found])
        return FoundFacts(positions_F, pa.concat_tables(tables) if tables else nothing)

    def vectors(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundVectors:
        """The stored vectors that this shard holds, as float32 copies."""
        snapshot = self._snapshot(generation)
        snapshot.require_vectors()
        found = snapshot.find(fact_ids_C)
        return FoundVectors(
            np.concatenate([positions for _, positions, _ in found]),
            np.concatenate([seen.held.rows.vectors.gather(rows_F) for seen, _, rows_F in found]),
        )

    def locate(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundPlaces:
        """Where the live rows of these ids lie in the part files, for those that this shard holds."""
        found = self._snapshot(generation).find(fact_ids_C)
        places = [seen.places(rows_F) for seen, _, rows_F in found if len(rows_F)]
        nothing = np.zeros(0, dtype=np.int64)
        return FoundPlaces(
            positions_F=np.concatenate([positions for _, positions, _ in found]),
            part_F=np.concatenate([nothing, *(part for part, _ in places)]),
            row_F=np.concatenate([nothing, *(row for _, row in places)]),
        )

    def release(self, keep_generation: int) -> None:
        """Let every other generation go, now that no caller needs it any more."""
        with self._snapshots_lock:
            others = [self._snapshots.pop(held) for held in list(self._snapshots) if held != keep_generation]
        others.clear()  # which takes a while, and a search had better not wait for the lock meanwhile

    def stats(self, generation: int) -> ShardStats:
        """Rows, bytes and process of this shard, as it serves one generation."""
        snapshot = self._snapshot(generation)
        with self._snapshots_lock:
            resident = tuple(sorted(self._snapshots))
        return ShardStats(
            shard=self.config.shard,
            rows=snapshot.num_rows,
            fresh_rows=snapshot.fresh_rows,
            bytes=snapshot.nbytes,
            recall=snapshot.main.recall,
            index=self.config.index,
            generation=generation,
            generations_resident=resident,
            pid=os.getpid(),
            incarnation=self._incarnation,
            device=snapshot.device,
        )

    def describe(self) -> dict[str, Any]:
        """generations held, rows, bytes and device of the one used last; loads nothing, for somebody who only looks."""
        with self._snapshots_lock:
            held = list(self._snapshots.items())
        generation, newest = held[-1] if held else (None, None)
        return {
            "generation": generation,
            "generations_resident": sorted(number for number, _ in held),
            "rows": newest.num_rows if newest is not None else 0,
            "bytes": newest.nbytes if newest is not None else 0,
            "device": newest.device if newest is not None else "cpu",
        }

    def _snapshot(self, generation: int) -> Snapshot:
        held = self._held(generation)
        if held is not None:
            return held
        with self._load_lock:  # one load at a time; whoever waited finds it done
            held = self._held(generation)
            if held is None:
                with self._snapshots_lock:
                    others = list(self._snapshots.values())
                held = Snapshot(self._storage, read_manifest(self._storage, generation), self.config, others)
                self._hold(generation, held)
            return held

    def _held(self, generation: int) -> Snapshot | None:
        with self._snapshots_lock:
            if generation in self._snapshots:
                self._snapshots.move_to_end(generation)
            return self._snapshots.get(generation)

    def _hold(self, generation: int, snapshot: Snapshot) -> None:
        gone = []
        with self._snapshots_lock:
            self._snapshots[generation] = snapshot
            while len(self._snapshots) > self.config.resident:
                others = [held for held in self._snapshots if held != generation]
                # One that is proposed goes before one that answers, however long ago it last did.
                gone.append(self._snapshots.pop(min(others, key=lambda held: held > 0)))
        gone.clear()  # without the lock, see release
