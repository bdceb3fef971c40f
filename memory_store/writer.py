"""MemoryWriter: appends facts with their vectors and commits one generation on a clean exit."""

import os
from contextlib import suppress
from types import TracebackType
from typing import Self
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import (
    CommitUnknown,
    ConfigError,
    CorruptFile,
    DuplicateFact,
    EmptyInput,
    HmnError,
    InputError,
    InvalidVectors,
)
from memory_store.ids import IdSet
from memory_store.manifest import (
    AppendParts,
    Manifest,
    Part,
    apply_change,
    commit_beside_compactions,
    current_generation,
    read_manifest,
)
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, scan_facts, vectors_table, write_part
from memory_store.storage import Storage
from memory_store.vectors import DTYPES, StoredVectors, max_norm, stored_vectors

# N rows appended at once, D dimension

__all__ = ["PART_ROWS", "MemoryWriter", "as_facts", "check_fact_ids", "most_part_rows"]

PART_ROWS = 131_072
_PART_BYTES = 128 << 20  # of vectors, or of facts: what a writer holds at most before it writes a part


class MemoryWriter:
    """Adds facts with vectors to the memory at a URL, or makes one there.

        with MemoryWriter(url, dim=128) as writer:
            writer.append(facts, vectors)

    A clean exit commits one generation with everything appended; an exception commits nothing and deletes what was
    written. Memory stays bounded: parts are written while appending. Nothing appended: an existing memory stays as it
    is, a new one raises EmptyInput. The exit raises GenerationConflict if another writer committed since the entry
    anything but a compaction.

    url: a fsspec URL or path, or a Storage. dtype: "float32", "float16" or "bfloat16", how vectors are stored.
    part_rows: the most rows in a part file. note: kept in the generation's history.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Storage,
        *,
        dim: int,
        dtype: str = "float32",
        part_rows: int = PART_ROWS,
        note: str = "",
    ) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
            raise ConfigError(f"expected dim to be a whole number of at least 1, found {dim!r}")
        if dtype not in DTYPES:
            raise ConfigError(f"expected dtype float32, float16 or bfloat16, found {dtype!r}")
        if part_rows < 1:
            raise ConfigError(f"expected part_rows of at least 1, found {part_rows}")
        self._storage = url if isinstance(url, Storage) else Storage(url)
        self._dim = int(dim)
        self._dtype = dtype
        self._part_rows = most_part_rows(part_rows, self._dim, dtype)
        self._note = note
        self._open = False
        self._commit_id = uuid4().hex
        self._facts: list[Part] = []
        self._vectors: list[Part] = []
        self._max_norm = 0.0
        self._ids = IdSet()
        self._existing: IdSet | None = None  # read when something is appended, which may never happen
        self._pending_facts: list[pa.Table] = []
        self._pending_ND: StoredVectors | None = None
        self._pending_rows = 0
        self.manifest: Manifest | None = None  # the current generation; the new one after a clean exit

    @property
    def rows(self) -> int:
        """Rows appended so far."""
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"MemoryWriter({self._storage.shown!r}, dim={self._dim}, dtype={self._dtype!r}, rows={self.rows:,}, "
            f"{'open' if self._open else 'closed'})"
        )

    def __enter__(self) -> Self:
        if current_generation(self._storage) is not None:
            self.manifest = read_manifest(self._storage)
            # Whatever would make the commit impossible is said before any work is done.
            probe = AppendParts(facts=(), vectors=(), dim=self._dim, dtype=self._dtype, max_norm=0.0)
            apply_change(self.manifest, probe, commit_id=self._commit_id)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        if error is not None:
            self._delete_parts()
            return
        try:
            self._commit()
        except CommitUnknown:
            raise  # the generation may be there, and then it needs its parts
        except Exception:
            self._delete_parts()
            raise

    def append(self, facts: pa.Table, vectors: ArrayLike) -> None:
        """Add facts [n] with their vectors [n, dim]; on an error nothing of this call is added.

        facts: a table with the column fact_id (int64, at least 0, unique in the memory); the other columns of
        FACTS_SCHEMA are optional. vectors: float16, float32 or float64, finite. Raises InputError, DimensionMismatch,
        InvalidVectors, DuplicateFact, StorageFailed.
        """
        if not self._open:
            raise ConfigError("append outside of `with MemoryWriter(...) as writer:`; move it inside")
        vectors_ND = stored_vectors(vectors, self._dim, self._dtype)
        table = as_facts(facts)
        if table.num_rows != len(vectors_ND):
            raise InvalidVectors(f"expected one vector per fact ({table.num_rows:,}), found {len(vectors_ND):,}")
        fact_ids_N = fact_ids_of(table)
        check_fact_ids(fact_ids_N)
        norm = max_norm(vectors_ND, fact_ids_N)
        self._claim(fact_ids_N)
        self._max_norm = max(self._max_norm, norm)
        self._buffer(table, vectors_ND)

    def _claim(self, fact_ids_N: NDArray[np.int64]) -> None:
        known = self._existing_ids().first_known(fact_ids_N)
        if known is not None:
            assert self.manifest
            raise DuplicateFact(
                f"fact id {known} is in generation {self.manifest.generation} already; leave the fact out"
            )
        known = self._ids.add(fact_ids_N)
        if known is not None:
            raise DuplicateFact(f"fact id {known} was appended more than once; give every fact its own id")

    def _existing_ids(self) -> IdSet:
        if self._existing is None:
            existing = IdSet()
            for table in scan_facts(self._storage, self.manifest, ["fact_id"]) if self.manifest else ():
                known = existing.add(fact_ids_of(table))
                if known is not None:
                    raise CorruptFile(f"{self._storage.shown}: fact id {known} is held twice; run `hmn verify`")
            self._existing = existing
        return self._existing

    def _buffer(self, table: pa.Table, vectors_ND: StoredVectors) -> None:
        start = 0
        while start < table.num_rows:
            take = min(self._part_rows - self._pending_rows, table.num_rows - start)
            facts, rows_ND = table.slice(start, take), vectors_ND[start : start + take]
            start += take
            if take == self._part_rows:
                self._write_part(facts, rows_ND)  # a whole part needs no copy
                continue
            if self._pending_ND is None:
                self._pending_ND = np.empty((self._part_rows, self._dim), dtype=DTYPES[self._dtype])
            # Copied, because the caller may reuse the array for the next batch.
            self._pending_ND[self._pending_rows : self._pending_rows + take] = rows_ND
            self._pending_facts.append(facts)
            self._pending_rows += take
            if self._pending_rows == self._part_rows or self._pending_bytes() > _PART_BYTES:
                self._flush()

    def _pending_bytes(self) -> int:
        return sum(table.nbytes for table in self._pending_facts)

    def _flush(self) -> None:
        if self._pending_rows:
            assert self._pending_ND is not None
            self._write_part(pa.concat_tables(self._pending_facts), self._pending_ND[: self._pending_rows])
            self._pending_facts, self._pending_rows = [], 0

    def _write_part(self, facts: pa.Table, vectors_ND: StoredVectors) -> None:
        name = f"{self._commit_id}-{len(self._facts):05d}.arrow"
        self._facts.append(write_part(self._storage, f"facts/{name}", facts))
        vectors = vectors_table(fact_ids_of(facts), vectors_ND)
        self._vectors.append(write_part(self._storage, f"vectors/{name}", vectors))

    def _commit(self) -> None:
        self._flush()
        if not self._facts:
            if self.manifest is None:
                raise EmptyInput(f"expected facts for the new memory {self._storage.shown}, found none; append some")
            return
        change = AppendParts(
            facts=tuple(self._facts),
            vectors=tuple(self._vectors),
            dim=self._dim,
            dtype=self._dtype,
            max_norm=self._max_norm,
        )
        self.manifest = commit_beside_compactions(
            self._storage,
            self.manifest,
            lambda parent: apply_change(parent, change, commit_id=self._commit_id, note=self._note),
        )

    def _delete_parts(self) -> None:
        for number in range(len(self._facts) + 1):  # one more: the part that was being written
            for folder in ("facts", "vectors"):
                with suppress(HmnError):  # what stays is harmless, and sweep deletes it later
                    self._storage.delete(f"{folder}/{self._commit_id}-{number:05d}.arrow")


def most_part_rows(part_rows: int | None, dim: int, dtype: str | None) -> int:
    """Rows of a part at most: as asked, PART_ROWS by default, and no more bytes of vectors than a part may have."""
    bytes_per_row = dim * DTYPES[dtype].itemsize if dtype else 1
    return max(1, min(part_rows or PART_ROWS, _PART_BYTES // bytes_per_row))


def as_facts(facts: pa.Table) -> pa.Table:
    """The table with exactly the columns of FACTS_SCHEMA; those not given are null."""
    if isinstance(facts, pa.RecordBatch):
        facts = pa.Table.from_batches([facts])
    if not isinstance(facts, pa.Table):
        raise InputError(f"expected facts as a pyarrow.Table, found {type(facts).__name__}")
    names = facts.schema.names
    if "fact_id" not in names:
        raise InputError(f"expected a column fact_id, found {', '.join(names) or 'no columns'}")
    unknown = [name for name in names if name not in FACTS_SCHEMA.names]
    if unknown or len(set(names)) != len(names):
        raise InputError(f"expected columns among {', '.join(FACTS_SCHEMA.names)}, found {', '.join(names)}")
    if facts.schema.field("fact_id").type != pa.int64():
        raise InputError(f"expected fact_id as int64, found {facts.schema.field('fact_id').type}; cast it")
    if facts.column("fact_id").null_count:
        raise InputError("expected a fact_id in every row, found null; drop those rows")
    return pa.table([_column(facts, field) for field in FACTS_SCHEMA], schema=FACTS_SCHEMA)


def _column(facts: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in facts.schema.names:
        return _nulls(facts.num_rows, field.type)
    try:
        return facts.column(field.name).cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        found = facts.schema.field(field.name).type
        raise InputError(f"expected {field.name} as {field.type}, found {found}; convert it") from None


def _nulls(rows: int, kind: pa.DataType) -> pa.Array:
    # pa.nulls gives lists a child as long as the column, and every slice of it is written with the whole child
    return pa.nulls(1, kind).take(pa.array(np.zeros(rows, dtype=np.int64)))


def check_fact_ids(fact_ids_N: NDArray[np.int64]) -> None:
    """InputError for a negative id, which would be taken for a gap in an answer."""
    if len(fact_ids_N) and int(fact_ids_N.min()) < 0:
        row = int(np.argmax(fact_ids_N < 0))
        raise InputError(f"expected fact ids of at least 0, found {fact_ids_N[row]} in row {row}")
