"""MemoryWriter: one generation on a clean exit, nothing on an error, and nothing that a reader cannot serve."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from memory_store.disk import Disk
from memory_store.errors import (
    ConfigError,
    DimensionMismatch,
    DuplicateFact,
    EmptyInput,
    GenerationConflict,
    InputError,
    InvalidVectors,
    MemoryNotFound,
    NoVectors,
    StorageFailed,
)
from memory_store.manifest import (
    ParentGeneration,
    ReplaceFacts,
    apply_change,
    commit,
    current_generation,
    read_manifest,
)
from memory_store.opening import open_memory
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from memory_store.vectors import max_norm, stored_vectors, widened
from memory_store.writer import MemoryWriter

FactsOf = Callable[..., pa.Table]
VectorsFor = Callable[..., NDArray[np.float32]]
WriteMemory = Callable[..., Storage]


def ids_in(storage: Storage) -> list[int]:
    tables = scan_facts(storage, read_manifest(storage), ["fact_id"])
    return np.concatenate([fact_ids_of(table) for table in tables]).tolist()


def vectors_in(storage: Storage) -> NDArray[np.float32]:
    return np.concatenate([vectors_of(table) for table in scan_vectors(storage, read_manifest(storage))])


def files_in(storage: Storage) -> list[str]:
    return [path for folder in ("facts", "vectors", "manifests") for path in storage.list(folder)]


def test_a_clean_exit_commits_one_generation_with_everything_in_the_order_appended(
    storage: Storage, facts_of: FactsOf, vectors_for: VectorsFor
) -> None:
    ids = np.random.default_rng(3).permutation(100)
    with MemoryWriter(storage, dim=4, part_rows=16, note="first") as writer:
        for start in range(0, 100, 7):
            writer.append(facts_of(ids[start : start + 7]), vectors_for(ids[start : start + 7]))
        assert current_generation(storage) is None
        assert writer.rows == 100
    manifest = read_manifest(storage)
    assert writer.manifest == manifest
    assert (manifest.generation, manifest.fact_count, manifest.note, len(manifest.facts)) == (1, 100, "first", 7)
    assert ids_in(storage) == ids.tolist()
    np.testing.assert_array_equal(vectors_in(storage), vectors_for(ids))
    assert manifest.max_norm == np.sqrt((vectors_for(ids).astype(np.float64) ** 2).sum(1).max())
    assert verify_memory(storage).ok


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 100])
def test_one_large_append_and_many_small_ones_make_the_same_parts(
    memory_url: str, facts_of: FactsOf, vectors_for: VectorsFor, rows: int
) -> None:
    checksums = []
    for step in (rows, 5):
        storage = Storage(f"{memory_url}-{step}")
        with MemoryWriter(storage, dim=4, part_rows=16) as writer:
            for start in range(0, rows, step):
                ids = range(start, min(start + step, rows))
                writer.append(facts_of(ids), vectors_for(ids))
        manifest = read_manifest(storage)
        checksums.append([part.checksum for part in manifest.facts + manifest.vectors])
    assert checksums[0] == checksums[1]


def test_writing_to_an_existing_memory_appends_to_its_current_generation(
    storage: Storage, write_memory: WriteMemory, vectors_for: VectorsFor
) -> None:
    write_memory(storage, range(5))
    old = read_manifest(storage)
    write_memory(storage, range(5, 9))
    new = read_manifest(storage)
    assert (new.generation, new.parent, new.parent_commit) == (2, 1, old.commit_id)
    assert new.facts[: len(old.facts)] == old.facts
    assert ids_in(storage) == list(range(9))
    np.testing.assert_array_equal(vectors_in(storage), vectors_for(range(9)))
    assert read_manifest(storage, 1) == old


def test_other_columns_are_kept_and_those_not_given_are_null(storage: Storage) -> None:
    facts = pa.table(
        {
            "relation": pa.array(["place/country"]).dictionary_encode(),
            "fact_id": [7],
            "subject": pa.array(["Zürich"], pa.large_string()),
            "aliases": [["Turicum"]],
        }
    )
    with MemoryWriter(storage, dim=1) as writer:
        writer.append(facts, [[1.0]])
        writer.append(pa.RecordBatch.from_pydict({"fact_id": [8]}), np.array([[2.0]]))
    table = pa.concat_tables(scan_facts(storage, read_manifest(storage)))
    assert table.schema.equals(FACTS_SCHEMA)
    first, second = table.to_pylist()
    assert (first["relation"], first["subject"], first["aliases"]) == ("place/country", "Zürich", ["Turicum"])
    assert first["objects"] is None
    assert {name for name, value in second.items() if value is not None} == {"fact_id"}


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_vectors_of_any_float_type_are_stored_as_the_memorys(storage: Storage, given: type, stored: str) -> None:
    vectors_ND = np.linspace(-1, 1, 12).reshape(3, 4).astype(given)
    with MemoryWriter(storage, dim=4, dtype=stored) as writer:
        writer.append(pa.table({"fact_id": [1, 2, 3]}), np.asfortranarray(vectors_ND))
    assert vectors_in(storage).dtype == stored
    np.testing.assert_array_equal(vectors_in(storage), vectors_ND.astype(stored))
    assert verify_memory(storage).ok  # max_norm is that of the stored values


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_bfloat16_holds_the_nearest_values_and_a_search_scores_those(storage: Storage, given: type) -> None:
    vectors_ND = np.random.default_rng(0).standard_normal((300, 8)).astype(given)
    nearest_ND = torch.from_numpy(vectors_ND.astype(np.float32)).to(torch.bfloat16).float().numpy()
    with MemoryWriter(storage, dim=8, dtype="bfloat16", part_rows=128) as writer:
        writer.append(pa.table({"fact_id": np.arange(300)}), vectors_ND)
    assert verify_memory(storage).ok
    with open_memory(storage.url, shards=2) as memory:
        np.testing.assert_array_equal(memory.vectors(np.arange(300)), nearest_ND)
        found = memory.search(nearest_ND[:5], k=3)
        scores_BN = nearest_ND[:5].astype(np.float64) @ nearest_ND.astype(np.float64).T
        np.testing.assert_array_equal(found.fact_ids_BK, np.argsort(-scores_BN, axis=1, kind="stable")[:, :3])
        memory.upsert(pa.table({"fact_id": [7]}), 2 * nearest_ND[7:8])
        np.testing.assert_array_equal(memory.vectors([7]), 2 * nearest_ND[7:8])
        memory.reindex(lambda facts: np.full((facts.num_rows, 8), 1 / 3))
        assert set(memory.vectors([7, 8]).ravel().tolist()) == {0.333984375}


def test_bfloat16_rounds_ties_to_even_and_refuses_what_it_cannot_hold() -> None:
    odd, even = np.float32(1 + 3 * 2.0**-8), np.float32(1 + 2.0**-8)  # halfway between two bfloat16 values
    kept_ND = stored_vectors(np.array([[odd, even, -0.0, 1e-45]], dtype=np.float32), 4, "bfloat16")
    np.testing.assert_array_equal(widened(kept_ND), np.array([[1 + 4 * 2.0**-8, 1.0, -0.0, 0.0]], dtype=np.float32))
    for wrong in (np.nan, np.inf, 3.4e38, -3.4e38):
        with pytest.raises(InvalidVectors, match="expected finite bfloat16 values"):
            max_norm(stored_vectors(np.full((1, 1), wrong, dtype=np.float32), 1, "bfloat16"))


def test_the_caller_may_reuse_its_array_for_the_next_batch(storage: Storage, facts_of: FactsOf) -> None:
    reused_ND = np.empty((2, 3), dtype=np.float32)
    with MemoryWriter(storage, dim=3) as writer:
        for number in range(4):
            reused_ND[:] = number
            writer.append(facts_of([2 * number, 2 * number + 1]), reused_ND)
    assert vectors_in(storage)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_exception_commits_nothing_and_leaves_no_file(
    storage: Storage, facts_of: FactsOf, vectors_for: VectorsFor
) -> None:
    def interrupted() -> None:
        with MemoryWriter(storage, dim=4, part_rows=2) as writer:
            writer.append(facts_of(range(7)), vectors_for(range(7)))
            assert storage.list("vectors")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        interrupted()
    assert files_in(storage) == []


def test_an_exception_leaves_an_existing_memory_exactly_as_it_was(
    storage: Storage, write_memory: WriteMemory, facts_of: FactsOf, vectors_for: VectorsFor
) -> None:
    write_memory(storage, range(5))
    before = {path: storage.read_bytes(path) for path in files_in(storage)}

    def interrupted() -> None:
        with MemoryWriter(storage, dim=4, part_rows=2) as writer:
            writer.append(facts_of(range(5, 9)), vectors_for(range(5, 9)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path: storage.read_bytes(path) for path in files_in(storage)} == before


BAD_APPENDS = [
    (InvalidVectors, "expected finite float32 values, found nan in row 2, fact id 12", [10, 11, 12], (2, 1, np.nan)),
    (InvalidVectors, "expected finite float32 values, found inf in row 0, fact id 10", [10, 11, 12], (0, 3, np.inf)),
    (InvalidVectors, "found -inf in row 1, fact id 11", [10, 11, 12], (1, 0, -np.inf)),
    (InputError, "expected fact ids of at least 0, found -3 in row 1", [10, -3, -4], None),
    (DuplicateFact, "fact id 11 was appended more than once", [11, 10, 11], None),
    (DuplicateFact, "fact id 20 was appended more than once", [10, 20, 30], None),
    (DuplicateFact, "fact id 4 is in generation 1 already", [10, 4, 12], None),
    (InvalidVectors, r"expected one vector per fact \(2\), found 3", [10, 11], None),
]


@pytest.mark.parametrize(("kind", "message", "ids", "poke"), BAD_APPENDS)
def test_a_refused_append_names_the_first_bad_row_and_adds_nothing(
    storage: Storage,
    write_memory: WriteMemory,
    facts_of: FactsOf,
    vectors_for: VectorsFor,
    kind: type[Exception],
    message: str,
    ids: list[int],
    poke: tuple[int, int, float] | None,
) -> None:
    write_memory(storage, range(5))
    vectors_ND = vectors_for(range(3))
    if poke is not None:
        vectors_ND[poke[0], poke[1]] = poke[2]
    with MemoryWriter(storage, dim=4, part_rows=3) as writer:
        writer.append(facts_of([20, 21]), vectors_for([20, 21]))
        with pytest.raises(kind, match=message):
            writer.append(facts_of(ids), vectors_ND)
        writer.append(facts_of([22]), vectors_for([22]))
    assert ids_in(storage) == [0, 1, 2, 3, 4, 20, 21, 22]
    np.testing.assert_array_equal(vectors_in(storage), vectors_for([0, 1, 2, 3, 4, 20, 21, 22]))
    assert verify_memory(storage).ok


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (pa.table({"subject": ["x"]}), "expected a column fact_id, found subject"),
        (pa.table({}), "expected a column fact_id, found no columns"),
        (pa.table({"fact_id": pa.array([1], pa.int32())}), "expected fact_id as int64, found int32"),
        (pa.table({"fact_id": pa.array([1], pa.uint64())}), "expected fact_id as int64, found uint64"),
        (pa.table({"fact_id": pa.array([None], pa.int64())}), "expected a fact_id in every row, found null"),
        (pa.table({"fact_id": [1], "subjct": ["x"]}), "expected columns among fact_id, subject_id, .*, found fact_id"),
        (pa.table({"fact_id": [1], "aliases": ["x"]}), r"expected aliases as list<.*string>, found string"),
        ({"fact_id": [1]}, "expected facts as a pyarrow.Table, found dict"),
    ],
)
def test_facts_of_another_shape_are_refused(storage: Storage, facts: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught, MemoryWriter(storage, dim=1) as writer:
        writer.append(facts, np.zeros((1, 1), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vectors", "kind", "message"),
    [
        (np.zeros((1, 3), np.float32), DimensionMismatch, "expected vectors of dimension 4, found 3"),
        (np.zeros(4, np.float32), InvalidVectors, r"expected vectors of shape \[n, 4\], found \[4\]"),
        (np.zeros((1, 4), np.int64), InvalidVectors, "expected vectors of float32, found int64"),
        (np.zeros((1, 4), np.complex64), InvalidVectors, "expected vectors of float32, found complex64"),
        (np.full((1, 4), 1e300), InvalidVectors, "expected finite float32 values, found inf in row 0"),
    ],
)
def test_vectors_of_another_shape_or_type_are_refused(
    storage: Storage, vectors: NDArray[np.generic], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message), MemoryWriter(storage, dim=4) as writer:
        writer.append(pa.table({"fact_id": [1]}), vectors)


def test_a_vector_too_large_for_float16_is_refused_by_row(storage: Storage) -> None:
    with (
        pytest.raises(InvalidVectors, match="expected finite float16 values, found inf in row 1, fact id 9"),
        MemoryWriter(storage, dim=1, dtype="float16") as writer,
    ):
        writer.append(pa.table({"fact_id": [8, 9]}), np.array([[1.0], [70_000.0]]))


@pytest.mark.parametrize("value", [1e-45, 1e-30, 1e30, 3.4e38])
def test_the_largest_norm_is_right_where_float32_would_under_or_overflow(storage: Storage, value: float) -> None:
    vectors_ND = np.full((3, 64), value, dtype=np.float32)
    with MemoryWriter(storage, dim=64) as writer:
        writer.append(pa.table({"fact_id": [1, 2, 3]}), vectors_ND)
    expected = float(np.float64(np.float32(value)) * 8)
    assert read_manifest(storage).max_norm == pytest.approx(expected, rel=1e-14)


def test_what_cannot_be_committed_is_refused_before_any_work(storage: Storage, write_memory: WriteMemory) -> None:
    write_memory(storage, range(5))
    with pytest.raises(DimensionMismatch, match="expected vectors of dimension 4, which generation 1 holds, found 5"):
        MemoryWriter(storage, dim=5).__enter__()
    with pytest.raises(InvalidVectors, match="expected dtype float32, which the memory holds, found float16"):
        MemoryWriter(storage, dim=4, dtype="float16").__enter__()
    bare = ReplaceFacts(facts=read_manifest(storage).facts, grouping=None, features=None)
    commit(storage, apply_change(read_manifest(storage), bare, commit_id="c"), requires=ParentGeneration(1))
    with pytest.raises(NoVectors, match="run `hmn embed"):
        MemoryWriter(storage, dim=4).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": -1}, "dim"),
        ({"dim": 1.5}, "dim"),
        ({"dim": True}, "dim"),
        ({"dim": 1, "dtype": "float64"}, "expected dtype float32, float16 or bfloat16, found 'float64'"),
        ({"dim": 1, "part_rows": 0}, "part_rows"),
    ],
)
def test_options_out_of_range_are_wrong_usage(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryWriter(tmp_path, **options)  # type: ignore[arg-type]


def test_appending_outside_of_the_block_is_wrong_usage(storage: Storage, facts_of: FactsOf) -> None:
    writer = MemoryWriter(storage, dim=1)
    with pytest.raises(ConfigError, match="move it inside"):
        writer.append(facts_of([1]), [[1.0]])
    with writer:
        writer.append(facts_of([1]), [[1.0]])
    with pytest.raises(ConfigError, match="move it inside"):
        writer.append(facts_of([2]), [[1.0]])


def test_nothing_appended_is_an_error_for_a_new_memory_and_no_change_for_an_existing_one(
    storage: Storage, write_memory: WriteMemory, facts_of: FactsOf
) -> None:
    with (
        pytest.raises(EmptyInput, match=r"expected facts for the new memory .*, found none"),
        MemoryWriter(storage, dim=4),
    ):
        pass
    with pytest.raises(MemoryNotFound):
        read_manifest(storage)
    write_memory(storage, range(3))
    with MemoryWriter(storage, dim=4) as writer:
        writer.append(facts_of([]), np.empty((0, 4), np.float32))
    assert current_generation(storage) == 1


def test_of_two_writers_the_second_to_exit_conflicts_and_leaves_nothing_behind(
    storage: Storage, write_memory: WriteMemory, facts_of: FactsOf, vectors_for: VectorsFor
) -> None:
    write_memory(storage, range(3))
    slow = MemoryWriter(storage, dim=4)
    slow.__enter__()
    slow.append(facts_of([10]), vectors_for([10]))
    write_memory(storage, [11])
    files = files_in(storage)
    with pytest.raises(GenerationConflict, match="expected generation 1 to be the current state, found generation 2"):
        slow.__exit__(None, None, None)
    assert files_in(storage) == files
    assert ids_in(storage) == [0, 1, 2, 11]


class DiskWithRoomFor(Disk):
    """A disk that is full after so many bytes."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def sync(self, file: BinaryIO) -> None:
        self.room_bytes -= file.tell()
        if self.room_bytes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().sync(file)


