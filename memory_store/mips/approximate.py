"""What every approximate index shares: candidates from its own structure, then true scores of them from the shard."""

import logging
import threading
from abc import ABC, abstractmethod

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.mips.base import MipsIndex, SavedArrays, ShardVectors, check_queries
from memory_store.mips.dense import search_dense
from memory_store.mips.exact import ExactIndex, build_exact
from memory_store.mips.live import LiveRows
from memory_store.mips.meter import TIME_SHARE, RecallMeter
from memory_store.mips.rescore import score_pairs
from memory_store.mips.scaled import scaled_queries
from memory_store.mips.workers import Workers
from memory_store.topk import NO_FACT, PartialTopK, select

# N rows in the shard, D dimension, B queries, b of them at once, K slots, C candidates per query, P pairs of both

__all__ = ["NO_ROW", "SMALL_ROWS", "ApproximateIndex", "CandidateSource"]

NO_ROW = -1  # in the place of a candidate that there is not
SMALL_ROWS = 256  # up to here every row is scored: that is as fast as anything, and exact
_SLOTS_WORTH_A_SCAN = 16  # with fewer rows per slot of the answer, a float64 scan of all rows is the shortest way
_QUERIES_AT_ONCE = 256  # per worker: bounds what a batch of any size needs beside its answer
_MORE_EFFORT = 4  # times the effort, for queries that found fewer rows than there are
_ALL_ROWS = {"scan": "float32"}  # without a copy of the rows: no memory that `hmn plan` did not count

_log = logging.getLogger(__name__)


