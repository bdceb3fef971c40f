"""Fact ids across all parts of a generation are distinct: checked over mapped parts in bounded memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import DuplicateFact
from memory_store.manifest import Part
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, open_part
from memory_store.storage import Storage

# F facts of all parts, R ranges of ids

__all__ = ["refuse_duplicates"]

_IDS_AT_ONCE = 1 << 20


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


def _named(storage: Storage, parts: Sequence[Part], ids: Sequence[NDArray[np.int64]], fact_id: int) -> str:
    facts = []
    for part, of_part in zip(parts, ids, strict=True):
        row = int(np.searchsorted(of_part, fact_id))
        if row < len(of_part) and of_part[row] == fact_id:
            table = open_part(storage, part, FACTS_SCHEMA)
            facts.append(f"({table['subject_id'][row]}, {table['relation'][row]})")
    return f"two facts have the id {fact_id}: {' and '.join(facts)}; rename one of the subjects"