@pytest.mark.parametrize("room_bytes", [0, 3_000, 8_000, 16_000])
def test_a_full_disk_is_one_helpful_line_and_leaves_the_memory_as_it_was(
    tmp_path: Path,
    write_memory: WriteMemory,
    facts_of: FactsOf,
    vectors_for: VectorsFor,
    room_bytes: int,
) -> None:
    storage = write_memory(Storage(tmp_path), range(5))
    before = files_in(storage)
    full = Storage(tmp_path, disk=DiskWithRoomFor(room_bytes))
    with (
        pytest.raises(StorageFailed, match="No space left on device; free some space and run again"),
        MemoryWriter(full, dim=4, part_rows=10) as writer,
    ):
        writer.append(facts_of(range(10, 110)), vectors_for(range(10, 110)))
    assert files_in(storage) == before
    assert not storage.temporaries("facts")
    assert not storage.temporaries("vectors")
    assert verify_memory(storage).ok


def test_a_really_full_filesystem_is_refused_the_same_way(
    tmp_path: Path, write_memory: WriteMemory, facts_of: FactsOf
) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs rights that this user does not have")
    try:
        storage = write_memory(Storage(tmp_path / "memory"), range(5))
        with (
            pytest.raises(StorageFailed, match="No space left on device; free some space"),
            MemoryWriter(storage, dim=4, part_rows=500) as writer,
        ):
            writer.append(facts_of(range(10, 40_010)), np.ones((40_000, 4), np.float32))
        assert verify_memory(storage).ok
        write_memory(storage, [7])
        assert ids_in(storage) == [0, 1, 2, 3, 4, 7]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_writer_holds_one_part_in_memory_however_much_is_appended(tmp_path: Path) -> None:
    script = """
import resource, sys
import numpy as np, pyarrow as pa
from memory_store.writer import MemoryWriter
with MemoryWriter(sys.argv[1], dim=512, part_rows=4096) as writer:
    for start in range(0, int(sys.argv[2]), 1000):
        if start == 10_000:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        writer.append(pa.table({"fact_id": np.arange(start, start + 1000)}), np.ones((1000, 512), np.float32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "memory"), "60000"], capture_output=True, text=True, check=True
    )
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit_bytes < 40 << 20  # 100 MB were written after the early reading
