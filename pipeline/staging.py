"""The steps of an ingest as plain functions over files: stage a piece, look up object names, reduce a bucket to a part.

Every step writes under names that depend only on the ingest and the step, and ends with a receipt; a step whose receipt
is there is done. So a step may run twice, anywhere, and an ingest that was killed goes on where it stopped.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.manifest import Part, current_generation
from memory_store.parts import write_part
from memory_store.receipts import part_of, read_receipt
from memory_store.storage import Storage
from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA, hash_texts
from pipeline.group import group_facts
from pipeline.sources.pieces import Piece
from pipeline.sources.rows import Parsed

# N rows of a segment, P buckets

__all__ = [
    "STAGING",
    "BucketFiles",
    "Job",
    "Reduced",
    "Staged",
    "bucket_of",
    "look_up_names",
    "reduce_bucket",
    "rejected_rows",
    "remove_staging",
    "stage_piece",
]

STAGING = "staging"
"""The folder of a memory in which ingests work; named <parent generation, 8 digits>-<ingest id> below."""

_MOST_MAPPED = 16_384  # files: a process may have 65,530 mappings on Linux
_REQUESTS_SCHEMA = pa.schema([("entity_id", pa.string()), ("bucket", pa.int32())])
_SCHEMAS = {"triples": TRIPLES_SCHEMA, "names": NAMES_SCHEMA, "requests": _REQUESTS_SCHEMA}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every step of one ingest knows. folder: where it stages, inside the memory. buckets: a power of two.

    known_sources: this many sources, the first ones, are the memory's own facts. names_expected: some source may name
    the objects of another.
    """

    url: str
    ingest_id: str
    folder: str
    buckets: int
    grouping: str
    known_sources: int
    names_expected: bool


@dataclass(frozen=True, kw_only=True)
class Staged:
    """The receipt of one staged segment. lines: of text, or rows; bad: rejected rows."""

    source: int
    segment: int
    lines: int
    triples: int
    names: int
    requests: int
    bad: int


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The receipt of one bucket. part: None where no triple fell into it.

    read: triples read from the sources; new: those of them that were neither known nor repeated.
    """

    part: Part | None
    subjects: int
    read: int
    new: int


def stage_piece(job: Job, piece: Piece) -> list[Staged]:
    """Parse a piece; write triples and names partitioned by subject, rejected rows, and a receipt per segment."""
    storage = Storage(job.url)
    done = f"{job.folder}/pieces/{piece.key}.json"
    if piece.only_segment is None:
        known = read_receipt(storage, done, lambda content: _staged_of_piece(content, piece.source))
        if known is not None:
            return known
    receipts = {}

    def wanted(segment: int) -> bool:
        path = f"{_stem_of(job, piece.source, segment)}.json"
        receipt = read_receipt(storage, path, lambda fields: _staged(fields, piece.source, segment))
        if receipt is not None:
            receipts[segment] = receipt
        return segment not in receipts

    for segment, parsed in piece.parse(wanted):
        receipts[segment] = _stage_segment(storage, job, piece.source, segment, parsed)
    staged = [receipts[segment] for segment in sorted(receipts)]
    if piece.only_segment is None:  # else the receipt of the segment is that of the piece
        storage.write_atomic(done, json.dumps([asdict(receipt) for receipt in staged]).encode())
    return staged


class BucketFiles:
    """Staged files whose record batch number b is bucket b. Every bucket is read from all of them, so each stays open.

    Opening maps the file, which takes forty times as long as reading a batch, and files times buckets grow as the
    square of the facts. Of a mapped file no descriptor stays open.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._opened: dict[str, pa.RecordBatchFileReader] = {}

    def read(self, path: str, bucket: int) -> pa.RecordBatch:
        """The rows of a bucket."""
        reader = self._opened.get(path)
        if reader is None:
            with self._storage.open_input(path) as file:
                reader = pa.ipc.open_file(file.read_buffer())
            if len(self._opened) < _MOST_MAPPED:
                self._opened[path] = reader
        return reader.get_batch(bucket)


def look_up_names(job: Job, staged: Sequence[Staged], files: BucketFiles, bucket: int) -> None:
    """Names of the objects of one bucket, for the buckets of the subjects whose triples do not say them."""
    storage = Storage(job.url)
    path = _looked_up(job, bucket)
    if storage.exists(path):
        return
    names = _gather(files, job, staged, "names", bucket)
    requests = _gather(files, job, staged, "requests", bucket)
    at = pc.index_in(requests.column("entity_id").combine_chunks(), names.column("entity_id").combine_chunks())
    found = pc.is_valid(at)
    answers = pa.table(
        [requests.column("entity_id").filter(found), names.column("name").take(at.drop_null())], schema=NAMES_SCHEMA
    )
    wanted_by = np.asarray(requests.column("bucket").filter(found)).astype(np.int64)
    _write_buckets(storage, path, answers, wanted_by, job.buckets)


