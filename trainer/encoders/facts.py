"""Fact features as an encoder wants them: every distinct subject and every distinct relation of a batch just once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.errors import InputError
from pipeline.features import Ragged

# C facts, S distinct subjects, R distinct relations, M names of all distinct subjects together

__all__ = ["FEATURE_COLUMNS", "FactFeatures", "take_lists"]

Value = TypeVar("Value", bound=np.generic)

FEATURE_COLUMNS = ("fact_id", "features")
"""The columns of a facts table that `FactFeatures.from_table` reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FactFeatures:
    """Facts as pairs (subject, relation), both given once: most facts of a memory share them with others.

    names: the M names' features; subject s has the names name_bounds[s] to name_bounds[s + 1]. relations: the R
    relations' features. subject_C, relation_C: which subject and relation each fact has.
    """

    names: Ragged
    name_bounds: NDArray[np.int64]
    relations: Ragged
    subject_C: NDArray[np.int64]
    relation_C: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.subject_C)

    @classmethod
    def from_table(cls, facts: pa.Table) -> "FactFeatures":
        """Read the column `features` of a facts table; subjects and relations are equal when their features are."""
        column = facts["features"]
        if column.null_count:
            raise InputError(
                f"expected features for all {len(facts)} facts, found {column.null_count} without; "
                "facts written without `hmn ingest` need the column `features` (pipeline.features)"
            )
        struct = column.combine_chunks()
        if isinstance(struct, pa.ChunkedArray):  # an empty column stays chunked
            struct = pa.concat_arrays(struct.chunks) if struct.num_chunks else pa.array([], struct.type)
        subject_lists = struct.field("subject").slice(struct.offset, len(struct))
        relation_lists = struct.field("relation").slice(struct.offset, len(struct))
        name_bounds, names_array = _opened(subject_lists)
        each_C = np.arange(len(facts), dtype=np.int64)
        return cls._distinct(_ragged(names_array), name_bounds, _ragged(relation_lists), each_C, each_C)

    @classmethod
    def join(cls, pieces: "Sequence[FactFeatures]") -> "FactFeatures":
        """The facts of all pieces, one after the other; of no pieces, no facts."""
        subjects = np.cumsum([0, *(len(piece.name_bounds) - 1 for piece in pieces)])
        relations = np.cumsum([0, *(len(piece.relations) for piece in pieces)])
        return cls._distinct(
            _joined([piece.names for piece in pieces]),
            _one_after_another([piece.name_bounds for piece in pieces]),
            _joined([piece.relations for piece in pieces]),
            _numbered([piece.subject_C for piece in pieces], subjects),
            _numbered([piece.relation_C for piece in pieces], relations),
        )

    def take(self, rows_C: NDArray[np.int64]) -> "FactFeatures":
        """These facts alone, as `from_table` would read them: the order of subjects and relations is the same."""
        subject_S, subject_C = np.unique(self.subject_C[rows_C], return_inverse=True)
        relation_R, relation_C = np.unique(self.relation_C[rows_C], return_inverse=True)
        names, name_bounds = _take_subjects(self.names, self.name_bounds, subject_S)
        return FactFeatures(
            names=names,
            name_bounds=name_bounds,
            relations=_take(self.relations, relation_R),
            subject_C=subject_C,
            relation_C=relation_C,
        )

    def reordered(self, rows_C: NDArray[np.int64]) -> "FactFeatures":
        """The same facts in another order."""
        return replace(self, subject_C=self.subject_C[rows_C], relation_C=self.relation_C[rows_C])

    @classmethod
    def _distinct(
        cls,
        names: Ragged,
        name_bounds: NDArray[np.int64],
        relations: Ragged,
        subject_C: NDArray[np.int64],
        relation_C: NDArray[np.int64],
    ) -> "FactFeatures":
        """Every subject and relation once, in the order of their keys."""
        # A subject is the sequence of its names, so its key hashes their keys in order.
        first_S, number_S = _distinct(_keys_of(_list_keys(names), name_bounds))
        first_R, number_R = _distinct(_list_keys(relations))
        names, name_bounds = _take_subjects(names, name_bounds, first_S)
        return cls(
            names=names,
            name_bounds=name_bounds,
            relations=_take(relations, first_R),
            subject_C=number_S[subject_C],
            relation_C=number_R[relation_C],
        )


def take_lists(
    offsets: NDArray[np.int64], values: NDArray[Value], index: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[Value]]:
    """The lists numbered `index` out of a ragged array: (their offsets, their values)."""
    lengths = offsets[index + 1] - offsets[index]
    taken = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    where = np.arange(taken[-1]) + np.repeat(offsets[index] - taken[:-1], lengths)
    return taken, values[where]


def _take_subjects(
    names: Ragged, name_bounds: NDArray[np.int64], subjects: NDArray[np.int64]
) -> tuple[Ragged, NDArray[np.int64]]:
    """(the names of these subjects, their bounds)."""
    bounds, chosen = take_lists(name_bounds, np.arange(len(names), dtype=np.int64), subjects)
    return _take(names, chosen), bounds


def _joined(lists: Sequence[Ragged]) -> Ragged:
    values = np.concatenate([np.zeros(0, np.uint32), *(one.values for one in lists)])
    return Ragged(offsets=_one_after_another([one.offsets for one in lists]), values=values)


def _one_after_another(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of lists that follow each other, each from 0."""
    lengths = np.concatenate([np.zeros(1, np.int64), *map(np.diff, offsets)])
    return np.cumsum(lengths)


def _numbered(numbers: Sequence[NDArray[np.int64]], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers within each piece as numbers within all."""
    moved = (number + start for number, start in zip(numbers, starts, strict=False))
    return np.concatenate([np.zeros(0, np.int64), *moved])


def _take(ragged: Ragged, index: NDArray[np.int64]) -> Ragged:
    offsets, values = take_lists(ragged.offsets, ragged.values, index)
    return Ragged(offsets=offsets, values=values)


def _opened(lists: pa.ListArray) -> tuple[NDArray[np.int64], pa.Array]:
    """(offsets from 0, the flat values they point into) of a list array that may be a slice of a larger one."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _ragged(lists: pa.ListArray) -> Ragged:
    offsets, values = _opened(lists)
    return Ragged(offsets=offsets, values=values.to_numpy(zero_copy_only=False).astype(np.uint32, copy=False))


def _list_keys(ragged: Ragged) -> NDArray[np.uint64]:
    return _keys_of(ragged.values.astype(np.uint64), ragged.offsets)


def _keys_of(value_X: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each list, of its order and length too: different lists of a batch do not collide."""
    lengths = np.diff(offsets)
    place_X = np.arange(len(value_X), dtype=np.uint64) - np.repeat(offsets[:-1], lengths).astype(np.uint64)
    mixed_X = _mix(value_X + (place_X + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed_X, dtype=np.uint64)])
    return _mix(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _distinct(key_C: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    _, first, inverse = np.unique(key_C, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)
