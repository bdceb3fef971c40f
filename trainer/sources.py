"""Facts of a memory, encoded afresh with gradient: stored vectors select, fresh vectors learn."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memory_store.memory import Memory
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures

# B questions, K facts per question, C candidates, D dimension

__all__ = ["EncodedFacts"]


class EncodedFacts:
    """A FactSource over an open memory: searched by its stored vectors, read through the encoder.

    `encode` fetches the features of the candidates from the shards and encodes them as the model is now. member: one
    member of the encoder alone; the memory then holds its vectors.
    """

    def __init__(self, memory: Memory, encoder: Encoder, *, member: int | None = None) -> None:
        self._memory = memory
        self._encoder = encoder
        self._member = member
        self._all_ids: NDArray[np.int64] | None = None

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        features = FactFeatures.from_table(self._memory.fetch(fact_ids_C, FEATURE_COLUMNS))
        return self._encoder.encode_facts(features, member=self._member)

    def all_ids(self) -> NDArray[np.int64]:
        if self._all_ids is None:
            storage = Storage(self._memory.url)
            tables = scan_facts(storage, self._memory.manifest, columns=["fact_id"])
            self._all_ids = np.sort(np.concatenate([table["fact_id"].to_numpy() for table in tables]))
        return self._all_ids
