"""Part files: Arrow IPC, written atomically with their checksum, verified and mapped without copying."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, NoVectors
from memory_store.manifest_format import Manifest, Part
from memory_store.storage import Storage
from memory_store.vectors import DTYPES, StoredVectors, dtype_name

# N rows, D dimension

__all__ = [
    "FACTS_SCHEMA",
    "TOMBSTONES_SCHEMA",
    "Tombstones",
    "dead_of",
    "dead_rows",
    "drop_damaged_copy",
    "fact_ids_of",
    "is_part",
    "live_rows",
    "numbers",
    "open_part",
    "open_stored_part",
    "read_tombstones",
    "scan_facts",
    "scan_vectors",
    "sorted_union",
    "take_rows",
    "vectors_of",
    "vectors_schema",
    "vectors_table",
    "write_part",
]

FACTS_SCHEMA = pa.schema(
    [
        pa.field("fact_id", pa.int64(), nullable=False),
        pa.field("subject_id", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("aliases", pa.list_(pa.string())),
        pa.field("relation", pa.string()),
        pa.field("object_ids", pa.list_(pa.string())),
        pa.field("objects", pa.list_(pa.string())),
        pa.field(
            "features",
            pa.struct(
                [
                    pa.field(
                        "subject", pa.list_(pa.list_(pa.uint32()))
                    ),  # one list per name: the subject, then aliases
                    pa.field("relation", pa.list_(pa.uint32())),
                ]
            ),
        ),
    ]
)

TOMBSTONES_SCHEMA = pa.schema(
    [
        pa.field("fact_id", pa.int64(), nullable=False),
        pa.field("part", pa.dictionary(pa.int32(), pa.string()), nullable=False),  # path of a facts part
        pa.field("row", pa.int64(), nullable=False),  # in that part, and in the vectors part beside it
    ]
)
"""Rows that are deleted, or overwritten by a row of a later part."""

Tombstones = Mapping[str, NDArray[np.int64]]
"""Rows that one tombstones part names, sorted, by the path of their facts part."""

_ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register
_GATHERED_BYTES = 1 << 16
_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}  # Arrow has no bfloat16
_DTYPE_NAMES = {kind: name for name, kind in _ARROW_TYPES.items()}
_RESTORE = "restore the file from a copy, or build the memory again"


def vectors_schema(dim: int, dtype: str) -> pa.Schema:
    """fact_id int64, vector fixed_size_list<dtype, dim>; no nulls in either. bfloat16 is kept as its bits: uint16."""
    return pa.schema(
        [
            pa.field("fact_id", pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", _ARROW_TYPES[dtype], nullable=False), dim), nullable=False),
        ]
    )


def vectors_table(fact_ids_N: NDArray[np.int64], vectors_ND: StoredVectors) -> pa.Table:
    """A table of vectors_schema around the arrays; nothing is copied when they are C-contiguous."""
    schema = vectors_schema(vectors_ND.shape[1], dtype_name(vectors_ND))
    values = pa.array(vectors_ND.reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(values, type=schema.field("vector").type)
    return pa.Table.from_arrays([pa.array(fact_ids_N, type=pa.int64()), vector], schema=schema)


def write_part(storage: Storage, path: str, table: pa.Table) -> Part:
    """Write a table of at least one row as one record batch, atomically, and return its manifest entry.

    path: facts/<name>.arrow (the table is cast to FACTS_SCHEMA), vectors/<name>.arrow (a table of vectors_schema), or
    tombstones/<name>.arrow (TOMBSTONES_SCHEMA).
    The vector column starts at a multiple of 64 bytes, so that its mapping does too.
    """
    assert table.num_rows, "a part holds at least one row"
    table = _compact(table, path)
    schema = _aligned_schema(table)
    batches = table.replace_schema_metadata(schema.metadata).to_batches()
    sink_bytes = 0
    digest = xxhash.xxh3_128()

    def fill(file: BinaryIO) -> None:
        nonlocal sink_bytes
        sink = _HashingSink(file, digest.update)
        # Arrow writes headers and padding a few bytes at a time; gathered, they cost one call of ours
        gathered = pa.BufferedOutputStream(pa.PythonFile(sink, mode="w"), _GATHERED_BYTES)
        with gathered, pa.ipc.new_file(gathered, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        sink_bytes = sink.written_bytes

    storage.write_atomic(path, fill)
    return Part(path=path, rows=table.num_rows, bytes=sink_bytes, checksum=f"xxh3-128:{digest.hexdigest()}")


def open_part(storage: Storage, part: Part, schema: pa.Schema | None = None) -> pa.Table:
    """Verify a part's size and checksum over its mapping, and return it as a table that maps the file.

    schema: what the part must hold; when None, by its folder, FACTS_SCHEMA, TOMBSTONES_SCHEMA or any vectors_schema. A
    part that is missing, truncated, altered, or of another format raises CorruptFile.
    """
    try:
        return _open_verified(storage, part, schema, storage.open_input)
    except CorruptFile:
        if not drop_damaged_copy(storage, part):
            raise
        return _open_verified(storage, part, schema, storage.open_input)


def open_stored_part(storage: Storage, part: Part, schema: pa.Schema) -> pa.Table:
    """The same of what the storage holds, whatever the local cache of a remote memory holds of it."""
    return _open_verified(storage, part, schema, storage.open_stored)


def drop_damaged_copy(storage: Storage, part: Part) -> bool:
    """Drop what the local cache of a remote memory holds of a part if it is damaged; whether it was.

    A sound one stays, for it may be all that is left of the part.
    """
    cached = storage.cached_bytes(part.path)
    if cached is None or is_part(part, cached):
        return False
    storage.forget(part.path)
    return True


def is_part(part: Part, data: bytes) -> bool:
    """Whether these are the bytes that the manifest names."""
    return len(data) == part.bytes and part.checksum == f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def take_rows(table: pa.Table, row_F: NDArray[np.int64]) -> pa.Table:
    """Rows [F] of a table, in the order asked, as one chunk. Costs what the rows cost, however large the table is.

    pyarrow's own `take` of a column of lists in several chunks copies the whole column first.
    """
    order_F = np.argsort(row_F, kind="stable")
    sorted_F = row_F[order_F]
    batches = table.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    bounds = np.searchsorted(sorted_F, starts)
    pieces = [
        batch.take(pa.array(sorted_F[first:stop] - start))
        for batch, start, (first, stop) in zip(batches, starts[:-1], pairwise(bounds), strict=True)
        if first < stop
    ]
    taken = pa.Table.from_batches(pieces, table.schema).combine_chunks()
    if np.array_equal(sorted_F, row_F):
        return taken
    return taken.take(pa.array(np.argsort(order_F)))


def vectors_of(table: pa.Table) -> StoredVectors:
    """The vectors [N, D] of an opened part, as stored, read-only; a view of the mapping, not a copy.

    Parts of several record batches, which we do not write, are copied together.
    """
    chunks = [chunk for chunk in table.column("vector").chunks if len(chunk)]
    dim = table.schema.field("vector").type.list_size
    views = [np.from_dlpack(chunk.flatten()).reshape(-1, dim) for chunk in chunks]
    if len(views) == 1:
        return cast(StoredVectors, views[0])
    dtype = DTYPES[_DTYPE_NAMES[table.schema.field("vector").type.value_type]]
    joined = np.concatenate(views) if views else np.empty((0, dim), dtype=dtype)
    joined.flags.writeable = False
    return joined


def fact_ids_of(table: pa.Table) -> NDArray[np.int64]:
    """The fact ids [N] of an opened part, int64, read-only; a view when the part has one record batch."""
    return numbers(table.column("fact_id"))


def numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers without nulls, not to be written to; a view where it lies in one piece.

    By DLPack: Arrow's own conversion first imports pandas, which takes a third of a second of every shard's start.
    """
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array_N: NDArray[Any] = np.from_dlpack(whole)
    return array_N


