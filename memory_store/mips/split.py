"""`split`: facts share their relation's part and their subject's part; the best of each part name the candidates."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.approximate import NO_ROW, SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.coarse import AllMeans
from memory_store.mips.codes import code_width, spare_slots
from memory_store.mips.highest import highest_columns, taken
from memory_store.mips.ivf import build_ivf, default_nlist, ivf_bytes, restore_ivf
from memory_store.mips.kmeans import cluster_at_once
from memory_store.mips.lists import PackedLists
from memory_store.mips.live import LiveRows
from memory_store.mips.options import whole_number
from memory_store.mips.rounded import RoundedVectors
from memory_store.mips.scaled import ScaledRows, unit_rows
from memory_store.mips.shared import shared_columns, values_of
from memory_store.mips.workers import Workers, builders

# N rows, D dimension, V shared values, S subjects (values of the other columns), L clusters of them,
# F shared and E other columns, b queries, P probed, C candidates, K slots, P pairs of a query and a row

__all__ = ["SplitSource", "build_split", "restore_split", "split_bytes"]

_DEFAULT_VALUES = 16  # shared values probed
_PER_VALUE = 1.5  # clusters of subjects scanned for each, and subjects looked at (measured on a million trained facts)
_LEAST_CLUSTERS = 8  # scanned; and at least two subjects per slot of the answer are looked at
_ROWS_PER_SUBJECT = 128  # rows of one subject that are looked at: a subject with more has them in the lists of values
_SPARE = 4  # times the rows that are wanted are taken from codes of 4 bits, and scored in float32
_SPARE_ROWS = 2  # more than the slots of the answer are left after that, to be scored in float64
_LEAST_PER_VALUE = 16  # rows that share a value, on average, below which clusters serve better
_MOST_PER_SUBJECT = 32  # and rows of a subject, above which rows are mere copies
_SAMPLED_POINTS = 64  # per cluster
_ROUNDS = 10
_DEVIATIONS = 2  # of a cluster's scores above their mean, where the best of some dozens is to be expected
_MOST_FOR_DEAD_ROWS = 1024  # so many more are looked at where rows are deleted
_SEED = 0


class SplitSource(CandidateSource):
    """Rows by what they share, and by what they do not.

    A score is the sum of two: that of the shared columns, of which there are few values, so that it is known for all
    rows at once, and that of the others. A row that scores high is high in one of the two. So the rows of the values
    that score highest are scanned, in lists with the value's score added to each; and the subjects that score highest
    are found by an inverted file over subjects, each of which names its few rows. This is the threshold algorithm of
    Fagin, Lotem and Naor (2003), cut short, over the two halves of an inverted multi-index (Babenko and Lempitsky
    2012). What the two name is scored in float32, and the best of that are the candidates.
    """

    effort_name = "values"

    def __init__(
        self,
        rows: ScaledRows,
        shared_D: NDArray[np.bool_],
        values_VF: NDArray[np.float32],
        value_N: NDArray[np.int32],
        lists: PackedLists,
        chooser: AllMeans,
        subjects: PackedLists,
        row_N: NDArray[np.int32],
        ends: NDArray[np.int64],
        values: int,
    ) -> None:
        """lists: other columns, a list per shared value. chooser, subjects: the other columns' different values in
        clusters. row_N, ends: rows by subject, those of subject s at ends[s] to ends[s + 1]."""
        self._rows = rows
        self._shared_D = shared_D
        self._values_VF = values_VF
        self._value_N = value_N
        self._lists = lists
        self._chooser = chooser
        self._subjects = subjects
        self._row_N = row_N
        self._ends = ends
        self._shared_F, self._other_E = np.flatnonzero(shared_D), np.flatnonzero(~shared_D)
        self._values = RoundedVectors(values_VF)  # codes of 4 bits err far more
        self.most_effort = len(values_VF)
        self.default_effort = min(values, self.most_effort)

    @property
    def nbytes(self) -> int:
        arrays = (self._shared_D, self._values_VF, self._value_N, self._row_N, self._ends)
        parts = (self._values, self._lists, self._chooser, self._subjects)
        return sum(array.nbytes for array in arrays) + sum(part.nbytes for part in parts)

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        count = _SPARE * spare_slots(k)
        other_bE = np.ascontiguousarray(queries_bD[:, self._other_E])
        value_bV, unit_b1 = self._values.products(queries_bD[:, self._shared_F])
        value_bP = highest_columns(value_bV, min(effort, self.most_effort))
        dead = 0 if live is None else min(live.dead, _MOST_FOR_DEAD_ROWS)
        by_value = self._lists.scan(other_bE, value_bP, taken(value_bV, value_bP) * unit_b1, count + dead)
        by_subject = self._of_subjects(other_bE, (value_bV, unit_b1), k, effort, dead)
        score_bC = np.concatenate([by_value[0], by_subject[0]], axis=1)
        row_bC = np.concatenate([by_value[1], by_subject[1]], axis=1)
        score_bC[row_bC == NO_ROW] = -np.inf
        if live is not None:
            score_bC[~live.mask_N[row_bC]] = -np.inf
        # The codes' errors hide more of what more effort finds.
        looked_at = count + min(max(effort - _DEFAULT_VALUES, 0), count)
        row_bC = _each_once(score_bC, row_bC, looked_at)
        best_bC = highest_columns(self._rows.scores(row_bC, queries_bD), min(k + _SPARE_ROWS, row_bC.shape[1]))
        found_bC: NDArray[np.int64] = taken(row_bC, best_bC)
        return found_bC

    def arrays(self) -> SavedArrays:
        return {
            "shared": self._shared_D,
            "values": self._values_VF,
            "value_of_row": self._value_N,
            "lists": self._lists.to_bytes(),
            **self._chooser.arrays(),
            "subjects": self._subjects.to_bytes(),
            "rows": self._row_N,
            "ends": self._ends,
            "factor": np.array([self._rows.factor]),
        }

    def _of_subjects(
        self,
        other_bE: NDArray[np.float32],
        products: tuple[NDArray[np.int32 | np.float32], NDArray[np.float32]],
        k: int,
        effort: int,
        dead: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(scores, rows) [b, C] of the rows of the highest subjects; rows are -1 where there are fewer."""
        wanted = round(effort * _PER_VALUE)
        clusters = min(max(wanted, _LEAST_CLUSTERS), self._chooser.num_lists)
        subjects = min(max(wanted, 2 * k) + dead, len(self._ends) - 1)
        cluster_bP = self._chooser.choose(other_bE, clusters)
        nothing_bP = np.zeros(cluster_bP.shape, dtype=np.float32)  # that a cluster would add to its subjects
        subject_score_bS, subject_bS = self._subjects.scan(other_bE, cluster_bP, nothing_bP, subjects)
        # Each subject becomes its rows; one of -1 has none, as the first of ends is 0.
        first_bS = self._ends.take(subject_bS, mode="clip")
        rows_bS = np.minimum(self._ends.take(subject_bS + 1) - first_bS, _ROWS_PER_SUBJECT)
        width_b = rows_bS.sum(axis=1)
        rows_S, ends_S = rows_bS.ravel(), rows_bS.cumsum()
        number_P = np.arange(ends_S[-1])
        row_P = self._row_N.take(number_P + np.repeat(first_bS.ravel() - (ends_S - rows_S), rows_S))
        query_P = np.repeat(np.arange(len(width_b)), width_b)
        score_P = np.repeat(subject_score_bS.ravel(), rows_S)
        value_bV, unit_b1 = products
        value_P = value_bV.take(query_P * value_bV.shape[1] + self._value_N.take(row_P))
        score_P += value_P * np.repeat(unit_b1, width_b)
        # A line of a table for each query, so that the best of all lines are found at once.
        width = int(width_b.max())
        place_P = number_P + np.repeat(np.arange(len(width_b)) * width - (width_b.cumsum() - width_b), width_b)
        score_bC = np.full((len(width_b), width), -np.inf, dtype=np.float32)
        row_bC = np.full(score_bC.shape, NO_ROW, dtype=np.int64)
        score_bC.ravel()[place_P], row_bC.ravel()[place_P] = score_P, row_P
        return score_bC, row_bC


