"""From upper bounds to proven answers: which groups of rows may hold a top-k row, and what their rows truly score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import round_down_float32
from memory_store.mips.encode import BAND_GROUPS, GROUP_ROWS
from memory_store.mips.live import LiveRows
from memory_store.mips.rescore import GroupScorer, score_pairs
from memory_store.mips.scratch import Scratch
from memory_store.topk import NO_FACT, PartialTopK

# G groups of rows in a band, S bands, b queries, q of them asked about, k slots, m groups per query,
# P pairs of a query and a group or row, g rows in a group

__all__ = ["GroupUpperBounds", "Settled", "UpperBounds", "best_of_pairs", "settle"]

_MORE_FOR_DEAD_ROWS = 4  # times as many groups at each further look

Array = TypeVar("Array", NDArray[np.float32], Tensor)


@dataclass(frozen=True, kw_only=True, eq=False)
class UpperBounds(ABC, Generic[Array]):
    """What a scan leaves: no row of group g in band s scores more than bounds_SGb[s, g, b] * unit_b[b] with query b.

    bounds_SGb: float32, -inf where there is no group; settling overwrites it. bands_Sb: the maximum over each band.
    """

    bounds_SGb: Array
    bands_Sb: Array
    unit_b: NDArray[np.float64]

    def of_queries(self, wanted: slice) -> Self:
        """The bounds of some of the queries; a view."""
        return replace(
            self,
            bounds_SGb=self.bounds_SGb[:, :, wanted],
            bands_Sb=self.bands_Sb[:, wanted],
            unit_b=self.unit_b[wanted],
        )

    @abstractmethod
    def take_highest(self, m: int, queries_q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(query, group) of the m groups of highest bound of each of these queries, which are then marked as seen."""

    @abstractmethod
    def reaching(
        self, limit_b: NDArray[np.float32], most_groups: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(query, group) of every group not seen whose bound reaches the limit of its query, and which queries have
        few enough of them: of the others, with more than most_groups, there are none."""


class GroupUpperBounds(UpperBounds[NDArray[np.float32]]):
    """Bounds in main memory."""

    def take_highest(self, m: int, queries_q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        bounds_SGb, asked = self.bounds_SGb, len(queries_q)
        # They lie in the m bands of highest maximum. A band whose groups were seen keeps its maximum: still a bound.
        width = min(m, len(bounds_SGb))
        bands_Sq = self.bands_Sb if asked == self.bands_Sb.shape[1] else self.bands_Sb[:, queries_q]
        band_qs = torch.topk(torch.from_numpy(bands_Sq), width, dim=0).indices.numpy().T
        members_qg = bounds_SGb[band_qs, :, queries_q[:, None]].reshape(asked, width * BAND_GROUPS)
        member_qm = torch.topk(torch.from_numpy(members_qg), m, dim=1).indices.numpy()
        band_qm, offset_qm = np.take_along_axis(band_qs, member_qm // BAND_GROUPS, axis=1), member_qm % BAND_GROUPS
        bounds_SGb[band_qm, offset_qm, queries_q[:, None]] = -np.inf
        return np.repeat(queries_q, m), (band_qm * BAND_GROUPS + offset_qm).ravel()

    def reaching(
        self, limit_b: NDArray[np.float32], most_groups: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        batch = len(limit_b)
        band_P, banded_P = np.nonzero(self.bands_Sb >= limit_b)
        few_b = np.bincount(banded_P, minlength=batch) <= most_groups
        band_P, banded_P = band_P[few_b[banded_P]], banded_P[few_b[banded_P]]
        at_P, offset_P = np.nonzero(self.bounds_SGb[band_P, :, banded_P] >= limit_b[banded_P, None])
        query_P, group_P = banded_P[at_P], band_P[at_P] * BAND_GROUPS + offset_P
        few_b &= np.bincount(query_P, minlength=batch) <= most_groups
        return query_P[few_b[query_P]], group_P[few_b[query_P]], few_b


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
    bounds: UpperBounds[Any],
    *,
    longest: float,
    scratch: Scratch,
    more_groups: int,
    most_groups: int,
    live: LiveRows | None = None,
) -> Settled:
    """Turn the bounds of a scan into the top k, exactly, for queries that need at most about most_groups groups each.

    First the k groups of the highest bounds are looked at in float32: their k-th best row, less the error of float32,
    is a floor that the answer cannot lie below. Then every group whose bound reaches the floor is looked at too. What
    is left out lies below the floor. The rows that may be among the k best are given their true scores, all at once.

    Where too many groups reach it, a few groups with wide bounds may have kept better ones out of the first k: then
    more_groups groups are looked at to raise the floor, once; where dead rows may have kept them out, again and again,
    each time more of them. longest: no row's norm exceeds it. The index holds at least k + more_groups groups. live:
    rows that may be found, all by default; the bounds of a group hold without its dead rows too.
    """
    shortlist = _Shortlist(vectors, queries_bD, k, bounds, longest, scratch, live)
    queries_q = np.arange(len(queries_bD))
    shortlist.look_at_highest(k, queries_q)
    settled_b = shortlist.look_at_reaching(most_groups, queries_q)
    allowance = most_groups  # of groups that raise the floor: beyond it, a scan in higher precision is cheaper
    while not settled_b.all() and more_groups <= allowance:
        left_q = np.flatnonzero(~settled_b)
        shortlist.look_at_highest(more_groups, left_q)
        settled_b |= shortlist.look_at_reaching(most_groups, left_q)
        allowance = 0 if live is None else allowance - more_groups
        more_groups *= _MORE_FOR_DEAD_ROWS
    return Settled(
        answer=shortlist.answer(), settled_b=settled_b, looked_at_rows=shortlist.looked_at_groups * GROUP_ROWS
    )


class _Shortlist:
    """A batch of queries on the way to its answers: the rows that may be in them, and the bounds of groups not seen."""

    def __init__(
        self,
        vectors: ShardVectors,
        queries_bD: NDArray[np.float64],
        k: int,
        bounds: UpperBounds[Any],
        longest: float,
        scratch: Scratch,
        live: LiveRows | None,
    ) -> None:
        self.looked_at_groups = 0
        self._live = live
        self._batch, self._k = len(queries_bD), k
        self._vectors = vectors
        self._queries_bD = queries_bD
        self._bounds = bounds
        self._scorer = GroupScorer(vectors, queries_bD, longest, scratch)
        self._best_bk = np.full((self._batch, k), -np.inf, dtype=np.float32)  # the best scores seen, in any order
        self._near: list[_NearRows] = []

    def look_at_highest(self, count: int, queries_q: NDArray[np.int64]) -> None:
        """Look at the `count` groups of highest bounds of each of these queries, which raises its floor."""
        query_P, group_P = self._bounds.take_highest(count, queries_q)
        score_Pg = self._scores(query_P, group_P)
        seen_qx = np.concatenate([self._best_bk[queries_q], score_Pg.reshape(len(queries_q), -1)], axis=1)
        self._best_bk[queries_q] = -np.partition(-seen_qx, self._k - 1, axis=1)[:, : self._k]
        self._keep(query_P, group_P, score_Pg)

    def look_at_reaching(self, most_groups: int, queries_q: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Look at every group whose bound reaches the floor of one of these queries [b].

        False for queries with more than most_groups of them, or without a floor yet, as dead rows leave them, and for
        those that are not asked about.
        """
        asked_b = np.zeros(self._batch, dtype=np.bool_)
        asked_b[queries_q] = True
        floor_b = self._scorer.queries.true_floor(self._best_bk.min(axis=1))
        asked_b &= floor_b > -np.inf  # a group that was looked at reaches that, too
        limit_b = np.where(asked_b, round_down_float32(floor_b / self._bounds.unit_b), np.float32(np.inf))
        query_P, group_P, few_b = self._bounds.reaching(limit_b, most_groups)
        self._keep(query_P, group_P, self._scores(query_P, group_P))
        return asked_b & few_b

    def answer(self) -> PartialTopK:
        """The k best of the rows looked at, by their true scores."""
        query_P, row_P, score_P = (np.concatenate(parts) for parts in zip(*self._near, strict=True))
        # The k-th best by now lies higher than when most of the rows were kept.
        order_P = np.lexsort((-score_P, query_P))
        first_b = np.searchsorted(query_P[order_P], np.arange(self._batch))
        enough_b = np.bincount(query_P, minlength=self._batch) >= self._k  # of the others, nothing is settled
        kth_b = np.full(self._batch, -np.inf, dtype=np.float32)
        kth_b[enough_b] = score_P[order_P[first_b[enough_b] + self._k - 1]]
        near_P = score_P >= self._scorer.queries.near_limit(kth_b)[query_P]
        query_P, row_P = query_P[near_P], row_P[near_P]
        true_P = score_pairs(self._vectors, row_P, self._queries_bD, query_P)
        return best_of_pairs(query_P, self._vectors.fact_ids_N[row_P], true_P, batch=self._batch, k=self._k)

    def _scores(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows of each group with its query, in float32, [P, g]; -inf where there is none that may be found."""
        score_Pg = self._scorer.scores(query_P, group_P)
        if self._live is not None:
            score_Pg[~self._live.of_groups[group_P]] = -np.inf
        return score_Pg

    def _keep(self, query_P: NDArray[np.int64], group_P: NDArray[np.int64], score_Pg: NDArray[np.float32]) -> None:
        """Remember the rows that may be among the k best."""
        limit_b = self._scorer.queries.near_limit(self._best_bk.min(axis=1))
        at_P, offset_P = np.nonzero((score_Pg >= limit_b[query_P, None]) & (score_Pg > -np.inf))
        self._near.append(_NearRows(query_P[at_P], group_P[at_P] * GROUP_ROWS + offset_P, score_Pg[at_P, offset_P]))
        self.looked_at_groups += len(group_P)


class _NearRows(NamedTuple):
    """Pairs of a query and a row that may be in its answer, with their scores in float32, in units of the query."""

    query_P: NDArray[np.int64]
    row_P: NDArray[np.int64]
    score_P: NDArray[np.float32]


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