def read_tombstones(storage: Storage, part: Part) -> Tombstones:
    """What a tombstones part names."""
    table = open_part(storage, part, TOMBSTONES_SCHEMA)
    named, row_N = table.column("part").combine_chunks(), numbers(table.column("row"))
    code_N = numbers(named.indices)
    found = ((path, np.sort(row_N[code_N == code])) for code, path in enumerate(named.dictionary.to_pylist()))
    return {path: of_part_N for path, of_part_N in found if len(of_part_N)}


def dead_rows(storage: Storage, facts: Sequence[Part], tombstones: Sequence[Part]) -> Mapping[str, NDArray[np.int64]]:
    """The rows of these facts parts that are deleted or overwritten, sorted, by path; parts without any are absent.

    CorruptFile for a tombstone of a row that the part does not have.
    """
    return dead_of(storage, facts, {part: read_tombstones(storage, part) for part in tombstones})


def dead_of(
    storage: Storage, facts: Sequence[Part], tombstones: Mapping[Part, Tombstones]
) -> Mapping[str, NDArray[np.int64]]:
    """The same from what was read of the tombstones parts."""
    rows_in = {part.path: part.rows for part in facts}
    found: dict[str, list[NDArray[np.int64]]] = {}
    for part, named in tombstones.items():
        for path, of_part_N in named.items():
            if path not in rows_in:
                continue
            if of_part_N[0] < 0 or of_part_N[-1] >= rows_in[path]:
                raise CorruptFile(
                    f"{storage.where(part.path)}: expected rows of {path}, which has {rows_in[path]:,}, found "
                    f"{of_part_N[0]} to {of_part_N[-1]}; {_RESTORE}"
                )
            found.setdefault(path, []).append(of_part_N)
    return {path: sorted_union(rows) for path, rows in found.items()}


