"""All rows of one generation, read from its part files and held against brute force: no shard, no index, no delta."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from kill_mix.facts import encode, scale_of
from numpy.typing import NDArray

from memory_store.manifest import read_manifest
from memory_store.mips.oracle import exhaustive_search
from memory_store.parts import scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.topk import PartialTopK

# B queries, D dimension, N rows

__all__ = ["Rows", "read_rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """stamps: by fact id, in the order of the vectors [N, D]."""

    generation: int
    encoder: str | None
    stamps: dict[int, int]
    vectors_ND: NDArray[np.float32]

    def search(self, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        return exhaustive_search(np.array(list(self.stamps), np.int64), self.vectors_ND, queries_BD, k)


def read_rows(storage: Storage, generation: int) -> Rows:
    """AssertionError if an id is there twice, or a vector is not what the generation's encoder makes of its fact."""
    manifest = read_manifest(storage, generation)
    facts = pa.concat_tables(scan_facts(storage, manifest, ["fact_id", "subject"]))
    vectors_ND = np.concatenate([np.array(vectors_of(table)) for table in scan_vectors(storage, manifest)])
    stamps = {
        fact_id: int(stamp)
        for fact_id, stamp in zip(facts["fact_id"].to_pylist(), facts["subject"].to_pylist(), strict=True)
    }
    assert len(stamps) == facts.num_rows == manifest.fact_count, f"generation {generation} holds an id twice"
    expected_ND = encode(facts, scale_of(manifest.encoder))
    assert np.array_equal(vectors_ND, expected_ND), f"generation {generation} holds vectors of another encoder"
    return Rows(generation=generation, encoder=manifest.encoder, stamps=stamps, vectors_ND=vectors_ND)
