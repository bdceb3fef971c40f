"""Facts into vectors: part by part, by any encoder, committed as one generation."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, DimensionMismatch, EmptyInput, GenerationConflict
from memory_store.manifest import (
    Change,
    Manifest,
    Part,
    ReplaceVectors,
    current_generation,
    operations_since,
    read_manifest,
)
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, open_part, take_rows, vectors_table, write_part
from memory_store.progress import Progress, silent
from memory_store.receipts import part_of, read_receipt
from memory_store.reuse import EarlierVectors, earlier_vectors, vectors_of_generation
from memory_store.storage import Storage
from memory_store.vectors import DTYPES, StoredVectors, max_norm, stored_vectors
from memory_store.work import check_backend, run_steps
from memory_store.writes import commit_change
from pipeline.staging import STAGING, remove_staging

# N facts of a part, M of them to be computed, D dimension

__all__ = ["EmbedSummary", "Encoder", "embed"]

Encoder = Callable[[pa.Table], NDArray[np.float32]]
"""A table of FACTS_SCHEMA with N rows -> float32 [N, D], one vector per fact."""

_WRITES = {"append", "upsert", "delete", "compact"}  # what does not put all facts in the place of all others
_FACTS_AT_ONCE = 1 << 16  # a part of our ingest; longer parts are encoded in slices, so that memory stays bounded


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What an embedding did. generation: the one that holds the vectors; committed: whether this call made it.

    embedded_parts: of `parts`, those that this call wrote; the others were there, from a call that was killed or in an
    earlier generation. computed: rows that the encoder was asked for; reused: those whose vectors are taken from an
    earlier generation, where the same encoder made them from the same words.
    """

    generation: int
    committed: bool
    facts: int
    parts: int
    embedded_parts: int
    computed: int
    reused: int
    bytes: int
    max_norm: float
    seconds: float

    @property
    def facts_per_second(self) -> float:
        return self.facts / self.seconds if self.committed and self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """The receipt of one part. new: written now. computed, reused: rows, as in EmbedSummary."""

    part: Part
    max_norm: float
    new: bool = True
    computed: int = 0
    reused: int = 0


def embed(
    url: str,
    encoder_factory: Callable[[], Encoder],
    *,
    fingerprint: str,
    dim: int,
    dtype: str = "float32",
    backend: str = "local",
    workers: int | None = None,
    note: str | None = None,
    progress: Progress = silent,
) -> EmbedSummary:
    """Embed every fact of the current generation and commit the vectors as the next one.

    encoder_factory: makes the encoder, once in this process ("local") or in each of `workers` actors ("ray", where it
    must be picklable). fingerprint: names the encoder and its weights; a memory that is embedded with it already stays
    as it is. note: for the generation's history. Killed and started again, it embeds the missing parts only.
    Facts that an earlier generation, embedded with it, holds in the same words keep the vectors that they have there.

    Raises MemoryNotFound, EmptyInput, DimensionMismatch or InvalidVectors (NaN, infinity) for what the encoder
    returns, GenerationConflict if another writer replaced the facts meanwhile. What was upserted or deleted meanwhile
    is carried over. Whatever it raises, the memory is as it was.
    """
    started_s = time.monotonic()
    check_backend(backend, workers, [url])
    storage = Storage(url)
    stored_vectors(np.empty((0, dim), np.float32), dim, dtype)  # an unknown dtype is refused before any work
    parent = read_manifest(storage)
    if not parent.fact_count:
        raise EmptyInput(f"the memory at {storage.shown} holds no facts; run `hmn ingest` first")
    if (parent.encoder, parent.dim, parent.dtype) == (fingerprint, dim, dtype):
        return _summary(parent, parent, [], started_s)
    embed_id = _embed_id(parent, fingerprint, dim, dtype)
    folder = f"{STAGING}/{parent.generation:08d}-{embed_id}"
    with earlier_vectors(storage, parent, encoder=fingerprint, dim=dim, dtype=dtype) as earlier:
        make_step = partial(_EmbedPart, storage.url, encoder_factory, embed_id, folder, dim, dtype)
        done: dict[int, _Embedded] = {}
        steps = run_steps(partial(make_step, earlier), parent.facts, backend=backend, workers=workers, keeps_state=True)
        try:
            with closing(steps) as running:
                for number, embedded in running:
                    done[number] = embedded
                    facts = sum(receipt.part.rows for receipt in done.values())
                    progress("embed", facts, parent.fact_count, unit="facts")
            by_part = {part: done[number] for number, part in enumerate(parent.facts)}

            def change(now: Manifest) -> Change:
                since = operations_since(storage, parent.generation, now.generation)
                if not by_part.keys() & set(now.facts) and not since <= _WRITES:
                    raise _overtaken(storage, parent, now.generation)
                missing = [part for part in now.facts if part not in by_part]
                if missing:  # upserted since, which are few, or compacted, whose vectors are there in other parts
                    of_parent = replace(
                        parent,
                        vectors=tuple(done[number].part for number in range(len(parent.facts))),
                        encoder=fingerprint,
                        dim=dim,
                        dtype=dtype,
                    )
                    step = make_step(vectors_of_generation(storage, of_parent, missing))
                    for part in missing:
                        by_part[part] = step(part)
                receipts = [by_part[part] for part in now.facts]
                return ReplaceVectors(
                    vectors=tuple(receipt.part for receipt in receipts),
                    dim=dim,
                    dtype=dtype,
                    encoder=fingerprint,
                    max_norm=max(receipt.max_norm for receipt in receipts),
                )

            said = f"embedded with {fingerprint}" if note is None else note
            manifest = commit_change(storage, change, commit_id=f"embed-{embed_id}", note=said)
        except (CorruptFile, FileNotFoundError) as error:
            # Parts of a superseded generation may be swept under our hands: then we were overtaken, nothing is corrupt.
            now = current_generation(storage)
            if now == parent.generation:
                raise
            raise _overtaken(storage, parent, now) from error
    remove_staging(storage, folder)
    return _summary(manifest, parent, list(by_part.values()), started_s)