class CandidateSource(ABC):
    """The structure of one index: it names rows that may score high, and never what they score."""

    effort_name: str
    """The option that sets how far a search goes: nprobe, ef, leaves, tables."""
    default_effort: int
    most_effort: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory held."""

    @abstractmethod
    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        """Candidate rows [b, C] for the top k of each query, NO_ROW where there are fewer; none twice for a query.

        Queries are not zero, their largest value is in [1/2, 1). With `live`, rows outside it may be named (they are
        dropped) but must not crowd out others. Thread-safe; runs on the calling thread alone.
        """

    @abstractmethod
    def arrays(self) -> SavedArrays:
        """All that is needed to restore the structure."""


class ApproximateIndex:
    """Approximate search with true scores: every candidate is scored from the shard's rows as `exact` scores it.

    A query whose candidates are fewer than k although there are more rows is searched again with more effort, at last
    among all rows; so an answer is padded only where the shard holds fewer than k rows. Where a recall is aimed at that
    the structure does not reach by any effort, all rows are searched for all queries.
    """

    def __init__(self, vectors: ShardVectors, source: CandidateSource | None, workers: Workers) -> None:
        """source: None where there are so few rows that all of them are scored (see SMALL_ROWS)."""
        self.source = source
        self._vectors = vectors
        self._workers = workers
        self._effort = 1 if source is None else source.default_effort
        self._meter: RecallMeter | None = None
        self._all_rows: ExactIndex | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.source, self._all_rows)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def saved_arrays(self) -> SavedArrays | None:
        """What `restore` needs to have this index again; None where there is nothing that building would not give."""
        return None if self.source is None else self.source.arrays()

    @property
    def effort(self) -> int:
        """How far a search goes: lists, leaves or tables looked at, the length of a graph's queue."""
        return self._effort

    @effort.setter
    def effort(self, effort: int) -> None:
        self._effort = max(1, min(effort, self.most_effort))

    @property
    def most_effort(self) -> int:
        """The effort beyond which there is nothing more to look at."""
        return 1 if self.source is None else self.source.most_effort

    @property
    def searches_all_rows(self) -> bool:
        """Whether `search_all_rows` was called: answers are exact from then on."""
        return self._all_rows is not None

    def search_all_rows(self) -> None:
        """Give the structure up, whose largest effort finds less than is aimed at: from now on, search exactly."""
        if self.source is None or self._all_rows is not None:
            return
        self._all_rows = build_exact(self._vectors, _ALL_ROWS, self._workers.count)
        _log.warning(
            "recall on live queries stays below its target with %s = %d, which is the most there is; from here on all "
            'rows are searched, which index="exact" does faster',
            self.source.effort_name,
            self.most_effort,
        )

    def measure_recall(self, share: float, target: float | None = None, time_share: float = TIME_SHARE) -> None:
        """From now on, repeat a share of the queries exactly in the background; see RecallMeter."""
        if self.source is not None:  # else every answer is exact
            self._meter = RecallMeter(self, share=share, target=target, time_share=time_share)
            self._checking = Workers(1)  # beside those of searches, which must not wait

    def go_on_from(self, before: MipsIndex | None) -> None:
        """Search with the effort that the index before had come to, as a share of what there is to look at.

        Vectors that drift from generation to generation ask for about as much as they did; to learn it anew would take
        the checks of many searches, which meanwhile miss the target. A structure that was given up is tried once more.
        """
        if isinstance(before, ApproximateIndex) and before.most_effort > 1 and self.most_effort > 1:
            self.effort = round(before.effort * self.most_effort / before.most_effort)

    @property
    def meter(self) -> RecallMeter | None:
        """What measures the recall of this index; None unless measure_recall was called."""
        return self._meter

    def search(self, queries_BD: NDArray[np.float32], k: int, live: LiveRows | None = None) -> PartialTopK:
        """The k facts of largest inner product per query among those that were looked at; see MipsIndex.search."""
        wide_BD = check_queries(queries_BD, self._vectors.dim, k).astype(np.float64)
        answer = PartialTopK(
            fact_ids_BK=np.full((len(wide_BD), k), NO_FACT, dtype=np.int64),
            scores_BK=np.full((len(wide_BD), k), -np.inf),
        )
        zero_B: NDArray[np.bool_] = ~np.any(wide_BD, axis=1)
        if zero_B.any():
            self._answer_zero_queries(zero_B, live, answer)
        pending = np.flatnonzero(~zero_B)
        source, effort = self.source, self._effort
        all_rows = self._all_rows
        if all_rows is not None:
            _fill(answer, pending, all_rows.search(queries_BD[pending], k, live))
            pending = pending[:0]
        elif all_rows is None and source is not None and k * _SLOTS_WORTH_A_SCAN <= self._vectors.num_rows:
            pending = self._answer(source, wide_BD, k, effort, live, pending, answer)
            while len(pending) and effort < source.most_effort:
                effort = min(effort * _MORE_EFFORT, source.most_effort)
                pending = self._answer(source, wide_BD, k, effort, live, pending, answer)
        for start in range(0, len(pending), _QUERIES_AT_ONCE):
            chunk = pending[start : start + _QUERIES_AT_ONCE]
            _fill(answer, chunk, self._search_all_rows(wide_BD[chunk], k, live, self._workers))
        if self._meter is not None:
            self._meter.offer(
                wide_BD, answer, lambda queries_bD: self._search_all_rows(queries_bD, k, live, self._checking)
            )
        return answer

    def _answer(
        self,
        source: CandidateSource,
        queries_BD: NDArray[np.float64],
        k: int,
        effort: int,
        live: LiveRows | None,
        pending: NDArray[np.int64],
        answer: PartialTopK,
    ) -> NDArray[np.int64]:
        """Answer the pending queries from their candidates; returns those that have too few."""
        wanted = min(k, self._vectors.num_rows - (live.dead if live is not None else 0))
        at_once = min(max(-(-len(pending) // self._workers.count), 1), _QUERIES_AT_ONCE)
        starts = iter(range(0, len(pending), at_once))
        short: list[NDArray[np.int64]] = []
        lock = threading.Lock()

        def work(_worker: int) -> None:
            faiss.omp_set_num_threads(1)  # of this thread alone
            for start in starts:  # the interpreter hands each value of a range iterator to one thread only
                part = pending[start : start + at_once]
                rows_bC = source.candidates(scaled_queries(queries_BD[part]), k, effort, live)
                held_bC = rows_bC != NO_ROW
                if live is not None:
                    held_bC &= live.mask_N[rows_bC]
                _fill(answer, part, self._score(queries_BD[part], rows_bC, held_bC, k))
                lacking_b = np.count_nonzero(held_bC, axis=1) < wanted
                if lacking_b.any():
                    with lock:
                        short.append(part[lacking_b])

        self._workers.run(work)
        return np.sort(np.concatenate([pending[:0], *short]))

    def _score(
        self, queries_bD: NDArray[np.float64], rows_bC: NDArray[np.int64], held_bC: NDArray[np.bool_], k: int
    ) -> PartialTopK:
        query_P, slot_P = np.nonzero(held_bC)
        row_P = rows_bC[query_P, slot_P]
        ids_bC = np.full(rows_bC.shape, NO_FACT, dtype=np.int64)
        scores_bC = np.full(rows_bC.shape, -np.inf)
        ids_bC[query_P, slot_P] = self._vectors.fact_ids_N[row_P]
        scores_bC[query_P, slot_P] = score_pairs(self._vectors, row_P, queries_bD, query_P)
        return select(ids_bC, scores_bC, k)

    def _search_all_rows(
        self, queries_bD: NDArray[np.float64], k: int, live: LiveRows | None, workers: Workers
    ) -> PartialTopK:
        return search_dense(self._vectors, queries_bD, k, workers, live)

    def _answer_zero_queries(self, zero_B: NDArray[np.bool_], live: LiveRows | None, answer: PartialTopK) -> None:
        """Every row scores 0, so the smallest ids win."""
        ids_N, k = self._vectors.fact_ids_N, answer.fact_ids_BK.shape[1]
        ids_N = ids_N if live is None else ids_N[live.mask_N]
        smallest_K = np.sort(np.partition(ids_N, k)[:k] if k < len(ids_N) else ids_N)
        answer.fact_ids_BK[zero_B, : len(smallest_K)] = smallest_K
        answer.scores_BK[zero_B, : len(smallest_K)] = 0.0


def _fill(answer: PartialTopK, queries: NDArray[np.int64], found: PartialTopK) -> None:
    answer.fact_ids_BK[queries] = found.fact_ids_BK
    answer.scores_BK[queries] = found.scores_BK
