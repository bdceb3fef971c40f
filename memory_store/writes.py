"""Upserts and deletes: fresh parts and tombstones beside what is there, committed whatever other writers do."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import (
    CommitUnknown,
    CorruptFile,
    DuplicateFact,
    GenerationConflict,
    GenerationNotFound,
    HmnError,
    InvalidVectors,
    NoVectors,
    UnknownFact,
)
from memory_store.manifest import (
    Change,
    DeleteRows,
    Manifest,
    ParentGeneration,
    Part,
    UpsertRows,
    apply_change,
    commit,
    current_generation,
    read_manifest,
)
from memory_store.parts import (
    TOMBSTONES_SCHEMA,
    dead_rows,
    fact_ids_of,
    open_part,
    vectors_table,
    write_part,
)
from memory_store.storage import Storage
from memory_store.vectors import StoredVectors, dtype_name, max_norm, stored_vectors
from memory_store.writer import PART_ROWS, as_facts, check_fact_ids

# N facts of a write, D dimension, C fact ids to locate

__all__ = [
    "Locate",
    "Located",
    "change_of_current",
    "commit_change",
    "delete_facts",
    "locate_on_disk",
    "same_encoder",
    "upsert_facts",
    "write_tombstones",
]

_ATTEMPTS = 60
_LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """Where the live row of each fact id [C] lies: the part's position in the manifest, the row in it; -1: nowhere."""

    part_C: NDArray[np.int64]
    row_C: NDArray[np.int64]


Locate = Callable[[Manifest, NDArray[np.int64]], Located]
"""Finds facts in a generation: by asking the shards that hold them, or `locate_on_disk`."""


