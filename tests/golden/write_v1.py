"""How the golden memories of format version 1 were written. Run once; never again: the files are the promise.

python tests/golden/write_v1.py tests/golden/v1
"""

import dataclasses
import sys

import numpy as np
import pyarrow as pa

from memory_store.changes import AppendParts, ReplaceFacts, ReplaceVectors, apply_change
from memory_store.manifest import manifest_path
from memory_store.manifest_format import Manifest, to_bytes
from memory_store.parts import FACTS_SCHEMA, vectors_table, write_part
from memory_store.storage import Storage

FIRST = pa.table(
    {
        "fact_id": [11, 7],
        "subject_id": ["m.0qzvp", "m.07dfk"],
        "subject": ["Zürich", "東京"],
        "aliases": [["Turicum", "Züri"], []],
        "relation": ["place/country", "place/country"],
        "object_ids": [["m.06mzp"], ["m.03_3d"]],
        "objects": [["Switzerland"], [None]],
        "features": [{"subject": [[1, 2], [4294967295], []], "relation": [7]}, {"subject": [[3]], "relation": []}],
    },
    schema=FACTS_SCHEMA,
)
SECOND = pa.table(
    {"fact_id": [2**63 - 1], **{name: pa.nulls(1, FACTS_SCHEMA.field(name).type) for name in FACTS_SCHEMA.names[1:]}},
    schema=FACTS_SCHEMA,
)


def vectors_for(table: pa.Table, dtype: type) -> pa.Table:
    """[n, 3] vectors that float16 holds exactly."""
    ids_N = table.column("fact_id").to_numpy()
    return vectors_table(ids_N, np.outer(ids_N % 5 + 1, [0.5, -0.25, 2.0]).astype(dtype))


def publish(storage: Storage, manifest: Manifest) -> Manifest:
    stored = dataclasses.replace(manifest, created_at="2026-11-22T15:30:00+00:00")
    storage.create_exclusive(manifest_path(stored.generation), to_bytes(stored))
    return stored


def main(folder: str) -> None:
    storage = Storage(folder)
    facts = tuple(write_part(storage, f"facts/golden-{n}.arrow", table) for n, table in enumerate((FIRST, SECOND)))
    change = ReplaceFacts(facts=facts, grouping="relation", features="features-1")
    first = publish(storage, apply_change(None, change, commit_id="golden-1", note="facts alone"))
    half = tuple(
        write_part(storage, f"vectors/golden-half-{n}.arrow", vectors_for(table, np.float16))
        for n, table in enumerate((FIRST, SECOND))
    )
    embedded = ReplaceVectors(vectors=half, dim=3, dtype="float16", encoder="encoder-1", max_norm=norm(3))
    second = publish(storage, apply_change(first, embedded, commit_id="golden-2", note="embedded in float16"))
    single = tuple(
        write_part(storage, f"vectors/golden-single-{n}.arrow", vectors_for(table, np.float32))
        for n, table in enumerate((FIRST, SECOND))
    )
    again = ReplaceVectors(vectors=single, dim=3, dtype="float32", encoder=None, max_norm=norm(3))
    third = publish(storage, apply_change(second, again, commit_id="golden-3", note="embedded again in float32"))
    more = pa.concat_tables([SECOND]).set_column(0, FACTS_SCHEMA.field("fact_id"), pa.array([5], pa.int64()))
    appended = AppendParts(
        facts=(write_part(storage, "facts/golden-2.arrow", more),),
        vectors=(write_part(storage, "vectors/golden-single-2.arrow", vectors_for(more, np.float32)),),
        dim=3,
        dtype="float32",
        max_norm=norm(1),
    )
    publish(storage, apply_change(third, appended, commit_id="golden-4", note="one fact more"))


def norm(scale: float) -> float:
    return float(scale * np.linalg.norm([0.5, -0.25, 2.0]))


if __name__ == "__main__":
    main(sys.argv[1])