def _overtaken(storage: Storage, parent: Manifest, now: int | None) -> GenerationConflict:
    return GenerationConflict(
        f"another writer committed generation {now} of {storage.shown} while generation {parent.generation} was being "
        "embedded; run again to embed what is there now"
    )


class _EmbedPart:
    """The step: one facts part to one vectors part. Keeps the encoder from part to part."""

    def __init__(
        self,
        url: str,
        encoder_factory: Callable[[], Encoder],
        embed_id: str,
        folder: str,
        dim: int,
        dtype: str,
        earlier: EarlierVectors,
    ) -> None:
        self._storage = Storage(url)
        self._encoder_factory = encoder_factory
        self._encoder: Encoder | None = None
        self._embed_id = embed_id
        self._folder = folder
        self._dim = dim
        self._dtype = dtype
        self._earlier = earlier

    def __call__(self, part: Part) -> _Embedded:
        storage = self._storage
        # The name depends on the parent generation: no file that another generation names is ever written again.
        name = xxhash.xxh3_64_hexdigest(f"{self._embed_id} {part.path} {part.checksum}".encode())
        path, receipt = f"vectors/{self._embed_id}-{name}.arrow", f"{self._folder}/{name}.json"
        done = read_receipt(storage, receipt, lambda fields: _received(fields, path))
        if done is not None and storage.exists(path) and storage.size(path) == done.part.bytes:
            return done
        whole = self._earlier.whole(storage, part)
        if whole is not None:
            return _Embedded(part=whole.part, max_norm=whole.max_norm, new=False, reused=part.rows)
        facts = open_part(storage, part, FACTS_SCHEMA)
        vectors_ND = np.empty((facts.num_rows, self._dim), dtype=DTYPES[self._dtype])
        known_N = self._earlier.copy_into(storage, facts, vectors_ND)
        for start in range(0, facts.num_rows, _FACTS_AT_ONCE):
            batch = facts.slice(start, _FACTS_AT_ONCE)
            row_M = start + np.flatnonzero(~known_N[start : start + batch.num_rows])
            if len(row_M) == batch.num_rows:
                vectors_ND[start : start + batch.num_rows] = self._encode(batch)
            elif len(row_M):
                vectors_ND[row_M] = self._encode(take_rows(facts, row_M))
        fact_id_N = fact_ids_of(facts)
        largest = max_norm(vectors_ND, fact_id_N)
        written = write_part(storage, path, vectors_table(fact_id_N, vectors_ND))
        storage.write_atomic(receipt, json.dumps({"part": asdict(written), "max_norm": largest}).encode())
        reused = int(np.count_nonzero(known_N))
        return _Embedded(part=written, max_norm=largest, computed=part.rows - reused, reused=reused)

    def _encode(self, facts: pa.Table) -> StoredVectors:
        if self._encoder is None:  # made when the first part is missing: a rerun that has all parts needs none
            self._encoder = self._encoder_factory()
        vectors_ND = stored_vectors(self._encoder(facts), self._dim, self._dtype)
        if len(vectors_ND) != facts.num_rows:
            raise DimensionMismatch(
                f"expected one vector for each of {facts.num_rows:,} facts, found {len(vectors_ND):,}; fix the encoder"
            )
        return vectors_ND


def _received(fields: Any, path: str) -> _Embedded:
    return _Embedded(part=part_of(fields["part"], path), max_norm=float(fields["max_norm"]), new=False)


def _embed_id(parent: Manifest, fingerprint: str, dim: int, dtype: str) -> str:
    content = json.dumps([parent.generation, parent.commit_id, fingerprint, dim, dtype])
    return xxhash.xxh3_128_hexdigest(content.encode())[:20]


def _summary(manifest: Manifest, parent: Manifest, receipts: list[_Embedded], started_s: float) -> EmbedSummary:
    return EmbedSummary(
        generation=manifest.generation,
        committed=manifest.generation != parent.generation,
        facts=manifest.fact_count,
        parts=len(manifest.vectors),
        embedded_parts=sum(receipt.new for receipt in receipts),
        computed=sum(receipt.computed for receipt in receipts),
        reused=sum(receipt.reused for receipt in receipts),
        bytes=sum(part.bytes for part in manifest.vectors),
        max_norm=manifest.max_norm,
        seconds=time.monotonic() - started_s,
    )
