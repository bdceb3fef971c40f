"""Part files: mapped without copying, aligned, verified, and refused when they are not what the manifest says."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, NoVectors
from memory_store.manifest import Part, read_manifest
from memory_store.parts import (
    FACTS_SCHEMA,
    fact_ids_of,
    open_part,
    scan_facts,
    scan_vectors,
    take_rows,
    vectors_of,
    vectors_schema,
    vectors_table,
    write_part,
)
from memory_store.storage import Storage

FULL_FACTS = pa.table(
    {
        "fact_id": [3, 5],
        "subject_id": ["m.1", None],
        "subject": ["Zürich", "東京"],
        "aliases": [["Turicum", "Züri"], []],
        "relation": ["place/country", None],
        "object_ids": [["m.2"], None],
        "objects": [["Switzerland"], [None]],
        "features": [{"subject": [[1, 2], [4294967295]], "relation": [7]}, None],
    },
    schema=FACTS_SCHEMA,
)


@pytest.fixture
def vectors_part(storage: Storage) -> Part:
    table = vectors_table(np.arange(5), np.arange(15, dtype=np.float32).reshape(5, 3))
    return write_part(storage, "vectors/a.arrow", table)


def replace_file(storage: Storage, part: Part, table: pa.Table) -> Part:
    """A file of another content under the part's name, and the manifest entry that a liar would write for it."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
    storage.write_atomic(part.path, data)
    checksum = f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"
    return dataclasses.replace(part, bytes=len(data), checksum=checksum, rows=table.num_rows)


@pytest.mark.parametrize("rows", [[], [0], [3, 3, 0], [5, 4, 3, 2, 1, 0], [1, 2, 4]])
def test_rows_of_many_chunks_come_in_the_order_asked(rows: list[int]) -> None:
    chunked = pa.concat_tables(
        [FULL_FACTS, FULL_FACTS.slice(1), FULL_FACTS.slice(0, 0), FULL_FACTS, FULL_FACTS.slice(0, 1)]
    )
    taken = take_rows(chunked, np.array(rows, dtype=np.int64))
    assert taken.to_pylist() == [chunked.to_pylist()[row] for row in rows]
    assert taken.schema.equals(FACTS_SCHEMA)
    assert all(column.num_chunks <= 1 for column in taken.columns)


def test_facts_with_every_column_round_trip(storage: Storage) -> None:
    part = write_part(storage, "facts/a.arrow", FULL_FACTS)
    assert (part.path, part.rows, part.bytes) == ("facts/a.arrow", 2, storage.size("facts/a.arrow"))
    assert open_part(storage, part).equals(FULL_FACTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("dim", [1, 3, 64, 128, 257])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 1000])
def test_vectors_are_a_read_only_view_of_the_mapping_on_a_cache_line(
    tmp_path: Path, rng: np.random.Generator, rows: int, dim: int, dtype: type
) -> None:
    storage = Storage(tmp_path)
    vectors_ND = (100 * rng.random((rows, dim))).astype(dtype)  # uint16: the bits of bfloat16
    part = write_part(storage, "vectors/a.arrow", vectors_table(rng.permutation(rows), vectors_ND))
    allocated = pa.total_allocated_bytes()
    table = open_part(storage, part)
    found_ND = vectors_of(table)
    assert pa.total_allocated_bytes() == allocated  # mapped, not read
    assert found_ND.dtype == dtype
    np.testing.assert_array_equal(found_ND, vectors_ND)
    assert found_ND.ctypes.data % 64 == 0
    assert found_ND.flags.c_contiguous
    assert not found_ND.flags.writeable
    assert not found_ND.flags.owndata


def test_a_slice_of_a_part_is_still_a_view(storage: Storage, vectors_part: Part) -> None:
    table = open_part(storage, vectors_part)
    whole_ND, slice_ND = vectors_of(table), vectors_of(table.slice(2, 2))
    np.testing.assert_array_equal(slice_ND, whole_ND[2:4])
    assert np.shares_memory(slice_ND, whole_ND)
    assert fact_ids_of(table.slice(2, 2)).tolist() == [2, 3]
    assert vectors_of(table.slice(0, 0)).shape == (0, 3)


def test_a_part_of_several_record_batches_is_read_in_order(storage: Storage, vectors_part: Part) -> None:
    table = open_part(storage, vectors_part)
    batches = pa.Table.from_batches([*table.slice(0, 2).to_batches(), *table.slice(2).to_batches()])
    several = replace_file(storage, vectors_part, batches)
    np.testing.assert_array_equal(vectors_of(open_part(storage, several)), vectors_of(table))
    assert not vectors_of(open_part(storage, several)).flags.writeable
    assert fact_ids_of(open_part(storage, several)).tolist() == list(range(5))


def test_a_part_is_written_as_one_record_batch_from_any_chunks(storage: Storage) -> None:
    chunked = pa.concat_tables([FULL_FACTS, FULL_FACTS.slice(1)])
    part = write_part(storage, "facts/a.arrow", chunked)
    assert len(open_part(storage, part).to_batches()) == 1
    assert open_part(storage, part).equals(chunked.combine_chunks())


def test_equal_tables_make_equal_files(storage: Storage) -> None:
    first = write_part(storage, "facts/a.arrow", FULL_FACTS)
    second = write_part(storage, "facts/b.arrow", FULL_FACTS.replace_schema_metadata({"made": "elsewhere"}))
    third = write_part(storage, "facts/c.arrow", pa.concat_tables([FULL_FACTS] * 40).slice(14, 2))
    assert first.checksum == second.checksum == third.checksum
    vectors = vectors_table(np.arange(100), np.arange(300, dtype=np.float32).reshape(100, 3))
    copied = vectors_table(np.arange(3, 6), np.arange(9, 18, dtype=np.float32).reshape(3, 3))
    sliced = write_part(storage, "vectors/d.arrow", vectors.slice(3, 3))
    assert sliced.checksum == write_part(storage, "vectors/e.arrow", copied).checksum


