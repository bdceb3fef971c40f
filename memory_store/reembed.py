"""All vectors of a memory anew, part by part, while others write: resumable, one at a time, one commit."""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike

from memory_store.errors import DimensionMismatch, EmptyInput, InvalidVectors
from memory_store.manifest import (
    Change,
    Manifest,
    Part,
    ReplaceVectors,
    apply_change,
    propose,
    read_manifest,
    withdraw,
)
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, open_part, take_rows, vectors_table, write_part
from memory_store.progress import Progress, silent
from memory_store.receipts import part_of, read_receipt
from memory_store.reembed_claim import Claim, claim, delete_receipts, leave, release
from memory_store.reuse import EarlierVectors, earlier_vectors, vectors_of_generation
from memory_store.storage import Storage
from memory_store.vectors import DTYPES, StoredVectors, max_norm, stored_vectors
from memory_store.work import check_backend, run_steps
from memory_store.writes import change_of_current, commit_change

# N facts of a part, D dimension

__all__ = ["Encode", "Reembedding", "reembed"]

Encode = Callable[[pa.Table], ArrayLike]
"""A table of FACTS_SCHEMA with N rows -> float vectors [N, D]."""

_FACTS_AT_ONCE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    part: Part
    max_norm: float


def reembed(
    storage: Storage,
    encode: Encode,
    *,
    fingerprint: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Embed every facts part that the fingerprint's vectors are not there for, and commit; returns the generation.

    See Reembedding, which also lets the caller look at the vectors before they are committed.
    """
    with Reembedding(storage, encode, fingerprint=fingerprint, dtype=dtype, progress=progress) as embedding:
        embedding.embed()
        return embedding.commit()


class Reembedding:
    """The vectors of another encoder for every fact, made beside what is there. A context manager.

    Facts that others upsert meanwhile are embedded too, and what they delete stays deleted: the commit is of the newest
    generation, whatever that is by then. fingerprint: names the encoder; a memory embedded by it already stays as it
    is, a run that was killed or failed goes on where it was, and what an earlier generation has of the same facts by
    that encoder is taken over. None: embed everything, under a name of its own.
    dtype: as the memory has it by default. backend: "local" embeds in this process, "ray" in `workers` processes of the
    cluster, part by part, each with a copy of `encode`. Until `commit` returns, the memory is as it was.
    """

    def __init__(
        self,
        storage: Storage,
        encode: Encode,
        *,
        fingerprint: str | None = None,
        dtype: str | None = None,
        backend: str = "local",
        workers: int | None = None,
        progress: Progress = silent,
    ) -> None:
        check_backend(backend, workers, [storage.url])
        self._backend = backend
        self._workers = workers
        self._storage = storage
        self._encode = encode
        self._fingerprint = fingerprint
        self._dtype = dtype
        self._progress = progress
        self._claim: Claim | None = None
        self._proposed: Manifest | None = None
        self._is_committing = False
        self._earlier = EarlierVectors()
        self._reading = ExitStack()  # of the generation that has them
        self._done: dict[Part, _Embedded] = {}
        self._dims: dict[Part, int] = {}

    def embed(self) -> Manifest | None:
        """Embed every fact; returns the generation that a commit would make now, as `propose` does. None: it is made.

        Raises ReindexRunning while another re-index works on this memory, DimensionMismatch or InvalidVectors for what
        the encoder returns, EmptyInput.
        """
        now = read_manifest(self._storage)
        if not now.fact_count:
            raise EmptyInput(f"the memory at {self._storage.shown} holds no facts to embed")
        dtype = self._dtype or now.dtype or "float32"
        if self._fingerprint is not None and (now.encoder, now.dtype) == (self._fingerprint, dtype):
            return None
        self._claim = claim(self._storage, self._fingerprint, dtype)
        withdraw(self._storage)  # what one that was killed had proposed
        if self._fingerprint is not None:
            self._earlier = self._reading.enter_context(
                earlier_vectors(self._storage, now, encoder=self._fingerprint, dtype=dtype)
            )
        current, change = change_of_current(self._storage, self._change)
        if change is None:
            return None
        new = apply_change(current, change, commit_id=self._commit_id, note=self._note)
        self._proposed = propose(self._storage, new)
        return self._proposed

    def commit(self) -> Manifest:
        """Make it the current generation, with what was written meanwhile; returns the generation."""
        if self._claim is None:
            return read_manifest(self._storage)
        self._is_committing = True
        new = commit_change(self._storage, self._change, commit_id=self._commit_id, note=self._note, sleep=_at_once)
        self._end(is_committed=True)
        return new

    def close(self) -> None:
        """Let others re-index; safe to call twice. What was embedded and not committed stays for one of that name."""
        if self._claim is not None:
            self._end(is_committed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _commit_id(self) -> str:
        assert self._claim is not None, "what is not claimed is not committed"
        return self._claim.prefix

    @property
    def _note(self) -> str:
        assert self._claim is not None, "what is not claimed is not committed"
        return f"embedded with {self._claim.fingerprint}"

    def _change(self, current: Manifest) -> Change | None:
        assert self._claim is not None, "what is not claimed is not embedded"
        if (current.encoder, current.dtype) == (self._claim.fingerprint, self._claim.dtype):
            return None
        done, dims = self._done, self._dims
        missing = [part for part in current.facts if part not in done]
        backend = self._backend if len(missing) > 1 else "local"  # what was written meanwhile is few
        where = self._storage if backend == "local" else self._storage.url
        earlier = self._earlier
        if missing and self._proposed is not None:  # what was compacted since has its vectors there, in other parts
            earlier = vectors_of_generation(self._storage, self._proposed, missing)
        make_step = partial(_EmbedPart, where, self._encode, self._claim, earlier)
        with closing(run_steps(make_step, missing, backend=backend, workers=self._workers, keeps_state=True)) as steps:
            for number, embedded in steps:
                done[missing[number]] = embedded
                there = len(current.facts) - sum(part not in done for part in missing)
                self._progress("embed", there, len(current.facts), unit="parts")
        for part in missing:
            dims[part] = int(open_part(self._storage, done[part].part).schema.field("vector").type.list_size)
        if len(set(dims.values())) > 1:
            raise DimensionMismatch(f"expected vectors of one dimension, found {sorted(set(dims.values()))}")
        return ReplaceVectors(
            vectors=tuple(done[part].part for part in current.facts),
            dim=next(iter(dims.values())),
            dtype=self._claim.dtype,
            encoder=self._claim.fingerprint,
            max_norm=max(done[part].max_norm for part in current.facts),
        )

    def _end(self, *, is_committed: bool) -> None:
        claimed, self._claim = self._claim, None
        assert claimed is not None, "what is not claimed does not end"
        self._reading.close()
        storage = self._storage
        if self._proposed is not None:
            withdraw(storage, self._proposed.generation)
        if not is_committed and self._fingerprint is not None:
            leave(storage, claimed)
            return
        if not is_committed and not self._is_committing:  # else a generation may name the parts
            for path in storage.list("vectors"):
                if path.startswith(f"vectors/{claimed.prefix}"):
                    storage.delete(path)
        delete_receipts(storage, claimed)
        release(storage)


class _EmbedPart:
    """The step: one facts part to one vectors part. The memory's URL where another process takes it."""

    def __init__(self, memory: Storage | str, encode: Encode, claimed: Claim, earlier: EarlierVectors) -> None:
        self._storage = Storage(memory) if isinstance(memory, str) else memory
        self._encode = encode
        self._claim = claimed
        self._earlier = earlier
        self._kept: StoredVectors | None = None

    def __call__(self, part: Part) -> _Embedded:
        storage = self._storage
        # The id is of this re-index alone: no file that a generation names is ever written again.
        name = f"{self._claim.prefix}-{xxhash.xxh3_64_hexdigest(f'{part.path} {part.checksum}'.encode())}"
        receipt, path = f"staging/{name}.json", f"vectors/{name}.arrow"
        known = read_receipt(storage, receipt, _parsed)
        if known is not None and storage.exists(path) and storage.size(path) == known.part.bytes:
            return known
        whole = self._earlier.whole(storage, part)
        if whole is not None:
            return _Embedded(part=whole.part, max_norm=whole.max_norm)
        facts = open_part(storage, part, FACTS_SCHEMA)
        fact_id_N = fact_ids_of(facts)
        vectors_ND = self._vectors(facts, self._claim.dtype)
        embedded = _Embedded(
            max_norm=max_norm(vectors_ND, fact_id_N),
            part=write_part(storage, path, vectors_table(fact_id_N, vectors_ND)),
        )
        storage.write_atomic(receipt, json.dumps(asdict(embedded)).encode())
        return embedded

    def _vectors(self, facts: pa.Table, dtype: str) -> StoredVectors:
        """Of all facts of a part: those that an earlier generation has of the same encoder, the others made now. They
        are overwritten by those of the next part."""
        earlier, rows = self._earlier, facts.num_rows
        vectors_ND = self._room(rows, earlier.dim, dtype)
        made_N = np.ones(rows, dtype=np.bool_)
        if earlier.generation is not None:
            made_N = ~earlier.copy_into(self._storage, facts, vectors_ND)
        made_M = np.flatnonzero(made_N)
        wanted = facts if len(made_M) == rows else take_rows(facts, made_M)
        for start in range(0, len(made_M), _FACTS_AT_ONCE):
            batch = wanted.slice(start, _FACTS_AT_ONCE)
            given = np.asarray(self._encode(batch))
            if given.ndim != 2 or len(given) != batch.num_rows:
                raise InvalidVectors(
                    f"expected one vector for each of {batch.num_rows:,} facts, found shape {list(given.shape)}; "
                    "fix encode"
                )
            block_MD = stored_vectors(given, given.shape[1], dtype)
            if start == 0 and len(made_M) == rows:
                vectors_ND = self._room(rows, given.shape[1], dtype)
            if block_MD.shape[1] != vectors_ND.shape[1]:
                raise DimensionMismatch(
                    f"expected vectors of dimension {vectors_ND.shape[1]}, found {block_MD.shape[1]}"
                )
            stop = start + len(block_MD)
            vectors_ND[made_M[start:stop] if len(made_M) < rows else slice(start, stop)] = block_MD
        return vectors_ND

    def _room(self, rows: int, dim: int, dtype: str) -> StoredVectors:
        """An array for the vectors of one part, until those of the next: memory that is new costs more than to fill it,
        and taking and giving it back part by part disturbs the searches beside."""
        if self._kept is None or self._kept.size < rows * dim or self._kept.dtype != DTYPES[dtype]:
            self._kept = None  # before there is another one
            self._kept = np.empty(rows * dim, DTYPES[dtype])
        room_ND: StoredVectors = self._kept[: rows * dim].reshape(rows, dim)
        return room_ND


def _at_once(seconds: float) -> None:
    """No pause before another try: whatever others commit in it is to be embedded too, and they would stay ahead."""


def _parsed(fields: Any) -> _Embedded:
    return _Embedded(part=part_of(fields["part"]), max_norm=float(fields["max_norm"]))
