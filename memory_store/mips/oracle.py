"""The exact answer by brute force in float64: slow, obvious, and what every index is graded against."""

import numpy as np
from numpy.typing import NDArray

from memory_store.topk import PartialTopK, select

# N rows, D dimension, B queries

__all__ = ["exhaustive_search"]


def exhaustive_search(
    fact_ids_N: NDArray[np.int64], vectors_ND: NDArray[np.floating], queries_BD: NDArray[np.floating], k: int
) -> PartialTopK:
    """Score every row against every query in float64 and sort by (score descending, id ascending)."""
    vectors64_ND = np.ascontiguousarray(vectors_ND, dtype=np.float64)
    queries64_BD = np.asarray(queries_BD, dtype=np.float64)
    scores_BN = np.empty((len(queries64_BD), len(vectors64_ND)), dtype=np.float64)
    for number, query_D in enumerate(queries64_BD):
        scores_BN[number] = (vectors64_ND * query_D).sum(axis=1)
    return select(np.broadcast_to(fact_ids_N, scores_BN.shape), scores_BN, k)
