"""Checks over all parts of a generation in bounded memory: fact ids are distinct; two sets of parts say the same."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.errors import DuplicateFact
from memory_store.manifest import Part
from memory_store.parts import FACTS_SCHEMA, dead_rows, fact_ids_of, live_rows, open_part
from memory_store.storage import Storage
from pipeline.facts import hash_texts

# F facts of all parts, R ranges of ids

__all__ = ["refuse_duplicates", "same_facts"]

_IDS_AT_ONCE = 1 << 20
_FACTS_AT_ONCE = 1 << 16
_SEPARATOR = "\x1f"  # a control character: clean text has none


def refuse_duplicates(storage: Storage, parts: Sequence[Part]) -> None:
    """DuplicateFact names both facts if two of them, in any parts, have one id. Parts are sorted by fact_id.

    Ids are hashes, so equal ranges of them hold about equally many: range by range, all parts fit into memory.
    """
    ids = [fact_ids_of(open_part(storage, part, FACTS_SCHEMA)) for part in parts]
    ranges = max(1, sum(map(len, ids)) // _IDS_AT_ONCE)
    edges_R = [2**63 // ranges * number for number in range(1, ranges)]
    cuts = [[0, *np.searchsorted(part, np.array(edges_R, dtype=np.int64)), len(part)] for part in ids]
    for number in range(ranges):
        slices = [part[cut[number] : cut[number + 1]] for part, cut in zip(ids, cuts, strict=True)]
        together = np.sort(np.concatenate(slices))
        equal = together[1:][together[1:] == together[:-1]]
        if len(equal):
            raise DuplicateFact(_named(storage, parts, ids, int(equal[0])))


def same_facts(
    storage: Storage, parts: Sequence[Part], others: Sequence[Part], *, tombstones: Sequence[Part] = ()
) -> bool:
    """Whether two sets of parts hold the same facts, however these are spread over the parts.

    tombstones: name rows of `parts` that count no more.
    """
    dead_count = sum(part.rows for part in tombstones)
    if sum(part.rows for part in parts) - dead_count != sum(part.rows for part in others):
        return False
    return _digest(storage, parts, tombstones) == _digest(storage, others, ())


def _digest(storage: Storage, parts: Sequence[Part], tombstones: Sequence[Part]) -> int:
    """The sum of a hash of each fact: it does not depend on their order."""
    total = 0
    dead = dead_rows(storage, parts, tombstones)
    for part in parts:
        table = open_part(storage, part, FACTS_SCHEMA).drop_columns("features")
        if part.path in dead:
            table = table.take(pa.array(live_rows(table.num_rows, dead[part.path])))
        for batch in table.to_batches(max_chunksize=_FACTS_AT_ONCE):
            texts = [batch.column("fact_id").cast(pa.string()), batch.column("subject")]
            for name in ("aliases", "object_ids", "objects"):
                lengths = pc.list_value_length(batch.column(name)).cast(pa.string())
                texts += [lengths, pc.binary_join(batch.column(name), _SEPARATOR)]
            total += int(hash_texts(pc.binary_join_element_wise(*texts, _SEPARATOR)).sum())
    return total % 2**64


def _named(storage: Storage, parts: Sequence[Part], ids: Sequence[NDArray[np.int64]], fact_id: int) -> str:
    facts = []
    for part, of_part in zip(parts, ids, strict=True):
        row = int(np.searchsorted(of_part, fact_id))
        if row < len(of_part) and of_part[row] == fact_id:
            table = open_part(storage, part, FACTS_SCHEMA)
            facts.append(f"({table['subject_id'][row]}, {table['relation'][row]})")
    return f"two facts have the id {fact_id}: {' and '.join(facts)}; rename one of the subjects"
