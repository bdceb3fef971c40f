"""Vectors that an earlier generation has of the same facts, by the same encoder: taken over instead of made anew."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.equal_rows import equal_rows
from memory_store.errors import HmnError
from memory_store.leases import ReadLease
from memory_store.manifest import Manifest, Part, generations, manifest_path
from memory_store.manifest_format import from_bytes
from memory_store.parts import (
    FACTS_SCHEMA,
    dead_rows,
    fact_ids_of,
    live_rows,
    open_part,
    take_rows,
    vectors_of,
    vectors_schema,
)
from memory_store.storage import Storage
from memory_store.vectors import StoredVectors, max_norm

# N facts of a part, F of them in one earlier part, S sampled ids of all earlier parts, D dimension

__all__ = ["EarlierVectors", "WholePart", "earlier_vectors", "vectors_of_generation"]

_MOST_LOOKED_AT = 16  # generations; an encoder that is new, as at every refresh of training, is looked for in vain
_SAMPLED = 256  # ids of each earlier part
_LEAST_SHARE = 1 / 64  # of an earlier part's rows: reading it for fewer takes about as long as to embed them
_SMALL_ROWS = 8192  # a part of so few rows, as upserts leave them, is read for any
_ROWS_AT_ONCE = 8192

_Content = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True)
class WholePart:
    """A vectors part of an earlier generation that holds the vectors of all facts of a part, and its largest norm."""

    part: Part
    max_norm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierVectors:
    """What one earlier generation has; nothing by default. Can be pickled; small, however many facts there are.

    generation: the earlier one; dim, dtype: of its vectors. unchanged: the vectors parts of facts parts that are there
    now too, byte by byte. others: (facts part, vectors part) of those that are not; dead: their rows that are deleted
    or overwritten, by path; sample_S: ids of their rows, sorted; sample_part_S: in which of them each is.
    """

    generation: int | None = None
    dim: int = 0
    dtype: str = "float32"
    unchanged: Mapping[_Content, Part] = field(default_factory=dict)
    others: Sequence[tuple[Part, Part]] = ()
    dead: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    sample_S: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sample_part_S: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def whole(self, storage: Storage, part: Part) -> WholePart | None:
        """The vectors of a facts part that has not changed; None if there are none, or they are gone or damaged."""
        known = self.unchanged.get(_content(part))
        if known is None:
            return None
        try:
            vectors = open_part(storage, known, vectors_schema(self.dim, self.dtype))
            return WholePart(part=known, max_norm=max_norm(vectors_of(vectors)))
        except HmnError:
            return None

    def copy_into(self, storage: Storage, facts: pa.Table, vectors_ND: StoredVectors) -> NDArray[np.bool_]:
        """Fill in the vectors of those facts that the earlier generation held in the same words: which they are, [N].

        facts: rows of FACTS_SCHEMA. vectors_ND: of the earlier vectors' dimension and type; gets their very bits.
        Parts that are gone or damaged are passed over.
        """
        fact_id_N = fact_ids_of(facts)
        known_N = np.zeros(len(fact_id_N), dtype=np.bool_)
        for facts_part, vectors_part in self._likely(fact_id_N):
            if known_N.all():
                break
            with suppress(HmnError):
                old = open_part(storage, facts_part, FACTS_SCHEMA)
                row_F, old_row_F = self._matched(facts_part, old, fact_id_N, known_N)
                stored = open_part(storage, vectors_part, vectors_schema(self.dim, self.dtype))
                if not np.array_equal(fact_ids_of(stored), fact_ids_of(old)):
                    continue
                stored_ND = vectors_of(stored)
                for start in range(0, len(row_F), _ROWS_AT_ONCE):
                    row_n, old_row_n = (rows[start : start + _ROWS_AT_ONCE] for rows in (row_F, old_row_F))
                    same_n = equal_rows(_rows(facts, row_n), _rows(old, old_row_n))
                    vectors_ND[row_n[same_n]] = stored_ND[old_row_n[same_n]]
                    known_N[row_n[same_n]] = True
        return known_N

    def _likely(self, fact_id_N: NDArray[np.int64]) -> list[tuple[Part, Part]]:
        """The earlier parts that hold enough of these facts, by their samples; those with the most of them first."""
        if not len(self.sample_S):
            return []
        rank_N = np.searchsorted(self.sample_S, fact_id_N).clip(max=len(self.sample_S) - 1)
        hit_N = self.sample_S[rank_N] == fact_id_N
        found = np.bincount(self.sample_part_S[rank_N[hit_N]], minlength=len(self.others))
        sampled = np.bincount(self.sample_part_S, minlength=len(self.others))
        is_small = np.array([part.rows <= _SMALL_ROWS for part, _ in self.others])
        enough = np.flatnonzero((found > 0) & (is_small | (found >= _LEAST_SHARE * sampled)))
        return [self.others[number] for number in enough[np.argsort(-found[enough], kind="stable")]]

    def _matched(
        self, part: Part, old: pa.Table, fact_id_N: NDArray[np.int64], known_N: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows [F] of facts that are not known yet, live rows [F] of the earlier part) with the same ids."""
        old_row_O = live_rows(old.num_rows, self.dead.get(part.path))
        old_id_O = fact_ids_of(old)[old_row_O]
        order_O = np.argsort(old_id_O, kind="stable")  # those of an ingest are sorted, those of others need not be
        rank_N = np.searchsorted(old_id_O, fact_id_N, sorter=order_O).clip(max=len(old_id_O) - 1)
        row_F = np.flatnonzero((old_id_O[order_O[rank_N]] == fact_id_N) & ~known_N)
        return row_F, old_row_O[order_O[rank_N[row_F]]]


