"""Facts of a memory, encoded afresh with gradient: stored vectors select, fresh vectors learn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memory_store.memory import Memory
from memory_store.parts import scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures
from trainer.extra import Drawn, ExtraRule, FactClusters, draw_clusters, draw_uniform

# B questions, K facts per question, C candidates, D dimension

__all__ = ["EncodedFacts", "ExtraFacts"]

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


class EncodedFacts:
    """A FactSource over an open memory: searched by its stored vectors, read through the encoder.

    `encode` fetches the features of the candidates from the shards and encodes them as the model is now; those of all
    facts, for a full softmax, are fetched once. member: one member of the encoder alone; the memory then holds its
    vectors.
    """

    def __init__(self, memory: Memory, encoder: Encoder, *, member: int | None = None) -> None:
        self._memory = memory
        self._encoder = encoder
        self._member = member
        self._all = _AllFacts(memory)
        self._asked_for_all: NDArray[np.int64] | None = None
        self._features_of_all: tuple[NDArray[np.int64], FactFeatures] | None = None

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        return self._encoder.encode_facts(self._features(fact_ids_C), member=self._member)

    def all_ids(self) -> NDArray[np.int64]:
        self._asked_for_all = self._all.ids()
        return self._asked_for_all

    def _features(self, fact_ids_C: NDArray[np.int64]) -> FactFeatures:
        if self._features_of_all is not None and self._features_of_all[0] is fact_ids_C:
            return self._features_of_all[1]
        features = FactFeatures.from_table(self._memory.fetch(fact_ids_C, FEATURE_COLUMNS))
        if fact_ids_C is self._asked_for_all:
            self._features_of_all = fact_ids_C, features
        return features


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