def upsert_facts(
    storage: Storage,
    facts: pa.Table,
    vectors: ArrayLike,
    *,
    locate: Locate,
    made_for: Manifest | None = None,
    note: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """Add facts, or put them in the place of those that have their ids; returns the generation that holds them.

    facts, vectors: as for MemoryWriter.append, each id once. Durable on return. Whoever commits first meanwhile, these
    facts are committed after it. made_for: the generation whose encoder made the vectors, the current one by default;
    if the memory has been embedded by another one since, that is a GenerationConflict. No facts, no commit.
    Raises InputError, DuplicateFact, DimensionMismatch, InvalidVectors, NoVectors, StorageFailed; the memory is then as
    it was. CommitUnknown if that cannot be told: the same call again is safe.
    """
    made_for = made_for or read_manifest(storage)
    if not made_for.dtype:
        raise NoVectors(
            f"the facts of generation {made_for.generation} of {storage.shown} have no vectors yet; run `hmn embed` "
            "before upserting facts with vectors"
        )
    table = as_facts(facts)
    vectors_ND = stored_vectors(vectors, made_for.dim, made_for.dtype)
    if table.num_rows != len(vectors_ND):
        raise InvalidVectors(f"expected one vector per fact ({table.num_rows:,}), found {len(vectors_ND):,}")
    fact_ids_N = fact_ids_of(table)
    check_fact_ids(fact_ids_N)
    values, count = np.unique(fact_ids_N, return_counts=True)
    if (count > 1).any():
        raise DuplicateFact(f"fact id {values[count > 1][0]} is upserted twice at once; give one version of each fact")
    norm = max_norm(vectors_ND, fact_ids_N)
    if not table.num_rows:
        return read_manifest(storage)
    write = _Write(storage)

    def change(current: Manifest) -> Change:
        if (current.encoder, current.dim, current.dtype) != (made_for.encoder, made_for.dim, made_for.dtype):
            raise GenerationConflict(
                f"expected vectors made by {current.encoder}, which embedded generation {current.generation} of "
                f"{storage.shown}, found vectors for generation {made_for.generation}, made by {made_for.encoder}; "
                "refresh the memory and embed the facts with its encoder"
            )
        places = locate(current, fact_ids_N)
        return UpsertRows(
            facts=write.facts(table, vectors_ND),
            vectors=tuple(write.vectors_parts),
            tombstones=write.tombstones(current, fact_ids_N, places),
            dim=made_for.dim,
            dtype=dtype_name(vectors_ND),
            max_norm=norm,
        )

    said = f"upsert of {table.num_rows:,} facts" if note is None else note
    return write.commit(change, note=said, sleep=sleep)


def delete_facts(
    storage: Storage,
    fact_ids: ArrayLike,
    *,
    locate: Locate,
    serves: Callable[[], Manifest | None] | None = None,
    note: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """Delete facts; returns the generation without them. Ids may repeat. UnknownFact, and nothing deleted, for an id
    that the memory does not hold. serves: says what the caller serves, None where that does not matter; if the memory
    has been embedded by another encoder since, that is a GenerationConflict. Otherwise as upsert_facts.
    """
    fact_ids_N = np.unique(np.asarray(fact_ids, dtype=np.int64))
    if not len(fact_ids_N):
        return read_manifest(storage)
    write = _Write(storage)
    seen_N = np.zeros(len(fact_ids_N), dtype=np.bool_)  # what another writer deletes while we try is deleted

    def change(current: Manifest) -> Change | None:
        nonlocal seen_N
        served = serves() if serves is not None else None
        if served is not None and served.generation < current.generation and not same_encoder(served, current):
            raise GenerationConflict(
                f"expected vectors of {_encoder_of(served)}, which are served in generation {served.generation} of "
                f"{storage.shown}, found generation {current.generation} with those of {_encoder_of(current)}: it was "
                "embedded by another encoder since, and nothing is deleted; call refresh(), then delete again"
            )
        places = locate(current, fact_ids_N)
        found_N = places.part_C >= 0
        unknown_N = fact_ids_N[~found_N & ~seen_N]
        if len(unknown_N):
            raise UnknownFact(
                f"expected ids of facts in generation {current.generation}, found {len(unknown_N)} that it does not "
                f"hold: {', '.join(map(str, unknown_N[:3]))}{', ...' if len(unknown_N) > 3 else ''}; leave them out"
            )
        seen_N = seen_N | found_N
        return DeleteRows(tombstones=write.tombstones(current, fact_ids_N, places)) if found_N.any() else None

    said = f"delete of {len(fact_ids_N):,} facts" if note is None else note
    return write.commit(change, note=said, sleep=sleep)


def same_encoder(one: Manifest, other: Manifest) -> bool:
    """Whether a query that was made for the vectors of one generation means the same to those of the other."""
    return (one.encoder, one.dim) == (other.encoder, other.dim)


def _encoder_of(manifest: Manifest) -> str:
    return manifest.encoder or ("an encoder without a name" if manifest.dim else "no encoder")


def locate_on_disk(storage: Storage, manifest: Manifest, fact_ids_C: NDArray[np.int64]) -> Located:
    """Locate by reading the ids of every part: for a writer that has no shards to ask. fact_ids_C: each id once."""
    order_C = np.argsort(fact_ids_C)
    sorted_C = fact_ids_C[order_C]
    located = Located(part_C=np.full(len(sorted_C), -1), row_C=np.full(len(sorted_C), -1))
    dead = dead_rows(storage, manifest.facts, manifest.tombstones)
    for number, part in enumerate(manifest.vectors or manifest.facts):
        ids_N = fact_ids_of(open_part(storage, part))
        rank_N = np.searchsorted(sorted_C, ids_N).clip(max=max(len(sorted_C) - 1, 0))
        hit_N = sorted_C[rank_N] == ids_N if len(sorted_C) else np.zeros(len(ids_N), dtype=np.bool_)
        rows = np.flatnonzero(hit_N)
        rows = rows[~np.isin(rows, dead.get(manifest.facts[number].path, []))]
        located.part_C[order_C[rank_N[rows]]] = number
        located.row_C[order_C[rank_N[rows]]] = rows
    return located


def change_of_current(
    storage: Storage, change_for: Callable[[Manifest], Change | None]
) -> tuple[Manifest, Change | None]:
    """The current generation and what `change_for` makes of it. Raises what change_for raises."""
    while True:
        current = read_manifest(storage)
        try:
            return current, change_for(current)
        except (CorruptFile, GenerationNotFound, FileNotFoundError):
            if current_generation(storage) == current.generation:
                raise  # else it was superseded and swept while we read it: nothing is corrupt


def commit_change(
    storage: Storage,
    change_for: Callable[[Manifest], Change | None],
    *,
    commit_id: str,
    note: str,
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """Commit what `change_for` makes of the current generation; if another writer was faster, of the next one again.

    None from change_for: nothing is left to do, and the current generation is returned. Raises what change_for and
    commit raise, GenerationConflict only after many defeats.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:  # a random pause, so that two writers do not meet again and again
            sleep(random.uniform(0.0, min(0.005 * 2**attempt, _LONGEST_PAUSE_S)))
        current, change = change_of_current(storage, change_for)
        if change is None:
            return current
        new = apply_change(current, change, commit_id=commit_id, note=note[:500])
        with suppress(_Overtaken):
            return _commit(storage, new, current)
    raise GenerationConflict(
        f"{storage.shown}: other writers committed first {_ATTEMPTS} times in a row; write more at once, less often"
    )


class _Overtaken(Exception):
    """Another writer committed first."""


def _commit(storage: Storage, new: Manifest, current: Manifest) -> Manifest:
    try:
        return commit(storage, new, requires=ParentGeneration(current.generation))
    except GenerationConflict:
        raise _Overtaken from None


def write_tombstones(
    storage: Storage, path: str, manifest: Manifest, fact_ids_N: NDArray[np.int64], places: Located
) -> tuple[Part, ...]:
    """Tombstones for the ids that were located, as one part; none if there are none."""
    found_N = np.flatnonzero(places.part_C >= 0)
    if not len(found_N):
        return ()
    found_N = found_N[np.lexsort((places.row_C[found_N], places.part_C[found_N]))]
    used, code_N = np.unique(places.part_C[found_N], return_inverse=True)
    named = pa.DictionaryArray.from_arrays(
        pa.array(code_N.astype(np.int32)), pa.array([manifest.facts[number].path for number in used])
    )
    columns = [pa.array(fact_ids_N[found_N]), named, pa.array(places.row_C[found_N])]
    return (write_part(storage, path, pa.table(columns, schema=TOMBSTONES_SCHEMA)),)


class _Write:
    """The files of one write: parts once, tombstones anew for every attempt, because rows move when others write."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._commit_id = uuid4().hex
        self._facts_parts: list[Part] = []
        self.vectors_parts: list[Part] = []
        self._paths: list[str] = []  # all that was begun, for tidying up

    def facts(self, table: pa.Table, vectors_ND: StoredVectors) -> tuple[Part, ...]:
        for start in range(0, table.num_rows if not self._facts_parts else 0, PART_ROWS):
            facts, rows_ND = table.slice(start, PART_ROWS), vectors_ND[start : start + PART_ROWS]
            name = f"{self._commit_id}-{start // PART_ROWS:05d}.arrow"
            self._paths += [f"facts/{name}", f"vectors/{name}"]
            self._facts_parts.append(write_part(self._storage, f"facts/{name}", facts))
            vectors = vectors_table(fact_ids_of(facts), rows_ND)
            self.vectors_parts.append(write_part(self._storage, f"vectors/{name}", vectors))
        return tuple(self._facts_parts)

    def tombstones(self, current: Manifest, fact_ids_N: NDArray[np.int64], places: Located) -> tuple[Part, ...]:
        path = f"tombstones/{self._commit_id}-{current.generation:08d}.arrow"
        self._paths.append(path)
        return write_tombstones(self._storage, path, current, fact_ids_N, places)

    def commit(
        self, change: Callable[[Manifest], Change | None], *, note: str, sleep: Callable[[float], None]
    ) -> Manifest:
        try:
            manifest = commit_change(self._storage, change, commit_id=self._commit_id, note=note, sleep=sleep)
        except CommitUnknown:
            raise  # the generation may be there, and then it needs its parts
        except Exception:
            self._delete(self._paths)
            raise
        named = {part.path for part in manifest.facts + manifest.vectors + manifest.tombstones}
        self._delete([path for path in self._paths if path not in named])
        return manifest

    def _delete(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(HmnError):  # what stays is harmless, and sweep deletes it later
                self._storage.delete(path)
