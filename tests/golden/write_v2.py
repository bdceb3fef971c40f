"""How the golden memory of format version 2 was written. Run once; never again: the files are the promise.

python tests/golden/write_v2.py tests/golden/v2
"""

import dataclasses
import sys

import numpy as np
import pyarrow as pa

from memory_store.changes import AppendParts, CompactParts, DeleteRows, RestoreContent, UpsertRows, apply_change
from memory_store.manifest import manifest_path
from memory_store.manifest_format import Manifest, Part, to_bytes
from memory_store.parts import FACTS_SCHEMA, TOMBSTONES_SCHEMA, vectors_table, write_part
from memory_store.storage import Storage

NORM = float(9 * np.linalg.norm([1.0, -0.5]))


def facts_of(ids: list[int], subjects: list[str]) -> pa.Table:
    table = {name: pa.nulls(len(ids), FACTS_SCHEMA.field(name).type) for name in FACTS_SCHEMA.names}
    return pa.table(table | {"fact_id": ids, "subject": subjects}, schema=FACTS_SCHEMA)


def publish(storage: Storage, manifest: Manifest) -> Manifest:
    stored = dataclasses.replace(manifest, created_at="2026-11-22T19:45:00+00:00", author="ada@golden")
    storage.create_exclusive(manifest_path(stored.generation), to_bytes(stored))
    return stored


def main(folder: str) -> None:
    storage = Storage(folder)

    def parts(name: str, ids: list[int], subjects: list[str], scale: float) -> dict[str, tuple[Part, ...]]:
        vectors_ND = np.outer(np.array(ids) % 10, [1.0, -0.5]).astype(np.float32) * np.float32(scale)
        return {
            "facts": (write_part(storage, f"facts/golden-{name}.arrow", facts_of(ids, subjects)),),
            "vectors": (write_part(storage, f"vectors/golden-{name}.arrow", vectors_table(np.array(ids), vectors_ND)),),
        }

    def tombstones(name: str, rows: list[tuple[int, str, int]]) -> tuple[Part, ...]:
        ids, paths, numbers = (list(column) for column in zip(*rows, strict=True))
        named = pa.array([f"facts/golden-{path}.arrow" for path in paths]).dictionary_encode()
        table = pa.table([pa.array(ids), named, pa.array(numbers)], schema=TOMBSTONES_SCHEMA)
        return (write_part(storage, f"tombstones/golden-{name}.arrow", table),)

    kind = {"dim": 2, "dtype": "float32", "max_norm": NORM}
    first = AppendParts(**parts("main", [1, 2, 3], ["één", "deux", "три"], 1.0), **kind)
    one = publish(storage, apply_change(None, first, commit_id="golden-1", note="three facts"))
    second = UpsertRows(
        **parts("fresh", [2, 4], ["zwei", "vier"], 0.5), tombstones=tombstones("two", [(2, "main", 1)]), **kind
    )
    two = publish(storage, apply_change(one, second, commit_id="golden-2", note="2 anew, and 4"))
    third = DeleteRows(tombstones=tombstones("three", [(1, "main", 0), (4, "fresh", 1)]))
    three = publish(storage, apply_change(two, third, commit_id="golden-3", note="without 1 and 4"))
    compacted = parts("compacted", [2], ["zwei"], 0.5)
    fourth = CompactParts(
        facts=one.facts + compacted["facts"],
        vectors=one.vectors + compacted["vectors"],
        tombstones=tombstones("four", [(2, "main", 1), (1, "main", 0)]),
        delta_parts=0,
    )
    four = publish(storage, apply_change(three, fourth, commit_id="golden-4", note="compacted"))
    publish(storage, apply_change(four, RestoreContent(manifest=two), commit_id="golden-5", note="as in 2"))


if __name__ == "__main__":
    main(sys.argv[1])
