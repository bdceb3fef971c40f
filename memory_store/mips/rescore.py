"""The one true score of a row: its inner product with a query, in float64, summed in one fixed order."""

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors

# D dimension, B queries, P pairs of a row and a query

__all__ = ["score_pairs"]

_PAIRS_AT_ONCE = 2048  # 2048 pairs of 128 values keep the float64 products inside a 2 MiB cache


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
    for start in range(0, len(rows_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        products_PD = vectors.gather(rows_P[part]).astype(np.float64)
        products_PD *= queries_BD[query_P[part]]
        products_PD.sum(axis=1, out=scores_P[part])
    return scores_P
