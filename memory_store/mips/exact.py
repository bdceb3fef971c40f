"""The default index: exact search by scanning every row, proven equal to float64 brute force."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.base import MipsIndex, ShardVectors, check_queries
from memory_store.mips.rescore import score_pairs
from memory_store.topk import PartialTopK, merge, select

# N rows in the shard, n rows in a block, D dimension, B queries, K slots, P candidate pairs

__all__ = ["ExactIndex", "build_exact"]

_BLOCK_ROWS = 8192


class ExactIndex:
    """Exact search: a float64 product per block of rows, then the true score of every row that may be in the top k."""

    def __init__(self, vectors: ShardVectors) -> None:
        self._vectors = vectors

    @property
    def nbytes(self) -> int:
        return 0

    def search(self, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The k facts of largest inner product per query; see MipsIndex.search."""
        queries64_BD = check_queries(queries_BD, self._vectors.dim, k).astype(np.float64)
        batch = len(queries64_BD)
        nothing = np.empty((batch, 0), dtype=np.int64)
        best = select(nothing, nothing.astype(np.float64), k)
        for start in range(0, self._vectors.num_rows, _BLOCK_ROWS):
            rows_n = np.arange(start, min(start + _BLOCK_ROWS, self._vectors.num_rows))
            best = merge([best, self._search_block(rows_n, queries64_BD, k)], k)
        return best

    def _search_block(self, rows_n: NDArray[np.int64], queries64_BD: NDArray[np.float64], k: int) -> PartialTopK:
        block_nD = self._vectors.gather(rows_n).astype(np.float64)
        scores_Bn = queries64_BD @ block_nD.T
        # A product's order of summation may differ from the true score's: 2 D units of |q| |x| cover both.
        norms_n = np.linalg.norm(block_nD, axis=1)
        slack_B = np.linalg.norm(queries64_BD, axis=1) * norms_n.max() * (2 * self._vectors.dim + 8) * 2.0**-52
        at = max(len(rows_n) - k, 0)
        threshold_B = np.partition(scores_Bn, at, axis=1)[:, at] - 2 * slack_B
        query_P, column_P = np.nonzero(scores_Bn >= threshold_B[:, None])
        scores_P = score_pairs(self._vectors, rows_n[column_P], queries64_BD, query_P)
        counts_B = np.bincount(query_P, minlength=len(queries64_BD))
        slot_P = np.arange(len(query_P)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
        ids_BC = np.full((len(queries64_BD), counts_B.max()), -1, dtype=np.int64)
        scores_BC = np.full(ids_BC.shape, -np.inf)
        ids_BC[query_P, slot_P] = self._vectors.fact_ids_N[rows_n[column_P]]
        scores_BC[query_P, slot_P] = scores_P
        return select(ids_BC, scores_BC, k)


def build_exact(vectors: ShardVectors, options: Mapping[str, str], threads: int) -> MipsIndex:
    """Build the index `exact`."""
    return ExactIndex(vectors)