def reduce_bucket(job: Job, staged: Sequence[Staged], files: BucketFiles, looked_up: bool, bucket: int) -> Reduced:
    """All facts of one bucket, written as one part."""
    storage = Storage(job.url)
    path = f"{job.folder}/reduced/{bucket:06d}.json"
    part_path = f"facts/{job.ingest_id}-{bucket:06d}.arrow"
    done = read_receipt(storage, path, lambda fields: _reduced(fields, part_path))
    if done is not None and (
        done.part is None or (storage.exists(part_path) and storage.size(part_path) == done.part.bytes)
    ):
        return done
    known = [receipt for receipt in staged if receipt.source < job.known_sources]
    triples_known = _gather(files, job, known, "triples", bucket)
    triples_new = _gather(files, job, staged[len(known) :], "triples", bucket)
    triples = pa.concat_tables([triples_known, triples_new])
    receipt = Reduced(part=None, subjects=0, read=0, new=0)
    if triples.num_rows:
        names = _gather(files, job, staged, "names", bucket)
        answers = [files.read(_looked_up(job, other), bucket) for other in range(job.buckets) if looked_up]
        grouped = group_facts(
            triples,
            names,
            pa.Table.from_batches(answers, NAMES_SCHEMA),
            grouping=job.grouping,
            known_rows=triples_known.num_rows,
        )
        receipt = Reduced(
            part=write_part(storage, part_path, grouped.facts),
            subjects=grouped.subjects,
            read=triples_new.num_rows,
            new=grouped.triples - grouped.known,
        )
    storage.write_atomic(path, json.dumps(asdict(receipt)).encode())
    return receipt


def bucket_of(entity_id_N: pa.ChunkedArray, buckets: int) -> NDArray[np.int64]:
    """The bucket of each entity, int64 [N] in [0, buckets): the leading bits of a hash of its id."""
    encoded = entity_id_N.combine_chunks().dictionary_encode()
    shift = np.uint64(64 - (buckets.bit_length() - 1))
    of_value = (hash_texts(encoded.dictionary) >> shift) if buckets > 1 else np.zeros(len(encoded.dictionary))
    bucket_N: NDArray[np.int64] = of_value.astype(np.int64)[np.asarray(encoded.indices)]
    return bucket_N


