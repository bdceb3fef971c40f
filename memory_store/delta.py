"""Search by an index that knows nothing of deletes, where some of its rows are dead: right without rebuilding it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.base import MipsIndex
from memory_store.topk import NO_FACT, PartialTopK

# B queries, K slots, W slots asked of the index, N rows, M dead ids, b queries that are not settled yet

__all__ = ["is_in", "search_live"]

Exhaustively = Callable[[NDArray[np.float32], int], PartialTopK]
"""(queries, k) -> the best k live rows, by looking at every one of them."""

_LEAST_EXTRA = 4
_GROWTH = 4


def search_live(
    index: MipsIndex,
    num_rows: int,
    dead_ids_M: NDArray[np.int64],
    queries_BD: NDArray[np.float32],
    k: int,
    exhaustively: Exhaustively,
) -> PartialTopK:
    """The k best live rows of an index that also holds dead ones.

    num_rows: rows of the index, dead_ids_M: sorted ids of those that are dead. The index is asked for a few more rows
    than k, and for more again by the queries that too many dead rows came near. All rows behind the last one it
    returned rank behind it, so k live ones among them are the k best of what it looked at. A query for which it finds
    too few rows, some of them dead, is answered exhaustively: nobody gets fewer answers because of tombstones.
    """
    if not len(dead_ids_M):
        return index.search(queries_BD, k)
    answer = PartialTopK(
        fact_ids_BK=np.full((len(queries_BD), k), NO_FACT, dtype=np.int64),
        scores_BK=np.full((len(queries_BD), k), -np.inf),
    )
    enough = min(k, num_rows - len(dead_ids_M))  # live rows to find
    most = k + len(dead_ids_M)  # whatever is dead, so many hold k live rows or all there are
    expected_dead = -(-2 * k * len(dead_ids_M) // num_rows)
    width = min(k + max(expected_dead, _LEAST_EXTRA), most)
    pending_b = np.arange(len(queries_BD))
    while enough and len(pending_b):
        found = index.search(queries_BD[pending_b], width)
        real_bW = found.fact_ids_BK != NO_FACT
        live_bW = real_bW & ~is_in(found.fact_ids_BK, dead_ids_M)
        live_b = live_bW.sum(axis=1)
        ran_out_b = ~real_bW[:, -1]
        # An index that ran out of rows without meeting a dead one says all it has to say.
        settled_b = (live_b >= enough) | (ran_out_b & (live_b == real_bW.sum(axis=1)))
        _fill(answer, pending_b[settled_b], _first_live(found, live_bW, k, settled_b))
        hopeless_b = ~settled_b & (ran_out_b | (width >= most))
        if hopeless_b.any():
            stuck = pending_b[hopeless_b]
            _fill(answer, stuck, exhaustively(queries_BD[stuck], k))
        pending_b = pending_b[~settled_b & ~hopeless_b]
        width = min(width * _GROWTH, most)
    return answer


def is_in(ids_bW: NDArray[np.int64], sorted_M: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the numbers are among the sorted ones, of which there is at least one. Costs what is asked for."""
    rank_bW = np.searchsorted(sorted_M, ids_bW).clip(max=len(sorted_M) - 1)
    found_bW: NDArray[np.bool_] = sorted_M[rank_bW] == ids_bW
    return found_bW


def _first_live(found: PartialTopK, live_bW: NDArray[np.bool_], k: int, chosen_b: NDArray[np.bool_]) -> PartialTopK:
    """The first k live slots of the chosen queries, in their order."""
    live_bW = live_bW[chosen_b]
    order_bW = np.argsort(~live_bW, axis=1, kind="stable")[:, :k]
    live_bK = np.take_along_axis(live_bW, order_bW, axis=1)
    ids_bK = np.take_along_axis(found.fact_ids_BK[chosen_b], order_bW, axis=1)
    scores_bK = np.take_along_axis(found.scores_BK[chosen_b], order_bW, axis=1)
    return PartialTopK(fact_ids_BK=np.where(live_bK, ids_bK, NO_FACT), scores_BK=np.where(live_bK, scores_bK, -np.inf))


def _fill(answer: PartialTopK, queries_b: NDArray[np.int64], found: PartialTopK) -> None:
    answer.fact_ids_BK[queries_b] = found.fact_ids_BK
    answer.scores_BK[queries_b] = found.scores_BK
