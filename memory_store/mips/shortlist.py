"""From upper bounds to proven answers: which groups of rows may hold a top-k row, and what their rows truly score."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import round_down_float32
from memory_store.mips.encode import BAND_GROUPS, GROUP_ROWS
from memory_store.mips.rescore import GroupScorer, ScoredRows
from memory_store.mips.scratch import Scratch
from memory_store.topk import NO_FACT, PartialTopK, merge

# G groups of rows in a band, S bands, b queries, K slots, m groups per query, P pairs of a query and a group or row

__all__ = ["GroupUpperBounds", "Settled", "best_of_pairs", "settle"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupUpperBounds:
    """What a scan leaves: no row of group g in band s scores more than bounds_SGb[s, g, b] * unit_b[b] with query b.

    bounds_SGb: float32, -inf where there is no group; settling overwrites it. bands_Sb: the maximum over each band.
    """

    bounds_SGb: NDArray[np.float32]
    bands_Sb: NDArray[np.float32]
    unit_b: NDArray[np.float64]

    def of_queries(self, wanted: slice | NDArray[np.bool_]) -> "GroupUpperBounds":
        """The bounds of some of the queries; a view where they are a slice."""
        return GroupUpperBounds(
            bounds_SGb=self.bounds_SGb[:, :, wanted], bands_Sb=self.bands_Sb[:, wanted], unit_b=self.unit_b[wanted]
        )


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
    bounds: GroupUpperBounds,
    *,
    longest: float,
    scratch: Scratch,
    more_groups: int,
    most_groups: int,
) -> Settled:
    """Turn the bounds of a scan into the top k, exactly, for queries that need at most about most_groups groups each.

    First the k groups of the highest bounds are scored: their k-th best true score is a floor that the answer cannot
    lie below. Then every group whose bound reaches the floor is scored too. What is left out lies below the floor.

    Where too many groups reach it, a few groups with wide bounds may have kept better ones out of the first k: then
    more_groups groups are scored to raise the floor, once. longest: no row's norm exceeds it. The index holds at least
    k + more_groups groups.
    """
    shortlist = _Shortlist(vectors, queries_bD, k, bounds, longest, scratch)
    shortlist.score_first()
    settled_b = shortlist.score_reaching(most_groups)
    answer, looked_at_groups = shortlist.answer, shortlist.looked_at_groups
    if not settled_b.all():
        left_b = ~settled_b
        again = _Shortlist(vectors, queries_bD[left_b], k, bounds.of_queries(left_b), longest, scratch)
        again.answer = _rows_of(answer, left_b)
        again.score_highest(more_groups)
        settled_b[left_b] = again.score_reaching(most_groups)
        answer.fact_ids_BK[left_b], answer.scores_BK[left_b] = again.answer.fact_ids_BK, again.answer.scores_BK
        looked_at_groups += again.looked_at_groups
    return Settled(answer=answer, settled_b=settled_b, looked_at_rows=looked_at_groups * GROUP_ROWS)


class _Shortlist:
    """A batch of queries on the way to its answers: the best rows found so far, and the bounds of groups not scored."""

    def __init__(
        self,
        vectors: ShardVectors,
        queries_bD: NDArray[np.float64],
        k: int,
        bounds: GroupUpperBounds,
        longest: float,
        scratch: Scratch,
    ) -> None:
        self.answer = PartialTopK(
            fact_ids_BK=np.full((len(queries_bD), k), NO_FACT), scores_BK=np.full((len(queries_bD), k), -np.inf)
        )
        self.looked_at_groups = 0
        self._batch, self._k = len(queries_bD), k
        self._fact_ids_N = vectors.fact_ids_N
        self._bounds = bounds
        self._scorer = GroupScorer(vectors, queries_bD, longest, scratch)

    def score_first(self) -> None:
        """Score the k groups of highest bounds, which sets the floor: the k-th best score so far."""
        query_P, group_P = self._take_highest(self._k)
        self._add(self._scorer.best(query_P, group_P, self._k))

    def score_highest(self, count: int) -> None:
        """Score `count` more groups per query, of the highest bounds, to raise the floor."""
        query_P, group_P = self._take_highest(count)
        self._add(self._scorer.reaching(query_P, group_P, self._floor_b))

    def score_reaching(self, most_groups: int) -> NDArray[np.bool_]:
        """Score every group whose bound reaches the floor; False for queries with more than most_groups of them."""
        bounds = self._bounds
        limit_b = round_down_float32(self._floor_b / bounds.unit_b)
        band_P, banded_P = np.nonzero(bounds.bands_Sb >= limit_b)
        settled_b: NDArray[np.bool_] = np.bincount(banded_P, minlength=self._batch) <= most_groups
        band_P, banded_P = band_P[settled_b[banded_P]], banded_P[settled_b[banded_P]]
        at_P, offset_P = np.nonzero(bounds.bounds_SGb[band_P, :, banded_P] >= limit_b[banded_P, None])
        query_P, group_P = banded_P[at_P], band_P[at_P] * BAND_GROUPS + offset_P
        settled_b &= np.bincount(query_P, minlength=self._batch) <= most_groups
        query_P, group_P = query_P[settled_b[query_P]], group_P[settled_b[query_P]]
        self.looked_at_groups += len(group_P)
        self._add(self._scorer.reaching(query_P, group_P, self._floor_b))
        return settled_b

    @property
    def _floor_b(self) -> NDArray[np.float64]:
        return self.answer.scores_BK[:, -1]

    def _take_highest(self, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(query, group) of the m groups of highest bound per query, which are then marked as scored."""
        bounds_SGb, queries_b = self._bounds.bounds_SGb, np.arange(self._batch)
        # They lie in the m bands of highest maximum. A band whose groups were scored keeps its maximum: still a bound.
        width = min(m, len(bounds_SGb))
        band_bs = torch.topk(torch.from_numpy(self._bounds.bands_Sb), width, dim=0).indices.numpy().T
        members_bg = bounds_SGb[band_bs, :, queries_b[:, None]].reshape(self._batch, width * BAND_GROUPS)
        member_bm = torch.topk(torch.from_numpy(members_bg), m, dim=1).indices.numpy()
        band_bm, offset_bm = np.take_along_axis(band_bs, member_bm // BAND_GROUPS, axis=1), member_bm % BAND_GROUPS
        bounds_SGb[band_bm, offset_bm, queries_b[:, None]] = -np.inf
        self.looked_at_groups += member_bm.size
        return np.repeat(queries_b, m), (band_bm * BAND_GROUPS + offset_bm).ravel()

    def _add(self, rows: ScoredRows) -> None:
        if len(rows.row_P):
            found = best_of_pairs(
                rows.query_P, self._fact_ids_N[rows.row_P], rows.score_P, batch=self._batch, k=self._k
            )
            self.answer = merge([self.answer, found], self._k)


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


def _rows_of(answer: PartialTopK, wanted_B: NDArray[np.bool_]) -> PartialTopK:
    return PartialTopK(fact_ids_BK=answer.fact_ids_BK[wanted_B], scores_BK=answer.scores_BK[wanted_B])
