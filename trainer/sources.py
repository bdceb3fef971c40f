"""Facts of a memory, encoded afresh with gradient: stored vectors select, fresh vectors learn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memory_store.manifest import Manifest, Part
from memory_store.memory import Memory
from memory_store.parts import scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures
from trainer.extra import Drawn, ExtraRule, FactClusters, draw_clusters, draw_uniform

# B questions, K facts per question, C candidates, D dimension

__all__ = ["EncodedFacts", "ExtraFacts", "HeldFeatures"]

_HELD_BYTES = 2**28  # half a million facts and more; a step that fetches instead takes a few milliseconds longer
_EXTRA = 3  # names the stream of random numbers: (seed, stream, step)


class _AllFacts:
    """The ids of all facts of a memory, sorted; read again when it serves another generation."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._generation = -1
        self._ids_N = np.empty(0, dtype=np.int64)

    def ids(self) -> NDArray[np.int64]:
        """The same array for as long as the facts are the same."""
        manifest = self._memory.manifest
        if manifest.generation != self._generation:
            tables = scan_facts(Storage(self._memory.url), manifest, columns=["fact_id"])
            read = [np.empty(0, dtype=np.int64), *(table["fact_id"].to_numpy() for table in tables)]
            ids_N = np.sort(np.concatenate(read))
            if not np.array_equal(ids_N, self._ids_N):
                self._ids_N = ids_N
            self._generation = manifest.generation
        return self._ids_N


class HeldFeatures:
    """The features of all facts of a memory, in this process: what a step reads of them, it need not fetch.

    They are read when first asked for, and again when the facts are others. most_bytes: of the files of facts; those of
    a larger memory are not held, unless all are asked for.
    """

    def __init__(self, memory: Memory, *, most_bytes: int = _HELD_BYTES) -> None:
        self._memory = memory
        self._most_bytes: int | None = most_bytes
        self._generation = -1
        self._parts: tuple[tuple[Part, ...], tuple[Part, ...]] | None = None
        self._ids_N = np.empty(0, dtype=np.int64)
        self._features: FactFeatures | None = None

    def of(self, fact_ids_C: NDArray[np.int64]) -> FactFeatures | None:
        """The features of these facts; None where they are not held."""
        features = self._current()
        if features is None or fact_ids_C is self._ids_N:
            return features
        if not len(self._ids_N):
            return None
        row_C = np.searchsorted(self._ids_N, fact_ids_C).clip(max=len(self._ids_N) - 1)
        return features.take(row_C) if np.array_equal(self._ids_N[row_C], fact_ids_C) else None

    def all_ids(self) -> NDArray[np.int64]:
        """The ids of all facts, sorted; `of` this very array are the features of all, without a search."""
        self._most_bytes = None
        if self._features is None:  # it was too much, or not asked for
            self._generation, self._parts = -1, None
        self._current()
        return self._ids_N

    def _current(self) -> FactFeatures | None:
        manifest = self._memory.manifest
        if manifest.generation != self._generation:
            parts = (manifest.facts, manifest.tombstones)
            if parts != self._parts:
                size = sum(part.bytes for part in manifest.facts)
                self._features = None  # before the new ones take their place
                if self._most_bytes is None or size <= self._most_bytes:
                    self._ids_N, self._features = _read_features(Storage(self._memory.url), manifest)
            self._generation, self._parts = manifest.generation, parts
        return self._features


def _read_features(storage: Storage, manifest: Manifest) -> tuple[NDArray[np.int64], FactFeatures]:
    """(the ids of all facts, sorted [N]; their features in this order)."""
    ids, pieces = [np.empty(0, dtype=np.int64)], []
    for table in scan_facts(storage, manifest, columns=list(FEATURE_COLUMNS)):
        ids.append(table["fact_id"].to_numpy())
        pieces.append(FactFeatures.from_table(table))
    ids_N = np.concatenate(ids)
    order_N = np.argsort(ids_N, kind="stable")
    return ids_N[order_N], FactFeatures.join(pieces).reordered(order_N)


class EncodedFacts:
    """A FactSource over an open memory: searched by its stored vectors, read through the encoder.

    `encode` encodes the candidates as the model is now, from features that this process holds or that it fetches from
    the shards. member: one member of the encoder alone; the memory then holds its vectors. held: shared with the
    sources of the other members.
    """

    def __init__(
        self, memory: Memory, encoder: Encoder, *, member: int | None = None, held: HeldFeatures | None = None
    ) -> None:
        self._memory = memory
        self._encoder = encoder
        self._member = member
        self._held = held or HeldFeatures(memory)

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        features = self._held.of(fact_ids_C)
        if features is None:
            features = FactFeatures.from_table(self._memory.fetch(fact_ids_C, FEATURE_COLUMNS))
        return self._encoder.encode_facts(features, member=self._member)

    def all_ids(self) -> NDArray[np.int64]:
        return self._held.all_ids()


class ExtraFacts:
    """Draws facts that join the candidates of a step; which ones follows from the seed and the step alone.

    rule, count: as [train] extra and extra_facts. "clusters" reads all vectors of the memory once per generation.
    """

    def __init__(self, memory: Memory, rule: ExtraRule, count: int, *, seed: int, threads: int = 1) -> None:
        self._memory = memory
        self._rule = rule
        self._count = count
        self._seed = seed
        self._threads = threads
        self._all = _AllFacts(memory)
        self._clusters: tuple[int, FactClusters] | None = None

    def draw(self, step: Sequence[int]) -> Drawn | None:
        """step: numbers that name this draw among all those of the run. None for the rule "none"."""
        rng = np.random.default_rng([self._seed, _EXTRA, *step])
        if self._rule == "uniform":
            return draw_uniform(self._all.ids(), self._count, rng)
        return draw_clusters(self._clustered(), self._count, rng) if self._rule == "clusters" else None

    def _clustered(self) -> FactClusters:
        manifest = self._memory.manifest
        if self._clusters is None or self._clusters[0] != manifest.generation:
            tables = list(scan_vectors(Storage(self._memory.url), manifest))
            ids_N = np.concatenate([table["fact_id"].to_numpy() for table in tables])
            vectors_ND = np.concatenate([vectors_of(table) for table in tables]).astype(np.float32, copy=False)
            self._clusters = manifest.generation, FactClusters.of(ids_N, vectors_ND, self._threads)
        return self._clusters[1]
