"""What answers the calls of a memory: shards with their coordinator, put in the place of others while calls go on."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.backends import Backend
from memory_store.coordinator import Coordinator, Served
from memory_store.editions import Edition
from memory_store.errors import CorruptFile, ReindexFailed
from memory_store.manifest import Manifest
from memory_store.mips.base import ShardVectors
from memory_store.mips.dense import search_dense
from memory_store.mips.workers import builders
from memory_store.parts import fact_ids_of, scan_vectors, vectors_of
from memory_store.policy import Partial
from memory_store.reindex import recall_of
from memory_store.storage import Storage
from memory_store.topk import PartialTopK, merge
from memory_store.vectors import widened

# B sample queries, K slots, D dimension

__all__ = ["LOAD_DEADLINE_S", "Engine", "Engines", "State", "check_engine", "load"]

LOAD_DEADLINE_S = 600.0

_SAMPLE_QUERIES = 16
_SAMPLE_K = 10


@dataclass(frozen=True, eq=False)
class Engine:
    """Shards that serve, and how their rows are indexed. edition: of a memory that is shared by name."""

    coordinator: Coordinator
    backend: Backend
    index: str
    edition: Edition | None = None

    @property
    def shards(self) -> int:
        return len(self.coordinator.shards)


State = tuple[Engine, Manifest, Served]
"""What answers: replaced as a whole, so that no answer mixes two generations or two sets of shards."""


class Engines:
    """The engine that serves now. One that was replaced is closed when the last call on it has ended."""

    def __init__(self, first: Engine) -> None:
        self.now = first
        self.state: State | None = None  # while nothing is loaded yet
        self._calls: dict[Engine, int] = {first: 0}
        self._changed = threading.Condition()

    @contextmanager
    def call(self) -> Iterator[State]:
        """Hold on to what serves when this begins."""
        with self._changed:
            assert self.state is not None, "nothing is opened without being loaded"
            engine, _, _ = state = self.state
            self._calls[engine] += 1
        try:
            yield state
        finally:
            with self._changed:
                self._calls[engine] -= 1
                self._changed.notify_all()

    def show(self, state: State) -> Engine | None:
        """Calls that begin from now on see this; returns the engine that it replaced, if it is another one."""
        with self._changed:
            old, self.now, self.state = self.now, state[0], state
            self._calls.setdefault(self.now, 0)
        return old if old is not self.now else None

    def retire(self, old: Engine, *, stop: bool) -> None:
        """Wait for the calls on a replaced engine, then let go of it. stop: end its shards even if they are shared."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls[old])
            del self._calls[old]
        if stop:
            old.backend.stop()
        else:
            old.backend.close()


def load(engine: Engine, manifest: Manifest) -> Served:
    """Have all shards of an engine load a generation beside those that they hold."""
    rows = engine.coordinator.load(manifest.generation, deadline_s=LOAD_DEADLINE_S)
    return Served(generation=manifest.generation, dim=manifest.dim, fact_count=manifest.fact_count, rows_by_shard=rows)


def check_engine(
    storage: Storage, engine: Engine, manifest: Manifest, served: Served, *, least_recall: float, deadline_s: float
) -> float:
    """The recall of an engine on sampled vectors against brute force over the part files, read and verified anew.

    Raises CorruptFile where rows are missing, ReindexFailed where the recall is less than least_recall.
    """
    if sum(served.rows_by_shard) != manifest.fact_count:
        raise CorruptFile(
            f"expected {manifest.fact_count:,} facts on {engine.shards} shards, found {sum(served.rows_by_shard):,}; "
            "run `hmn verify`"
        )
    if not manifest.vectors or not manifest.fact_count:
        return 1.0
    queries_BD = _sample(storage, manifest)
    best: Sequence[PartialTopK] = []
    workers = builders(1)
    for table in scan_vectors(storage, manifest):
        rows = ShardVectors(fact_ids_N=fact_ids_of(table), chunks=[vectors_of(table)], dim=manifest.dim)
        found = search_dense(rows, queries_BD.astype(np.float64), _SAMPLE_K, workers)
        best = [merge([*best, found], _SAMPLE_K)]
    answer = engine.coordinator.search(served, queries_BD, _SAMPLE_K, deadline_s=deadline_s, partial=Partial.REFUSE)
    recall = recall_of(answer, best[0])
    if recall < least_recall:
        raise ReindexFailed(
            f"expected a recall@{_SAMPLE_K} of at least {least_recall:g} from the index {engine.index} on "
            f"{len(queries_BD)} sampled vectors, found {recall:.3f}; raise its options, or least_recall lower"
        )
    return recall


def _sample(storage: Storage, manifest: Manifest) -> NDArray[np.float32]:
    """Up to 16 vectors of the memory, from all over it."""
    pieces: list[NDArray[np.float32]] = []
    step = max(1, manifest.fact_count // _SAMPLE_QUERIES)
    passed = 0
    for table in scan_vectors(storage, manifest):
        rows = np.arange(-passed % step, table.num_rows, step)
        pieces.append(widened(vectors_of(table)[rows]))
        passed += table.num_rows
    return np.ascontiguousarray(np.concatenate(pieces)[:_SAMPLE_QUERIES])