def _each_once(score_bC: NDArray[np.float32], row_bC: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The `count` rows of the highest scores, or all; -1 in the place of those that score -inf or are named twice."""
    best_bK = highest_columns(score_bC, min(count, score_bC.shape[1]))
    row_bK = np.where(np.isfinite(taken(score_bC, best_bK)), taken(row_bC, best_bK), NO_ROW)
    row_bK.sort(axis=1)
    row_bK[:, 1:][row_bK[:, 1:] == row_bK[:, :-1]] = NO_ROW
    return row_bK


def build_split(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Find what the rows share and list them by it; rows that share nothing get the index `ivf` instead."""
    workers = Workers(threads)
    values = _values(spec)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    rows = ScaledRows(vectors)
    shared_D = shared_columns(rows)
    source = None if shared_D is None else _make(rows, shared_D, values, builders(threads))
    if source is None:
        return build_ivf(vectors, IndexSpec("ivf"), threads)
    return ApproximateIndex(vectors, source, workers)


def _make(rows: ScaledRows, shared_D: NDArray[np.bool_], values: int, workers: Workers) -> SplitSource | None:
    shared_F, other_E = np.flatnonzero(shared_D), np.flatnonzero(~shared_D)
    shared, others = values_of(rows, shared_F), values_of(rows, other_E)
    most_subjects = max(rows.num_rows // _MOST_PER_SUBJECT, 2)
    if shared.count * _LEAST_PER_VALUE > rows.num_rows or others.count < most_subjects:
        return None
    other_rows = rows.narrowed(other_E)
    subject_rows = rows.narrowed(other_E, others.first_V)
    nlist = _clusters(others.count)
    rng = np.random.default_rng(_SEED)
    sample_nE = unit_rows(subject_rows.take(subject_rows.sample(_SAMPLED_POINTS * nlist, rng)))
    clusters = cluster_at_once(sample_nE, nlist, rounds=_ROUNDS, rng=rng, workers=workers)
    cluster_S = np.empty(others.count, dtype=np.int64)
    sums_LE = torch.zeros((nlist, len(other_E)))
    square_S = np.empty(others.count, dtype=np.float32)
    for part, block_nE in subject_rows.blocks():
        cluster_S[part] = clusters.nearest(unit_rows(block_nE), workers)
        sums_LE.index_add_(0, torch.from_numpy(cluster_S[part]), torch.from_numpy(block_nE))
        square_S[part] = np.square(block_nE).mean(axis=1)
    used_L, cluster_S = np.unique(cluster_S, return_inverse=True)
    size_L = np.bincount(cluster_S)
    means_LE: NDArray[np.float32] = np.divide(sums_LE.numpy()[used_L], size_L[:, None], dtype=np.float32)
    variance_L = np.bincount(cluster_S, square_S) / size_L - np.square(means_LE).mean(axis=1)
    spread_L = (_DEVIATIONS * np.sqrt(variance_L.clip(min=0))).astype(np.float32)
    lists = PackedLists.build(other_rows, shared.value_N, shared.count, rng, workers)
    subjects = PackedLists.build(subject_rows, cluster_S, len(used_L), rng, workers)
    row_N = np.argsort(others.value_N, kind="stable").astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(np.bincount(others.value_N, minlength=others.count))]).astype(np.int64)
    return SplitSource(
        rows,
        shared_D,
        rows.narrowed(shared_F, shared.first_V).block(0, shared.count),
        shared.value_N.astype(np.int32),
        lists,
        AllMeans(means_LE, spread_L),
        subjects,
        row_N,
        ends,
        values,
    )


