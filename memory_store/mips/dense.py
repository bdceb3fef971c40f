"""The last resort and the small case: float64 products with every row, then true scores of all that come near."""

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.encode import copy_rows
from memory_store.mips.live import LiveRows
from memory_store.mips.rescore import score_pairs
from memory_store.mips.shortlist import best_of_pairs
from memory_store.mips.workers import Workers
from memory_store.topk import PartialTopK, merge, select

# N rows, n rows in a block, D dimension, B queries, K slots, P candidate pairs

__all__ = ["first_copies", "search_dense"]

_BLOCK_VALUES = 2**19  # products or row values in a block: 4 MiB of float64
_CROWD = 4  # more candidates than this many times k per query: look closer before scoring them all


def search_dense(
    vectors: ShardVectors, queries_BD: NDArray[np.float64], k: int, workers: Workers, live: LiveRows | None = None
) -> PartialTopK:
    """The top k of the live rows, all of them by default, by float64 products of each; right for any vectors and k."""
    block_rows = max(_BLOCK_VALUES // max(vectors.dim, len(queries_BD)), 64)
    starts = iter(range(0, vectors.num_rows, block_rows))
    nothing = select(np.empty((len(queries_BD), 0), dtype=np.int64), np.empty((len(queries_BD), 0)), k)
    best = [nothing] * workers.count

    def work(worker: int) -> None:
        waiting: list[PartialTopK] = []
        for start in starts:
            row_n = np.arange(start, min(start + block_rows, vectors.num_rows))
            row_n = row_n if live is None else row_n[live.mask_N[start : start + block_rows]]
            if len(row_n):
                waiting.append(_search_block(vectors, row_n, queries_BD, k, best[worker]))
            if sum(found.fact_ids_BK.shape[1] for found in waiting) >= k:  # a merge sorts all it is given
                best[worker] = merge([best[worker], *waiting], k)
                waiting.clear()
        best[worker] = merge([best[worker], *waiting], k)

    workers.run(work)
    return merge(best, k)


def _search_block(
    vectors: ShardVectors, row_n: NDArray[np.int64], queries_BD: NDArray[np.float64], k: int, so_far: PartialTopK
) -> PartialTopK:
    """The best of a block of rows, ascending, at most k: only those that come before the last of the k best so far."""
    batch, dim = queries_BD.shape
    num_rows, fact_id_n = len(row_n), vectors.fact_ids_N[row_n]
    block_nD = np.empty((num_rows, dim), dtype=np.float32)
    if row_n[-1] - row_n[0] < num_rows:
        copy_rows(vectors, int(row_n[0]), 1.0, block_nD)
    else:
        vectors.gather(row_n, block_nD)
    wide_nD = block_nD.astype(np.float64)
    products_Bn = torch.mm(torch.from_numpy(queries_BD), torch.from_numpy(wide_nD).t()).numpy()
    # The product and the true score add the same exact terms, each in its own order.
    longest = np.sqrt(np.square(wide_nD).sum(axis=1).max())
    slack_B = np.linalg.norm(queries_BD, axis=1) * longest * (dim + 8) * 2.0**-51
    floor_B, floor_id_B = so_far.scores_BK[:, -1], so_far.fact_ids_BK[:, -1]
    near_Bn = products_Bn >= (floor_B - slack_B)[:, None]
    crowd = _CROWD * k * batch
    if num_rows > k and np.count_nonzero(near_Bn) > crowd:
        near_Bn &= first_copies(block_nD, fact_id_n, k)
        if np.count_nonzero(near_Bn) > crowd:
            kth_B = np.partition(products_Bn, num_rows - k, axis=1)[:, num_rows - k]
            near_Bn &= products_Bn >= (kth_B - 2 * slack_B)[:, None]
    query_P, column_P = np.nonzero(near_Bn)
    fact_id_P = fact_id_n[column_P]
    score_P = score_pairs(vectors, row_n[column_P], queries_BD, query_P)
    # Where many rows tie with the floor, most come after it by their id; sorting them would take longer than scoring.
    last_P, last_id_P = floor_B[query_P], floor_id_B[query_P]
    before_P = (score_P > last_P) | ((score_P == last_P) & (fact_id_P < last_id_P))
    return best_of_pairs(query_P[before_P], fact_id_P[before_P], score_P[before_P], batch=batch, k=min(k, num_rows))


def first_copies(rows_nD: NDArray[np.float32], fact_ids_n: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """False for rows that k identical rows of smaller id precede: they score the same, so no top k needs them."""
    bits_nD = (rows_nD + np.float32(0)).view(np.uint32).astype(np.uint64)  # adding 0 turns -0 into 0
    multipliers_D = np.random.default_rng(0).integers(2**64, size=rows_nD.shape[1], dtype=np.uint64) | np.uint64(1)
    hash_n = (bits_nD * multipliers_D).sum(axis=1, dtype=np.uint64)
    order_n = np.lexsort((fact_ids_n, hash_n))
    ordered_nD = bits_nD[order_n]
    # Equal hashes bring identical rows together; only identical values make them copies.
    starts_n = np.ones(len(order_n), dtype=np.bool_)
    starts_n[1:] = (ordered_nD[1:] != ordered_nD[:-1]).any(axis=1)
    positions_n = np.arange(len(order_n))
    copy_n = positions_n - np.maximum.accumulate(np.where(starts_n, positions_n, 0))
    keep_n = np.empty(len(order_n), dtype=np.bool_)
    keep_n[order_n] = copy_n < k
    return keep_n
