"""From upper bounds to proven answers: which groups of rows may hold a top-k row, and what their rows truly score."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import round_down_float32
from memory_store.mips.encode import BAND_GROUPS, GROUP_ROWS
from memory_store.mips.rescore import GroupScorer
from memory_store.topk import NO_FACT, PartialTopK, merge

# G groups of rows in a band, S bands, b queries, K slots, m groups per query, P pairs of a query and a group

__all__ = ["Settled", "best_of_pairs", "settle"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """Proven answers. Where settled_b is False, too many rows came near the top k, and the answer is not to be used."""

    answer: PartialTopK
    settled_b: NDArray[np.bool_]
    looked_at_rows: int


def settle(
    vectors: ShardVectors,
    queries_bD: NDArray[np.float64],
    k: int,
    *,
    unit_b: NDArray[np.float64],
    bounds_SGb: NDArray[np.float32],
    bands_Sb: NDArray[np.float32],
    most_groups: int,
    longest: float,
) -> Settled:
    """Turn the bounds of a scan into the top k, exactly, for queries that need at most most_groups groups each.

    First the k groups of the highest bounds are scored: their k-th best true score is a floor that the answer cannot
    lie below. Then every group whose bound reaches the floor is scored too. What is left out lies below the floor.

    bounds_SGb: upper bounds in units of the query, -inf where there is no group; overwritten. bands_Sb: their maxima.
    longest: no row's norm exceeds it. There must be at least k groups.
    """
    batch = len(queries_bD)
    scorer = GroupScorer(vectors, queries_bD, longest)
    first_bm = _best_groups(bounds_SGb, bands_Sb, k)
    bounds_SGb[first_bm // BAND_GROUPS, first_bm % BAND_GROUPS, np.arange(batch)[:, None]] = -np.inf
    first = scorer.best(np.repeat(np.arange(batch), k), first_bm.ravel(), k)
    answer = best_of_pairs(first[0], vectors.fact_ids_N[first[1]], first[2], batch=batch, k=k)
    floor_b = answer.scores_BK[:, -1]

    limit_b = round_down_float32(floor_b / unit_b)
    band_P, banded_P = np.nonzero(bands_Sb >= limit_b)
    settled_b = np.bincount(banded_P, minlength=batch) <= most_groups
    band_P, banded_P = band_P[settled_b[banded_P]], banded_P[settled_b[banded_P]]
    at_P, offset_P = np.nonzero(bounds_SGb[band_P, :, banded_P] >= limit_b[banded_P, None])
    query_P, group_P = banded_P[at_P], band_P[at_P] * BAND_GROUPS + offset_P
    settled_b &= np.bincount(query_P, minlength=batch) <= most_groups
    query_P, group_P = query_P[settled_b[query_P]], group_P[settled_b[query_P]]
    second = scorer.reaching(query_P, group_P, floor_b)
    if len(second[0]):
        found = best_of_pairs(second[0], vectors.fact_ids_N[second[1]], second[2], batch=batch, k=k)
        answer = merge([answer, found], k)
    return Settled(answer=answer, settled_b=settled_b, looked_at_rows=GROUP_ROWS * (first_bm.size + len(group_P)))


def best_of_pairs(
    query_P: NDArray[np.int64], fact_id_P: NDArray[np.int64], score_P: NDArray[np.float64], *, batch: int, k: int
) -> PartialTopK:
    """The best k of each query's pairs by (score descending, id ascending), padded with -1; pairs come in any order."""
    order_P = np.lexsort((fact_id_P, -score_P, query_P))
    query_P = query_P[order_P]
    count_B = np.bincount(query_P, minlength=batch)
    slot_P = np.arange(len(query_P)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    kept_P = slot_P < k
    ids_BK = np.full((batch, k), NO_FACT, dtype=np.int64)
    scores_BK = np.full((batch, k), -np.inf)
    ids_BK[query_P[kept_P], slot_P[kept_P]] = fact_id_P[order_P[kept_P]]
    scores_BK[query_P[kept_P], slot_P[kept_P]] = score_P[order_P[kept_P]]
    return PartialTopK(fact_ids_BK=ids_BK, scores_BK=scores_BK)


def _best_groups(bounds_SGb: NDArray[np.float32], bands_Sb: NDArray[np.float32], m: int) -> NDArray[np.int64]:
    """The m groups of highest bound per query, [b, m]. They lie in the m bands of highest maximum."""
    num_bands, batch = bands_Sb.shape
    taken = min(m, num_bands)
    band_bs = torch.topk(torch.from_numpy(bands_Sb), taken, dim=0).indices.numpy().T
    members_bg = bounds_SGb[band_bs, :, np.arange(batch)[:, None]].reshape(batch, taken * BAND_GROUPS)
    member_bm = torch.topk(torch.from_numpy(members_bg), m, dim=1).indices.numpy()
    best_band_bm = np.take_along_axis(band_bs, member_bm // BAND_GROUPS, axis=1)
    best_bm: NDArray[np.int64] = best_band_bm * BAND_GROUPS + member_bm % BAND_GROUPS
    return best_bm