def test_every_truncation_is_refused_with_the_bytes_expected_and_found(storage: Storage, vectors_part: Part) -> None:
    data = storage.read_bytes(vectors_part.path)
    for length in range(0, len(data), 13):
        storage.write_atomic(vectors_part.path, data[:length])
        with pytest.raises(CorruptFile, match=rf"a.arrow: expected {len(data):,} bytes, found {length:,}; restore"):
            open_part(storage, vectors_part)


def test_every_flipped_byte_is_refused_with_both_checksums(storage: Storage, vectors_part: Part) -> None:
    data = storage.read_bytes(vectors_part.path)
    for position in range(0, len(data), 7):
        storage.write_atomic(vectors_part.path, data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(CorruptFile, match=r"a.arrow: expected checksum xxh3-128:.*, found xxh3-128:.*; restore"):
            open_part(storage, vectors_part)


def test_a_missing_part_is_refused_by_name(storage: Storage, vectors_part: Part) -> None:
    storage.delete(vectors_part.path)
    with pytest.raises(CorruptFile, match=r"vectors/a.arrow: expected 994 bytes, found no file; restore"):
        open_part(storage, vectors_part)


def test_a_file_that_is_not_arrow_is_refused(storage: Storage) -> None:
    storage.write_atomic("facts/a.arrow", b"PAR1 not arrow at all")
    checksum = f"xxh3-128:{xxhash.xxh3_128_hexdigest(b'PAR1 not arrow at all')}"
    part = Part(path="facts/a.arrow", rows=1, bytes=21, checksum=checksum)
    with pytest.raises(CorruptFile, match=r"expected an Arrow IPC file, found .*; restore"):
        open_part(storage, part)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"x": [1.0]}), r"expected the columns fact_id: int64, .*, found x: double"),
        (vectors_table(np.arange(5), np.zeros((5, 3), np.float32)).select(["vector"]), "expected the columns fact_id"),
        (pa.table({"fact_id": [1], "vector": [[1.0, 2.0]]}), "found fact_id: int64, vector: list<"),
        (
            pa.table({"fact_id": pa.array([1], pa.int64()), "vector": pa.array([[1.0]], pa.list_(pa.float64(), 1))}),
            r"expected the columns .*, found .*vector: fixed_size_list<",
        ),
        (FULL_FACTS, "expected the columns fact_id: int64, vector"),
    ],
)
def test_a_part_of_another_schema_is_refused_with_both(
    storage: Storage, vectors_part: Part, table: pa.Table, message: str
) -> None:
    with pytest.raises(CorruptFile, match=message):
        open_part(storage, replace_file(storage, vectors_part, table))


def test_vectors_of_another_dimension_than_the_manifest_says_are_refused(storage: Storage, vectors_part: Part) -> None:
    assert open_part(storage, vectors_part, vectors_schema(3, "float32")).num_rows == 5
    for other in (vectors_schema(4, "float32"), vectors_schema(3, "float16"), FACTS_SCHEMA):
        with pytest.raises(CorruptFile, match="expected the columns"):
            open_part(storage, vectors_part, other)


def test_another_number_of_rows_and_nulls_are_refused(storage: Storage, vectors_part: Part) -> None:
    with pytest.raises(CorruptFile, match="expected 6 rows, found 5"):
        open_part(storage, dataclasses.replace(vectors_part, rows=6))
    schema = vectors_schema(3, "float32")
    nothing = pa.Table.from_arrays([pa.nulls(2, pa.int64()), pa.nulls(2, schema.field("vector").type)], schema=schema)
    with pytest.raises(CorruptFile, match="expected no nulls in fact_id, found 2"):
        open_part(storage, replace_file(storage, vectors_part, nothing))


class StaleStorage(Storage):
    """A remote storage whose cached copy of every part is broken until it is forgotten."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.forgotten: list[str] = []

    def open_input(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self.cached_bytes(path))

    def cached_bytes(self, path: str) -> bytes:
        data = self.read_bytes(path)
        return data if self.forgotten else bytes(len(data))

    def forget(self, path: str) -> None:
        self.forgotten.append(path)


def test_a_broken_cached_copy_is_fetched_again(memory_url: str, vectors_part: Part) -> None:
    storage = StaleStorage(memory_url)
    assert open_part(storage, vectors_part).num_rows == 5
    assert storage.forgotten == [vectors_part.path]


def test_scans_give_parts_in_order_and_only_the_columns_asked_for(
    storage: Storage,
    write_memory: Callable[..., Storage],
    vectors_for: Callable[..., NDArray[np.float32]],
) -> None:
    write_memory(storage, range(10), part_rows=4)
    manifest = read_manifest(storage)
    facts = list(scan_facts(storage, manifest, ["fact_id"]))
    assert [table.num_rows for table in facts] == [4, 4, 2]
    assert facts[0].column_names == ["fact_id"]
    assert np.concatenate([fact_ids_of(table) for table in facts]).tolist() == list(range(10))
    assert next(scan_facts(storage, manifest)).schema.equals(FACTS_SCHEMA)
    vectors_ND = np.concatenate([vectors_of(table) for table in scan_vectors(storage, manifest)])
    np.testing.assert_array_equal(vectors_ND, vectors_for(range(10)))
    with pytest.raises(NoVectors, match=r"generation 1 of .* has no vectors yet; run `hmn embed"):
        next(scan_vectors(storage, dataclasses.replace(manifest, dim=0, dtype=None, vectors=())))
