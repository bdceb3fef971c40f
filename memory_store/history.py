"""The history of a memory: what changed between two generations, and back to an older one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.leases import leased
from memory_store.manifest import Change, Manifest, Part, RestoreContent, read_manifest
from memory_store.parts import FACTS_SCHEMA, dead_rows, fact_ids_of, live_rows, open_part, take_rows, vectors_of
from memory_store.storage import Storage
from memory_store.vectors import widened
from memory_store.writes import commit_change

# N rows of one side that the other side does not have, C facts that both sides have in different rows

__all__ = ["GenerationDiff", "diff_generations", "rollback"]

_COMPARED_COLUMNS = [name for name in FACTS_SCHEMA.names if name != "features"]
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationDiff:
    """What changed from one generation to another. Fact ids, int64, sorted.

    changed: facts that say something else, or, where both generations have the same encoder, have another vector.
    encoders: before and after; embedded_anew: whether all vectors were made again.
    """

    before: int
    after: int
    added: NDArray[np.int64]
    removed: NDArray[np.int64]
    changed: NDArray[np.int64]
    facts_before: int
    facts_after: int
    encoders: tuple[str | None, str | None]
    embedded_anew: bool


def diff_generations(storage: Storage, before: int, after: int) -> GenerationDiff:
    """Compare two generations in either order of time. Reads the parts that they do not share.

    Raises MemoryNotFound, GenerationNotFound, CorruptFile.
    """
    manifests = (read_manifest(storage, before), read_manifest(storage, after))
    old, new = (_Side(storage, manifest, other) for manifest, other in (manifests, manifests[::-1]))
    embedded_anew = _embedded_anew(*manifests)
    both = np.intersect1d(old.ids_N, new.ids_N)
    with_vectors = bool(manifests[0].vectors and manifests[1].vectors) and not embedded_anew
    changed = [
        fact_id
        for start in range(0, len(both), _ROWS_AT_ONCE)
        for fact_id in _different(old, new, both[start : start + _ROWS_AT_ONCE], with_vectors)
    ]
    return GenerationDiff(
        before=before,
        after=after,
        added=np.setdiff1d(new.ids_N, old.ids_N),
        removed=np.setdiff1d(old.ids_N, new.ids_N),
        changed=np.array(changed, dtype=np.int64),
        facts_before=manifests[0].fact_count,
        facts_after=manifests[1].fact_count,
        encoders=(manifests[0].encoder, manifests[1].encoder),
        embedded_anew=embedded_anew,
    )


def rollback(storage: Storage, generation: int, *, note: str | None = None) -> Manifest:
    """Commit a new generation with the content of an older one; nothing is lost, and rolling back can be undone so.

    Whoever commits meanwhile is rolled back too. Where the current generation holds that content, it is returned.
    Raises MemoryNotFound, GenerationNotFound, StorageFailed, CommitUnknown.
    """
    with leased(storage, generation=generation):  # no sweep takes its parts while nobody else names them
        wanted = read_manifest(storage, generation)

        def change(now: Manifest) -> Change | None:
            return None if _content(now) == _content(wanted) else RestoreContent(manifest=wanted)

        said = f"rollback to generation {generation}" if note is None else note
        return commit_change(storage, change, commit_id=uuid4().hex, note=said)


class _Side:
    """The live rows of one generation that the other one does not have, by fact id."""

    def __init__(self, storage: Storage, manifest: Manifest, other: Manifest) -> None:
        self._storage = storage
        self._manifest = manifest
        dead = dead_rows(storage, manifest.facts, manifest.tombstones)
        dead_there = dead_rows(storage, other.facts, other.tombstones)
        there = set(other.facts)
        ids = [np.zeros(0, dtype=np.int64)]
        places = [np.zeros((0, 2), dtype=np.int64)]
        for number, part in enumerate(manifest.facts):
            rows = live_rows(part.rows, dead.get(part.path))
            if part in there:
                rows = np.intersect1d(rows, dead_there.get(part.path, rows[:0]))
            if len(rows):
                ids.append(fact_ids_of(self._open(part))[rows])
                places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        unsorted_N = np.concatenate(ids)
        order_N = np.argsort(unsorted_N)
        self.ids_N: NDArray[np.int64] = unsorted_N[order_N]
        self._places_N2: NDArray[np.int64] = np.concatenate(places)[order_N]

    def facts(self, ids_C: NDArray[np.int64]) -> pa.Table:
        """What the facts say, in the order asked."""
        pieces, order_C = [], []
        for number, positions, rows in self._by_part(ids_C):
            table = self._open(self._manifest.facts[number]).select(_COMPARED_COLUMNS)
            pieces.append(take_rows(table, rows))
            order_C.append(positions)
        return take_rows(pa.concat_tables(pieces), np.argsort(np.concatenate(order_C)))

    def vectors(self, ids_C: NDArray[np.int64]) -> NDArray[np.float32]:
        """Their vectors [C, D], in the order asked."""
        vectors_CD = np.empty((len(ids_C), self._manifest.dim), dtype=np.float32)
        for number, positions, rows in self._by_part(ids_C):
            vectors_CD[positions] = widened(vectors_of(self._open(self._manifest.vectors[number]))[rows])
        return vectors_CD

    def _by_part(self, ids_C: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        places_C2 = self._places_N2[np.searchsorted(self.ids_N, ids_C)]
        for number in np.unique(places_C2[:, 0]).tolist():
            positions = np.flatnonzero(places_C2[:, 0] == number)
            yield number, positions, places_C2[positions, 1]

    def _open(self, part: Part) -> pa.Table:
        return open_part(self._storage, part)


def _different(old: _Side, new: _Side, ids_C: NDArray[np.int64], with_vectors: bool) -> Sequence[int]:
    """Those of the facts, which both sides have, that differ."""
    changed_C = np.zeros(len(ids_C), dtype=np.bool_)
    before, after = old.facts(ids_C), new.facts(ids_C)
    if not before.equals(after):
        rows = zip(before.to_pylist(), after.to_pylist(), strict=True)
        changed_C |= np.array([one != other for one, other in rows])
    if with_vectors:
        changed_C |= (old.vectors(ids_C) != new.vectors(ids_C)).any(axis=1)
    found: list[int] = ids_C[changed_C].tolist()
    return found


def _embedded_anew(before: Manifest, after: Manifest) -> bool:
    """Whether the vectors cannot be compared fact by fact: another encoder, or other vectors beside the same facts."""
    if (before.encoder, before.dim, before.dtype) != (after.encoder, after.dim, after.dtype):
        return bool(before.vectors or after.vectors)
    beside = dict(zip(before.facts, before.vectors, strict=False))
    pairs = zip(after.facts, after.vectors, strict=False)
    return any(facts in beside and beside[facts] != vectors for facts, vectors in pairs)


def _content(manifest: Manifest) -> tuple[object, ...]:
    return (manifest.facts, manifest.vectors, manifest.tombstones, manifest.delta_parts, manifest.encoder)
