"""Files of every format version are read by every later release; damaged copies are refused, never read."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from memory_store.errors import CorruptFile
from memory_store.manifest import generations, read_manifest
from memory_store.parts import fact_ids_of, open_part, scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, verify_memory
from memory_store.writer import MemoryWriter

V1 = Path(__file__).parent / "v1"
MANIFESTS = sorted(path.relative_to(V1).as_posix() for path in V1.glob("manifests/*.json"))
PARTS = sorted(path.relative_to(V1).as_posix() for path in V1.glob("*/*.arrow"))


@pytest.fixture
def copy(tmp_path: Path) -> Storage:
    """A copy of the golden memory that a test may damage."""
    shutil.copytree(V1, tmp_path / "v1")
    return Storage(tmp_path / "v1")


def flips_and_truncations(data: bytes) -> list[bytes]:
    flipped = [
        data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]
        for position in range(0, len(data), 5)
    ]
    return flipped + [data[:length] for length in (0, 1, 8, len(data) // 2, len(data) - 9)]


def test_version_1_verifies_and_tells_its_history() -> None:
    assert verify_memory(V1).problems == ()
    assert generations(Storage(V1)) == [1, 2, 3, 4]
    notes = [report.manifest.note for report in inspect_memory(V1).generations if report.manifest]
    assert notes == ["facts alone", "embedded in float16", "embedded again in float32", "one fact more"]
    assert [read_manifest(Storage(V1), number).parent for number in (1, 2, 3, 4)] == [None, 1, 2, 3]


def test_version_1_facts_are_read_as_they_were_written() -> None:
    storage = Storage(V1)
    manifest = read_manifest(storage, 1)
    assert (manifest.dim, manifest.dtype, manifest.vectors) == (0, None, ())
    assert (manifest.grouping, manifest.features, manifest.fact_count) == ("relation", "features-1", 3)
    rows = [row for table in scan_facts(storage, manifest) for row in table.to_pylist()]
    assert rows[0] == {
        "fact_id": 11,
        "subject_id": "m.0qzvp",
        "subject": "Zürich",
        "aliases": ["Turicum", "Züri"],
        "relation": "place/country",
        "object_ids": ["m.06mzp"],
        "objects": ["Switzerland"],
        "features": {"subject": [[1, 2], [4294967295], []], "relation": [7]},
    }
    assert rows[1]["subject"] == "東京"
    assert rows[1]["objects"] == [None]
    assert rows[2]["fact_id"] == 2**63 - 1
    assert [value for name, value in rows[2].items() if name != "fact_id"] == [None] * 7


@pytest.mark.parametrize(("generation", "dtype", "encoder"), [(2, "float16", "encoder-1"), (4, "float32", None)])
def test_version_1_vectors_are_read_as_they_were_written(generation: int, dtype: str, encoder: str | None) -> None:
    storage = Storage(V1)
    manifest = read_manifest(storage, generation)
    assert (manifest.dim, manifest.dtype, manifest.encoder) == (3, dtype, encoder)
    for table in scan_vectors(storage, manifest):
        vectors_ND = vectors_of(table)
        assert vectors_ND.dtype == dtype
        np.testing.assert_array_equal(vectors_ND, np.outer(fact_ids_of(table) % 5 + 1, [0.5, -0.25, 2.0]))


def test_a_writer_of_this_release_appends_to_version_1(copy: Storage) -> None:
    with MemoryWriter(copy, dim=3) as writer:
        writer.append(next(scan_facts(copy, read_manifest(copy, 1))).slice(0, 0), np.empty((0, 3), np.float32))
        ids = scan_facts(copy, read_manifest(copy), ["fact_id"])
        new = next(ids).slice(0, 1).set_column(0, "fact_id", [[99]])
        writer.append(new, np.ones((1, 3), np.float32))
    assert read_manifest(copy).fact_count == 5
    assert verify_memory(copy).ok


@pytest.mark.parametrize("path", MANIFESTS)
def test_a_damaged_manifest_of_version_1_is_refused(copy: Storage, path: str) -> None:
    generation = int(Path(path).stem)
    expected = read_manifest(copy, generation)
    file = Path(copy.url) / path
    refused = 0
    for damaged in flips_and_truncations(file.read_bytes()):
        file.write_bytes(damaged)
        try:
            found = read_manifest(copy, generation)
        except CorruptFile:
            refused += 1
            continue
        assert found == expected  # white space between two words of JSON is all that may change unseen
    assert refused > 100


@pytest.mark.parametrize("path", PARTS)
def test_a_damaged_part_of_version_1_is_refused(copy: Storage, path: str) -> None:
    manifests = [read_manifest(copy, generation) for generation in generations(copy)]
    part = next(p for manifest in manifests for p in manifest.facts + manifest.vectors if p.path == path)
    assert open_part(copy, part).num_rows == part.rows
    file = Path(copy.url) / path
    for damaged in flips_and_truncations(file.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=path):
            open_part(copy, part)
