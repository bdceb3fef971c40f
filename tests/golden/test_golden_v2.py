"""Files of format version 2 (tombstones, fresh parts, who did what) are read by every later release, or refused."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import open_memory
from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import CorruptFile
from memory_store.manifest import generations, read_manifest
from memory_store.parts import open_part, scan_facts
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, verify_memory

V2 = Path(__file__).parent / "v2"
TOMBSTONES = sorted(path.relative_to(V2).as_posix() for path in V2.glob("tombstones/*.arrow"))
FACTS = {
    1: {1: "één", 2: "deux", 3: "три"},
    2: {1: "één", 2: "zwei", 3: "три", 4: "vier"},
    3: {2: "zwei", 3: "три"},
    4: {2: "zwei", 3: "три"},
    5: {1: "één", 2: "zwei", 3: "три", 4: "vier"},
}


@pytest.fixture
def copy(tmp_path: Path) -> Storage:
    """A copy of the golden memory that a test may change."""
    shutil.copytree(V2, tmp_path / "v2")
    return Storage(tmp_path / "v2")


def test_version_2_verifies_and_tells_its_history() -> None:
    assert verify_memory(V2).problems == ()
    made = [report.manifest for report in inspect_memory(V2).generations]
    assert [manifest.operation for manifest in made] == ["append", "upsert", "delete", "compact", "rollback"]
    assert {(manifest.author, manifest.created_at) for manifest in made} == {
        ("ada@golden", "2026-11-22T19:45:00+00:00")
    }
    assert [manifest.delta_parts for manifest in made] == [0, 1, 1, 0, 1]
    assert [manifest.fact_count for manifest in made] == [3, 4, 2, 2, 4]


@pytest.mark.parametrize("generation", FACTS)
@pytest.mark.parametrize("shards", [1, 2])
def test_version_2_answers_as_it_was_written(generation: int, shards: int) -> None:
    storage = Storage(V2)
    tables = scan_facts(storage, read_manifest(storage, generation), ["fact_id", "subject"])
    assert {row["fact_id"]: row["subject"] for table in tables for row in table.to_pylist()} == FACTS[generation]
    with open_memory(str(V2), shards, generation=generation) as memory:
        answer = memory.search(np.array([[1.0, 0.0]]), 5)
        scores = {
            fact_id: fact_id * (1.0 if FACTS[1].get(fact_id) == text else 0.5)
            for fact_id, text in FACTS[generation].items()
        }
        expected = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        assert answer.fact_ids_BK[0].tolist() == [n for n, _ in expected] + [-1] * (5 - len(expected))
        assert answer.scores_BK[0, : len(expected)].tolist() == [score for _, score in expected]


def test_this_release_writes_into_version_2(copy: Storage) -> None:
    with open_memory(copy.url) as memory:
        assert memory.upsert(pa.table({"fact_id": [1]}), np.ones((1, 2), np.float32)) == 6
    compact(copy, policy=CompactionPolicy(most_dead_share=0.0))
    assert generations(copy) == [1, 2, 3, 4, 5, 6, 7]
    assert read_manifest(copy).fact_count == 4
    assert verify_memory(copy).problems == ()


@pytest.mark.parametrize("path", TOMBSTONES)
def test_damaged_tombstones_of_version_2_are_refused(copy: Storage, path: str) -> None:
    manifests = [read_manifest(copy, generation) for generation in generations(copy)]
    part = next(p for manifest in manifests for p in manifest.tombstones if p.path == path)
    file = Path(copy.url) / path
    data = file.read_bytes()
    for position in range(0, len(data), 7):
        file.write_bytes(data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :])
        with pytest.raises(CorruptFile, match=path):
            open_part(copy, part)
    file.write_bytes(data[:-9])
    with pytest.raises(CorruptFile, match=path):
        open_part(copy, part)