def sorted_union(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The values of sorted arrays, each once, sorted: np.union1d and np.unique hash, which takes far longer."""
    sorted_N = np.sort(np.concatenate(arrays), kind="stable")  # which merges what is sorted already
    kept_N = np.ones(len(sorted_N), dtype=np.bool_)
    np.not_equal(sorted_N[1:], sorted_N[:-1], out=kept_N[1:])
    return sorted_N[kept_N]


def live_rows(rows: int, dead_N: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The numbers of the rows that are not dead, int64, sorted."""
    live_N = np.ones(rows, dtype=np.bool_)
    if dead_N is not None:
        live_N[dead_N] = False
    return np.flatnonzero(live_N)


def scan_facts(storage: Storage, manifest: Manifest, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The facts of every part in order, verified; columns None means all. Mapped, but copied where rows are dead."""
    dead = dead_rows(storage, manifest.facts, manifest.tombstones)
    for part in manifest.facts:
        table = open_part(storage, part, FACTS_SCHEMA)
        yield _live(table if columns is None else table.select(list(columns)), dead.get(part.path))


def scan_vectors(storage: Storage, manifest: Manifest) -> Iterator[pa.Table]:
    """The vectors of the same rows as scan_facts, part by part; NoVectors if the facts are not embedded."""
    if manifest.dtype is None:
        raise NoVectors(
            f"generation {manifest.generation} of {storage.shown} has no vectors yet; run `hmn embed --memory URL`"
        )
    schema = vectors_schema(manifest.dim, manifest.dtype)
    dead = dead_rows(storage, manifest.facts, manifest.tombstones)
    for facts, part in zip(manifest.facts, manifest.vectors, strict=True):
        yield _live(open_part(storage, part, schema), dead.get(facts.path))


def _live(table: pa.Table, dead_N: NDArray[np.int64] | None) -> pa.Table:
    return table if dead_N is None else table.take(pa.array(live_rows(table.num_rows, dead_N)))


class _HashingSink:
    """A file that hashes and counts what passes through."""

    closed = False

    def __init__(self, file: BinaryIO, update: Callable[[memoryview], None]) -> None:
        self._file = file
        self._update = update
        self.written_bytes = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        self._update(view)
        self._file.write(view)
        self.written_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """The file is its owner's to close."""


def _compact(table: pa.Table, path: str) -> pa.Table:
    """One record batch whose buffers hold its rows and nothing else, so that equal tables make equal files.

    Arrow writes the buffers of a slice with up to 63 bytes of the neighbouring rows.
    """
    if path.startswith("vectors/"):
        return vectors_table(fact_ids_of(table), vectors_of(table))
    table = table.cast(FACTS_SCHEMA if path.startswith("facts/") else TOMBSTONES_SCHEMA)
    return pa.concat_tables([table, table.slice(0, 0)]).combine_chunks()  # two chunks, because one would not be copied


def _aligned_schema(table: pa.Table) -> pa.Schema:
    """The schema with as much padding in its metadata as puts the vectors on a cache line.

    Arrow aligns buffers in a file to 8 bytes only; the file's header is the one place that may grow.
    """
    if "vector" not in table.schema.names:
        return table.schema
    first_row = table.take(pa.array([0]))
    other_rows_bytes = (table.num_rows - 1) * table.schema.field("fact_id").type.bit_width // 8
    missing = -(_vectors_offset(first_row) + other_rows_bytes) % _ALIGNMENT_BYTES
    for pad in range(missing, missing + _ALIGNMENT_BYTES, 4):  # the header grows in steps, so the first may not fit
        metadata = {"pad": "." * pad}
        offset = _vectors_offset(first_row.replace_schema_metadata(metadata)) + other_rows_bytes
        if offset % _ALIGNMENT_BYTES == 0:
            return table.schema.with_metadata(metadata)
    raise AssertionError("every multiple of 8 bytes was tried")


def _vectors_offset(row: pa.Table) -> int:
    """Where in a file of this one row its vector starts."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_file(sink, row.schema) as writer:
            writer.write_table(row)
        file = sink.getvalue()
    vector = pa.ipc.open_file(file).read_all().column("vector").chunk(0)
    return int(vector.values.buffers()[1].address - file.address)


def _open_verified(
    storage: Storage, part: Part, schema: pa.Schema | None, open_file: Callable[[str], pa.NativeFile]
) -> pa.Table:
    where = storage.where(part.path)
    try:
        found_bytes = storage.size(part.path)
        if found_bytes != part.bytes:
            raise CorruptFile(f"{where}: expected {part.bytes:,} bytes, found {found_bytes:,}; {_RESTORE}")
        mapped = open_file(part.path).read_buffer()
    except FileNotFoundError:
        raise CorruptFile(f"{where}: expected {part.bytes:,} bytes, found no file; {_RESTORE}") from None
    digest = f"xxh3-128:{xxhash.xxh3_128_hexdigest(mapped)}"
    if digest != part.checksum:
        raise CorruptFile(f"{where}: expected checksum {part.checksum}, found {digest}; {_RESTORE}")
    try:
        table = pa.ipc.open_file(mapped).read_all()
        table.validate()
    except (pa.ArrowException, OSError) as error:
        raise CorruptFile(f"{where}: expected an Arrow IPC file, found {_first_line(error)}; {_RESTORE}") from None
    _check_schema(where, part, table, schema)
    return table


def _check_schema(where: str, part: Part, table: pa.Table, schema: pa.Schema | None) -> None:
    if schema is None:
        of_folder = {"facts": FACTS_SCHEMA, "tombstones": TOMBSTONES_SCHEMA}
        schema = of_folder.get(part.path.partition("/")[0]) or _any_vectors_schema(table.schema)
    if not table.schema.equals(schema):
        raise CorruptFile(
            f"{where}: expected the columns {_columns(schema)}, found {_columns(table.schema)}; {_RESTORE}"
        )
    if table.num_rows != part.rows:
        raise CorruptFile(f"{where}: expected {part.rows:,} rows, found {table.num_rows:,}; {_RESTORE}")
    for name in ("fact_id", "vector"):
        if name in table.schema.names and table.column(name).null_count:
            raise CorruptFile(
                f"{where}: expected no nulls in {name}, found {table.column(name).null_count}; {_RESTORE}"
            )


def _any_vectors_schema(found: pa.Schema) -> pa.Schema:
    kind = found.field("vector").type if "vector" in found.names else None
    if kind is not None and pa.types.is_fixed_size_list(kind) and kind.value_type in _DTYPE_NAMES:
        return vectors_schema(kind.list_size, _DTYPE_NAMES[kind.value_type])
    return vectors_schema(1, "float32")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