def restore_split(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that SplitSource.arrays describes, or IvfSource.arrays where the rows shared nothing."""
    if "shared" not in arrays:
        return restore_ivf(vectors, IndexSpec("ivf"), threads, arrays)

    def own(name: str) -> NDArray[Any]:
        return np.array(arrays[name])

    source = SplitSource(
        ScaledRows.of_factor(vectors, float(arrays["factor"][0])),
        own("shared"),
        own("values"),
        own("value_of_row"),
        PackedLists.from_bytes(arrays["lists"]),
        AllMeans(own("means"), own("spread")),
        PackedLists.from_bytes(arrays["subjects"]),
        own("rows"),
        own("ends"),
        _values(spec),
    )
    return ApproximateIndex(vectors, source, Workers(threads))


def split_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What the index will hold, at most: every row a subject of its own, and one shared value for eight rows."""
    nlist = _clusters(rows)
    lists = PackedLists.planned_bytes(rows, code_width(dim), rows // _LEAST_PER_VALUE)
    subjects = PackedLists.planned_bytes(rows, code_width(dim), nlist)
    numbers = rows * (4 + 4 + 8)  # value_N, row_N, ends
    values = (rows // _LEAST_PER_VALUE + nlist) * 6 * dim + dim  # of both, in float32 and in bfloat16
    return max(lists + subjects + numbers + values, ivf_bytes(IndexSpec("ivf"), rows, dim))


def _clusters(subjects: int) -> int:
    """Twice what an inverted file has where there are subjects enough: a probe of smaller clusters finds more."""
    nlist = default_nlist(subjects)
    return max(min(2 * nlist, subjects // _SAMPLED_POINTS), nlist)


def _values(spec: IndexSpec) -> int:
    return whole_number(spec, "values", _DEFAULT_VALUES)
