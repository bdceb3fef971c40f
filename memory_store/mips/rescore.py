"""The one true score of a row: its inner product with a query, in float64, summed in one fixed order."""

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import float32_error, round_down_float32, scale_exponent
from memory_store.mips.encode import GROUP_ROWS
from memory_store.mips.in_place import products_in_place
from memory_store.mips.scratch import Scratch

# D dimension, B queries, P pairs of a query and a row or a group of rows, p of them at once, g rows in a group

__all__ = ["GroupScorer", "NarrowQueries", "score_pairs"]

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


class NarrowQueries:
    """Queries in float32, each in a unit of its own, and what the error of float32 leaves open of their products."""

    def __init__(self, queries_BD: NDArray[np.float64], longest: float, *, row_scale: float = 1.0) -> None:
        """longest: no row's norm exceeds it. row_scale: what rows are multiplied with before they are."""
        dim = queries_BD.shape[1]
        unit_B = np.ldexp(1.0, np.frexp(np.abs(queries_BD).max(axis=1, initial=0.0))[1])
        self.queries_BD = torch.from_numpy((queries_BD / unit_B[:, None]).astype(np.float32))
        self._unit_B = unit_B / row_scale
        # Beyond the error of the product: queries rounded to float32, the float64 sum, products that vanish.
        relative = float32_error(dim) + 2.0**-20
        self._error_B = relative * longest * row_scale * np.linalg.norm(queries_BD / unit_B[:, None], axis=1)
        self._error_B += dim * 2.0**-110

    @staticmethod
    def row_scale(longest: float) -> float:
        """What rows must be multiplied with so that float32 can hold their products; mostly 1."""
        exponent = scale_exponent(longest)
        return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0**-exponent

    def near_limit(self, kth_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of lower scores are not among the k best, given that k rows score kth_B or more."""
        return round_down_float32(kth_B - 2 * self._error_B)

    def true_floor(self, kth_B: NDArray[np.float32]) -> NDArray[np.float64]:
        """What the true scores of k rows reach, given that k rows score kth_B or more here."""
        floor_B: NDArray[np.float64] = (kth_B - self._error_B) * self._unit_B
        return floor_B


class GroupScorer:
    """Scores of whole groups of rows in float32, in units of each query."""

    def __init__(
        self, vectors: ShardVectors, queries_BD: NDArray[np.float64], longest: float, scratch: Scratch
    ) -> None:
        """longest: no row's norm exceeds it."""
        self._scratch = scratch
        self._vectors = vectors
        self._row_scale = NarrowQueries.row_scale(longest)
        self.queries = NarrowQueries(queries_BD, longest, row_scale=self._row_scale)

    def scores(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows of each group with its query, [P, g]; -inf past the last row."""
        faiss.omp_set_num_threads(1)  # of this thread alone
        order_P = np.argsort(group_P)  # rows that lie together are read together, whichever query asks
        ordered_Pg = np.empty((len(query_P), GROUP_ROWS), dtype=np.float32)
        groups_at_once = min(max(_VALUES_AT_ONCE // self._vectors.dim, 1), max(len(query_P), 1))
        query_pD = self._scratch.take("factors", (groups_at_once, self._vectors.dim), torch.float32)
        for start in range(0, len(query_P), groups_at_once):
            part_p = order_P[start : start + groups_at_once]
            asking_pD = torch.index_select(
                self.queries.queries_BD, 0, torch.from_numpy(query_P[part_p]), out=query_pD[: len(part_p)]
            )
            self._score(group_P[part_p], asking_pD.numpy(), ordered_Pg[start : start + len(part_p)])
        scores_Pg = np.empty_like(ordered_Pg)
        scores_Pg[order_P] = ordered_Pg
        last, within = divmod(self._vectors.num_rows, GROUP_ROWS)
        if within:
            scores_Pg[group_P == last, within:] = -np.inf
        return scores_Pg

    def _score(self, group_p: NDArray[np.int64], query_pD: NDArray[np.float32], score_pg: NDArray[np.float32]) -> None:
        """Groups ascending. Those in one chunk of float32 are read where they lie: a copy takes four times as long."""
        left_p = np.ones(len(group_p), dtype=np.bool_)
        in_place = self._vectors.groups_in_chunks(group_p, GROUP_ROWS) if self._row_scale == 1 else ()
        for chunk, start, here in in_place:
            row_pg = (group_p[here, None] * GROUP_ROWS - start) + np.arange(GROUP_ROWS)
            products_in_place(chunk, row_pg, query_pD[here], score_pg[here])
            left_p[here] = False
        if left_p.any():
            score_pg[left_p] = self._score_copies(group_p[left_p], query_pD[left_p])

    def _score_copies(self, group_p: NDArray[np.int64], query_pD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Groups that lie in two chunks, at the end, or in another format."""
        dim = self._vectors.dim
        score_pg = np.empty((len(group_p), GROUP_ROWS), dtype=np.float32)
        groups_at_once = min(max(_VALUES_AT_ONCE // (dim * GROUP_ROWS), 1), len(group_p))
        rows_nD = self._scratch.take("rows", (groups_at_once * GROUP_ROWS, dim), torch.float32).numpy()
        for start in range(0, len(group_p), groups_at_once):
            part = slice(start, start + groups_at_once)
            copied_nD = rows_nD[: len(group_p[part]) * GROUP_ROWS]
            self._vectors.gather_groups(group_p[part], GROUP_ROWS, copied_nD)
            if self._row_scale != 1:
                copied_nD *= np.float32(self._row_scale)
            # One product of a matrix and a vector for each pair; torch's own way takes ten times as long.
            rows_pgD = copied_nD.reshape(-1, GROUP_ROWS, dim)
            np.matmul(rows_pgD, query_pD[part, :, None], out=score_pg[part, :, None])
        return score_pg