def rejected_rows(job: Job, staged: Sequence[Staged]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every rejected row in order, with the number of its source; lines counted from the start of the file."""
    storage = Storage(job.url)
    source, line_offset = -1, 0
    for receipt in staged:
        if receipt.source != source:
            source, line_offset = receipt.source, 0
        if receipt.bad:
            for text in storage.read_bytes(f"{_stem(job, receipt)}.bad.jsonl").decode().splitlines():
                row = json.loads(text)
                yield source, row | {"line": row["line"] + line_offset}
        line_offset += receipt.lines


def remove_staging(storage: Storage, folder: str, *, and_empty_memory: bool = False) -> None:
    """Remove a staging folder, and those that stage for a generation which is no longer the newest.

    What is staged for a superseded parent can never be committed: the precondition of its commit has failed.
    and_empty_memory: where there was no memory, leave no empty folder either.
    """
    newest = current_generation(storage) or 0
    removed = {folder.removeprefix(f"{STAGING}/")}
    for entry in [*storage.entries(STAGING), *storage.temporaries(STAGING)]:
        name = entry.path.split("/")[1]
        parent = name.partition("-")[0]
        if name in removed or (parent.isdigit() and int(parent) < newest):
            removed.add(name)
            storage.delete(entry.path)
    # A local disk keeps empty folders, an object store has none.
    staging = Path(storage.url, STAGING)
    for name in removed:
        _remove_empty([*(staging / name).glob("*"), staging / name])
    if and_empty_memory:
        _remove_empty([staging, staging.parent])


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def _stage_segment(storage: Storage, job: Job, source: int, segment: int, parsed: Parsed) -> Staged:
    subject_N = bucket_of(parsed.triples.column("subject_id"), job.buckets)
    requests = _requests(parsed.triples, subject_N) if job.names_expected else _REQUESTS_SCHEMA.empty_table()
    receipt = Staged(
        source=source,
        segment=segment,
        lines=parsed.lines,
        triples=parsed.triples.num_rows,
        names=parsed.names.num_rows,
        requests=requests.num_rows,
        bad=len(parsed.bad),
    )
    stem = _stem(job, receipt)
    if receipt.triples:
        _write_buckets(storage, f"{stem}.triples.arrow", parsed.triples, subject_N, job.buckets)
    for kind, table in (("names", parsed.names), ("requests", requests)):
        if table.num_rows:
            bucket_N = bucket_of(table.column("entity_id"), job.buckets)
            _write_buckets(storage, f"{stem}.{kind}.arrow", table, bucket_N, job.buckets)
    if parsed.bad:
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in parsed.bad)
        storage.write_atomic(f"{stem}.bad.jsonl", lines.encode())
    storage.write_atomic(f"{stem}.json", json.dumps(asdict(receipt)).encode())
    return receipt


def _requests(triples: pa.Table, subject_N: NDArray[np.int64]) -> pa.Table:
    """Each object without a name once for every bucket that asks for it."""
    unnamed_N = np.flatnonzero(np.asarray(pc.is_null(triples.column("object"))))
    object_N = triples.column("object_id").take(pa.array(unnamed_N)).combine_chunks().dictionary_encode()
    bucket_N = subject_N[unnamed_N]
    _, first = np.unique(np.asarray(object_N.indices).astype(np.int64) * (1 << 32) + bucket_N, return_index=True)
    first.sort()
    entity_id = object_N.take(pa.array(first)).dictionary_decode()
    return pa.table([entity_id, pa.array(bucket_N[first], pa.int32())], schema=_REQUESTS_SCHEMA)


def _write_buckets(storage: Storage, path: str, table: pa.Table, bucket_N: NDArray[np.int64], buckets: int) -> None:
    """An Arrow file whose record batch number b holds the rows of bucket b, in their order."""
    order_N = np.argsort(bucket_N, kind="stable")
    bounds = np.searchsorted(bucket_N[order_N], np.arange(buckets + 1))
    (batch,) = table.take(pa.array(order_N)).combine_chunks().to_batches() or [_empty_batch(table.schema)]

    def fill(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            for start, stop in pairwise(bounds.tolist()):
                writer.write_batch(batch.slice(start, stop - start))

    storage.write_atomic(path, fill)


def _gather(files: BucketFiles, job: Job, staged: Sequence[Staged], kind: str, bucket: int) -> pa.Table:
    """The rows of one bucket from every segment, in order of reading."""
    paths = [f"{_stem(job, receipt)}.{kind}.arrow" for receipt in staged if getattr(receipt, kind)]
    return pa.Table.from_batches([files.read(path, bucket) for path in paths], _SCHEMAS[kind])


def _empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


def _staged_of_piece(content: Any, source: int) -> list[Staged]:
    """Raises ValueError or TypeError for what is no list of receipts of this source."""
    if not isinstance(content, list):
        raise TypeError(f"expected a list of receipts, found {content!r:.200}")
    return [_staged(fields, source) for fields in content]


def _staged(fields: Any, source: int, segment: int | None = None) -> Staged:
    """Raises ValueError or TypeError for what is no receipt of this source, and of this segment if one is named."""
    receipt = Staged(**fields)
    are_numbers = all(type(number) is int for number in asdict(receipt).values())
    if not are_numbers or receipt.source != source or segment not in (None, receipt.segment):
        raise ValueError(f"expected the receipt of source {source}, found {fields!r:.200}")
    return receipt


def _reduced(fields: Any, part_path: str) -> Reduced:
    """Raises ValueError, TypeError or LookupError for what is no receipt of a bucket with this part."""
    receipt = Reduced(**fields | {"part": part_of(fields["part"], part_path) if fields["part"] else None})
    if not all(type(number) is int for number in (receipt.subjects, receipt.read, receipt.new)):
        raise ValueError(f"expected the receipt of a bucket, found {fields!r:.200}")
    return receipt


def _looked_up(job: Job, bucket: int) -> str:
    return f"{job.folder}/names/{bucket:06d}.arrow"


def _stem(job: Job, receipt: Staged) -> str:
    return _stem_of(job, receipt.source, receipt.segment)


def _stem_of(job: Job, source: int, segment: int) -> str:
    return f"{job.folder}/segments/{source:06d}-{segment:08d}"
