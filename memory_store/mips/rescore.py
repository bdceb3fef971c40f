"""The one true score of a row: its inner product with a query, in float64, summed in one fixed order."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import float32_error, scale_exponent
from memory_store.mips.encode import GROUP_ROWS
from memory_store.mips.scratch import Scratch

# D dimension, B queries, P pairs of a query and a row or a group of rows, p of them at once, g rows in a group

__all__ = ["GroupScorer", "ScoredRows", "score_pairs"]

_VALUES_AT_ONCE = 2**20  # few large steps: two workers that hand Python's lock to and fro lose more than a cache gains
_SAFE_EXPONENT = 40  # norms within 2^+-40 can be multiplied in float32 as they are


def score_pairs(
    vectors: ShardVectors,
    rows_P: NDArray[np.int64],
    queries_BD: NDArray[np.float64],
    query_P: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Inner product of row rows_P[p] with query query_P[p], for every pair p.

    The product of two float32 values is exact in float64; the D products are added by numpy's pairwise sum over one
    contiguous row, whose order depends on D alone. Identical rows thus get bit-identical scores, wherever they lie.
    """
    scores_P = np.empty(len(rows_P), dtype=np.float64)
    pairs_at_once = min(max(_VALUES_AT_ONCE // vectors.dim, 1), max(len(rows_P), 1))
    # Buffers are taken once: memory that is new to the process costs more than the arithmetic.
    rows_pD = np.empty((pairs_at_once, vectors.dim), dtype=np.float32)
    factors_pD = np.empty((pairs_at_once, vectors.dim), dtype=np.float64)
    products_pD = np.empty((pairs_at_once, vectors.dim), dtype=np.float64)
    for start in range(0, len(rows_P), pairs_at_once):
        part = slice(start, start + pairs_at_once)
        count = len(rows_P[part])
        products_pD[:count] = vectors.gather(rows_P[part], rows_pD[:count])
        products_pD[:count] *= queries_BD.take(query_P[part], axis=0, out=factors_pD[:count], mode="clip")
        products_pD[:count].sum(axis=1, out=scores_P[part])
    return scores_P


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRows:
    """Pairs of a query and a row, with their true scores."""

    query_P: NDArray[np.int64]
    row_P: NDArray[np.int64]
    score_P: NDArray[np.float64]


class GroupScorer:
    """Finds, in groups of rows, those that may reach a score: by float32 scores first, and their proven error."""

    def __init__(
        self, vectors: ShardVectors, queries_BD: NDArray[np.float64], longest: float, scratch: Scratch
    ) -> None:
        """longest: no row's norm exceeds it."""
        exponent = scale_exponent(longest)
        self._scratch = scratch
        self._vectors = vectors
        self._queries_BD = queries_BD
        self._row_scale = 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0**-exponent
        unit_B = np.ldexp(1.0, np.frexp(np.abs(queries_BD).max(axis=1, initial=0.0))[1])
        self._narrow_BD = torch.from_numpy((queries_BD / unit_B[:, None]).astype(np.float32))
        self._unit_B = unit_B / self._row_scale
        # Beyond the error of the product: queries rounded to float32, the float64 sum, products that vanish.
        relative = float32_error(vectors.dim) + 2.0**-20
        self._error_B = relative * longest * self._row_scale * np.linalg.norm(queries_BD / unit_B[:, None], axis=1)
        self._error_B += vectors.dim * 2.0**-110

    def best(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64], k: int) -> ScoredRows:
        """All rows that may be among the k best in their query's groups.

        Every query has the same number of groups, its pairs stand together, and they hold at least k rows.
        """
        approximate_Pg = self._approximate(query_P, group_P)
        batch = len(self._queries_BD)
        kth_B = -np.partition(-approximate_Pg.reshape(batch, -1), k - 1, axis=1)[:, k - 1]
        return self._score(query_P, group_P, approximate_Pg >= (kth_B - 2 * self._error_B)[query_P, None])

    def reaching(
        self, query_P: NDArray[np.int64], group_P: NDArray[np.int64], floor_B: NDArray[np.float64]
    ) -> ScoredRows:
        """All rows of the groups that may reach their query's floor."""
        approximate_Pg = self._approximate(query_P, group_P)
        return self._score(query_P, group_P, approximate_Pg >= (floor_B / self._unit_B - self._error_B)[query_P, None])

    def _approximate(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of the rows of each group in float32, [P, g], in units of the query; -inf past the last row."""
        dim, num_rows = self._vectors.dim, self._vectors.num_rows
        order_P = np.argsort(group_P)  # rows that lie together are gathered together, whichever query asks
        ordered_group_P = group_P[order_P]
        ordered_query_P = torch.from_numpy(query_P[order_P])
        ordered_Pg = np.empty((len(query_P), GROUP_ROWS), dtype=np.float32)
        groups_at_once = min(max(_VALUES_AT_ONCE // (dim * GROUP_ROWS), 1), max(len(query_P), 1))
        rows_nD = self._scratch.take("rows", (groups_at_once * GROUP_ROWS, dim), torch.float32)
        factors_pD = self._scratch.take("factors", (groups_at_once, dim), torch.float32)
        for start in range(0, len(query_P), groups_at_once):
            part = slice(start, start + groups_at_once)
            gathered_nD = rows_nD[: len(ordered_group_P[part]) * GROUP_ROWS]
            self._vectors.gather_groups(ordered_group_P[part], GROUP_ROWS, gathered_nD.numpy())
            if self._row_scale != 1:
                gathered_nD *= self._row_scale
            asking_p = ordered_query_P[part]
            query_pD = torch.index_select(self._narrow_BD, 0, asking_p, out=factors_pD[: len(asking_p)])
            # One product of a matrix and a vector for each pair; torch's own way takes ten times as long.
            rows_pgD = gathered_nD.numpy().reshape(-1, GROUP_ROWS, dim)
            np.matmul(rows_pgD, query_pD.numpy()[:, :, None], out=ordered_Pg[part, :, None])
        scores_Pg = np.empty(ordered_Pg.shape)
        scores_Pg[order_P] = ordered_Pg
        past_Pg = group_P[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS) >= num_rows
        scores_Pg[past_Pg] = -np.inf
        return scores_Pg

    def _score(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64], near_Pg: NDArray[np.bool_]) -> ScoredRows:
        at_P, offset_P = np.nonzero(near_Pg)
        near_query_P, row_P = query_P[at_P], group_P[at_P] * GROUP_ROWS + offset_P
        score_P = score_pairs(self._vectors, row_P, self._queries_BD, near_query_P)
        return ScoredRows(query_P=near_query_P, row_P=row_P, score_P=score_P)