@contextmanager
def earlier_vectors(
    storage: Storage, now: Manifest, *, encoder: str, dtype: str, dim: int | None = None
) -> Iterator[EarlierVectors]:
    """What the newest generation before `now` that the encoder embedded, into this type, has of the facts of `now`.

    No sweep takes that generation away until the end of the block. dim: None if it is not known. Looks at a few
    manifests; only where one of them names the encoder it reads facts, of the parts that have changed since.
    """
    with closing(ReadLease(storage)) as lease:
        found = None
        known = [number for number in generations(storage) if number < now.generation]
        for number in known[: -_MOST_LOOKED_AT - 1 : -1]:
            manifest = _read(storage, number)
            if manifest is None or (manifest.encoder, manifest.dtype) != (encoder, dtype):
                continue
            if dim in (None, manifest.dim):
                lease.hold([number])
                if number in generations(storage):  # a sweep may have run before it could see the lease
                    found = manifest
                    break
        yield EarlierVectors() if found is None else vectors_of_generation(storage, found, now.facts)


def vectors_of_generation(storage: Storage, earlier: Manifest, facts: Sequence[Part]) -> EarlierVectors:
    """What this generation has of the facts in these parts; for as long as it is not swept."""
    try:
        dead = dead_rows(storage, earlier.facts, earlier.tombstones)
    except HmnError:
        return EarlierVectors()  # of rows that may be overwritten nothing can be told
    copies = Counter(_content(part) for part in facts)
    unchanged: dict[_Content, Part] = {}
    others: list[tuple[Part, Part]] = []
    samples = [np.zeros(0, dtype=np.int64)]
    for facts_part, vectors_part in zip(earlier.facts, earlier.vectors, strict=True):
        # Two parts of facts may be alike, one of them dead; a part of vectors belongs to one of them.
        if copies[_content(facts_part)] == 1 and facts_part.path not in dead:
            unchanged[_content(facts_part)] = vectors_part
            continue
        with suppress(HmnError):
            rows = live_rows(facts_part.rows, dead.get(facts_part.path))
            if len(rows):
                chosen = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED).astype(np.int64))
                samples.append(fact_ids_of(open_part(storage, facts_part, FACTS_SCHEMA))[rows[chosen]])
                others.append((facts_part, vectors_part))
    sample_S = np.concatenate(samples)
    part_S = np.repeat(np.arange(len(others)), [len(sample) for sample in samples[1:]])
    order_S = np.argsort(sample_S, kind="stable")
    return EarlierVectors(
        generation=earlier.generation,
        dim=earlier.dim,
        dtype=earlier.dtype or "float32",
        unchanged=unchanged,
        others=tuple(others),
        dead={part.path: dead[part.path] for part, _ in others if part.path in dead},
        sample_S=sample_S[order_S],
        sample_part_S=part_S[order_S],
    )


def _read(storage: Storage, generation: int) -> Manifest | None:
    """Its manifest; None if it is swept, or damaged."""
    path = manifest_path(generation)
    try:
        return from_bytes(storage.read_bytes(path), storage.where(path), generation)
    except (FileNotFoundError, HmnError):
        return None


def _content(part: Part) -> _Content:
    return (part.checksum, part.bytes, part.rows)


def _rows(table: pa.Table, row_F: NDArray[np.int64]) -> pa.Table:
    """Rows of a table, without a copy where they lie one behind the other."""
    if (np.diff(row_F) == 1).all():
        return table.slice(row_F[0], len(row_F))
    return take_rows(table, row_F)
