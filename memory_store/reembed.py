"""All vectors of a memory anew, part by part, while others write: resumable, one at a time, one commit."""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike

from memory_store.errors import DimensionMismatch, EmptyInput, InvalidVectors, ReindexRunning
from memory_store.manifest import Change, Manifest, Part, ReplaceVectors, read_manifest
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, open_part, vectors_table, write_part
from memory_store.progress import Progress, silent
from memory_store.storage import Storage
from memory_store.vectors import StoredVectors, max_norm, stored_vectors
from memory_store.writes import commit_change

# N facts of a part, D dimension

__all__ = ["Encode", "reembed"]

Encode = Callable[[pa.Table], ArrayLike]
"""A table of FACTS_SCHEMA with N rows -> float vectors [N, D]."""

_LOCK = "staging/reindex.json"
_FACTS_AT_ONCE = 1 << 16
_SILENT_FOR_S = 900.0  # a re-index on another machine that has finished no part for so long is taken for dead


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """Who re-embeds, and with what; the id names the files."""

    reindex_id: str
    fingerprint: str
    dtype: str
    owner: str
    pid: int


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

    Facts that others upsert meanwhile are embedded too, and what they delete stays deleted: the commit is of the newest
    generation, whatever that is by then. fingerprint: names the encoder; a memory embedded by it already stays as it
    is, and a run that was killed goes on where it was. None: embed everything, under a name of its own. dtype: as the
    memory has it by default. Raises ReindexRunning while another one works on this memory, DimensionMismatch or
    InvalidVectors for what the encoder returns, EmptyInput; the memory is then as it was.
    """
    now = read_manifest(storage)
    if not now.fact_count:
        raise EmptyInput(f"the memory at {storage.shown} holds no facts to embed")
    dtype = dtype or now.dtype or "float32"
    if fingerprint is not None and (now.encoder, now.dtype) == (fingerprint, dtype):
        return now
    claim = _claim(storage, fingerprint or f"unnamed-{uuid4().hex[:12]}", dtype)
    done: dict[Part, _Embedded] = {}
    dims: dict[Part, int] = {}

    def change(current: Manifest) -> Change | None:
        if (current.encoder, current.dtype) == (claim.fingerprint, dtype):
            return None
        for number, part in enumerate(current.facts):
            if part not in done:
                done[part] = _embed_part(storage, claim, part, encode)
                dims[part] = _dim_of(storage, done[part].part)
            progress("embed", number + 1, len(current.facts), unit="parts")
        if len(set(dims.values())) > 1:
            raise DimensionMismatch(f"expected vectors of one dimension, found {sorted(set(dims.values()))}")
        return ReplaceVectors(
            vectors=tuple(done[part].part for part in current.facts),
            dim=next(iter(dims.values())),
            dtype=dtype,
            encoder=claim.fingerprint,
            max_norm=max(done[part].max_norm for part in current.facts),
        )

    try:
        said = f"embedded with {claim.fingerprint}"
        new = commit_change(storage, change, commit_id=f"reindex-{claim.reindex_id}", note=said, sleep=_at_once)
    except Exception:
        storage.delete(_LOCK)  # the parts that are done stay, for a run with the same encoder until they are swept
        raise
    for path in storage.list("staging"):
        if path.startswith(f"staging/reindex-{claim.reindex_id}"):
            storage.delete(path)
    storage.delete(_LOCK)
    return new


def _at_once(seconds: float) -> None:
    """No pause before another try: whatever others commit in it is to be embedded too, and they would stay ahead."""


def _embed_part(storage: Storage, claim: _Claim, part: Part, encode: Encode) -> _Embedded:
    # The id is of this re-index alone: no file that a generation names is ever written again.
    name = f"reindex-{claim.reindex_id}-{xxhash.xxh3_64_hexdigest(f'{part.path} {part.checksum}'.encode())}"
    receipt, path = f"staging/{name}.json", f"vectors/{name}.arrow"
    if storage.exists(receipt):
        fields = json.loads(storage.read_bytes(receipt))
        known = _Embedded(part=Part(**fields["part"]), max_norm=fields["max_norm"])
        if storage.exists(path) and storage.size(path) == known.part.bytes:
            return known
    facts = open_part(storage, part, FACTS_SCHEMA)
    blocks = []
    for start in range(0, facts.num_rows, _FACTS_AT_ONCE):
        batch = facts.slice(start, _FACTS_AT_ONCE)
        given = np.asarray(encode(batch))
        if given.ndim != 2 or len(given) != batch.num_rows:
            raise InvalidVectors(
                f"expected one vector for each of {batch.num_rows:,} facts, found shape {list(given.shape)}; fix encode"
            )
        blocks.append(stored_vectors(given, given.shape[1], claim.dtype))
        if blocks[-1].shape[1] != blocks[0].shape[1]:
            raise DimensionMismatch(f"expected vectors of dimension {blocks[0].shape[1]}, found {blocks[-1].shape[1]}")
    fact_id_N = fact_ids_of(facts)
    vectors_ND: StoredVectors = np.concatenate(blocks)  # type: ignore[assignment]  # all blocks are of one type
    embedded = _Embedded(
        max_norm=max_norm(vectors_ND, fact_id_N), part=write_part(storage, path, vectors_table(fact_id_N, vectors_ND))
    )
    storage.write_atomic(receipt, json.dumps(asdict(embedded)).encode())
    return embedded


def _dim_of(storage: Storage, part: Part) -> int:
    return int(open_part(storage, part).schema.field("vector").type.list_size)


def _claim(storage: Storage, fingerprint: str, dtype: str) -> _Claim:
    """Take the one place for a re-index; go on with a dead one's work if it used the same encoder."""
    reindex_id = uuid4().hex[:20]
    if storage.exists(_LOCK):
        other = _Claim(**json.loads(storage.read_bytes(_LOCK)))
        if _is_alive(storage, other):
            raise _running(storage, other)
        if (other.fingerprint, other.dtype) == (fingerprint, dtype):
            reindex_id = other.reindex_id
        storage.delete(_LOCK)
    claim = _Claim(
        reindex_id=reindex_id, fingerprint=fingerprint, dtype=dtype, owner=socket.gethostname(), pid=os.getpid()
    )
    try:
        storage.create_exclusive(_LOCK, json.dumps(asdict(claim)).encode())
    except FileExistsError:
        raise _running(storage, _Claim(**json.loads(storage.read_bytes(_LOCK)))) from None
    return claim


def _is_alive(storage: Storage, claim: _Claim) -> bool:
    if claim.owner == socket.gethostname():
        try:
            os.kill(claim.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    newest_s = max((entry.modified_s or 0.0 for entry in storage.entries("staging")), default=0.0)
    return time.time() - newest_s < _SILENT_FOR_S


def _running(storage: Storage, claim: _Claim) -> ReindexRunning:
    return ReindexRunning(
        f"{storage.shown} is being embedded with {claim.fingerprint} by process {claim.pid} on {claim.owner}; wait for "
        f"it, or stop it and run again (if it is gone, delete {storage.where(_LOCK)})"
    )
