"""The live recall meter of an index: some searches are repeated exactly in the background, and effort follows."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_store.recall import RecallReport, RecallWindow, compare, misses, next_effort
from memory_store.topk import PartialTopK

# B queries, D dimension, K slots

__all__ = ["TIME_SHARE", "Metered", "RecallMeter"]

TIME_SHARE = 0.05  # of one thread, that checks may take

_QUERIES_AT_ONCE = 16
_SETTLED_QUERIES = 256  # checked at one effort, after which a smaller one may be tried again: vectors drift


class Metered(Protocol):
    """What the meter asks of an index."""

    @property
    def effort(self) -> int: ...

    @effort.setter
    def effort(self, effort: int) -> None: ...

    @property
    def most_effort(self) -> int: ...

    @property
    def searches_all_rows(self) -> bool: ...

    def search_all_rows(self) -> None: ...


class RecallMeter:
    """Repeats a share of the queries exactly, one check at a time, in a thread that takes its share of time at most.

    A check that is due while another runs, or too soon after it, is put off, never queued: searches do not wait.
    """

    def __init__(
        self,
        index: Metered,
        *,
        share: float,
        target: float | None = None,
        time_share: float = TIME_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """share: of the queries that are repeated. target: recall to keep by raising and lowering index.effort; where
        the largest is too little, by having the index search all rows.
        time_share: of one thread's time that checks may take."""
        self._index = index
        self._share = share
        self._target = target
        self._time_share = time_share
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hmn-recall")
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._due = 1.0  # queries owed; the first search is checked at once
        self._not_before_s = -float("inf")
        self._window = RecallWindow()
        self._too_little = 0
        self._settled = 0

    def offer(
        self,
        queries_BD: NDArray[np.float64],
        found: PartialTopK,
        search_exactly: Callable[[NDArray[np.float64]], PartialTopK],
    ) -> None:
        """Count a search, and have some of its queries searched again if a check is due. Returns at once."""
        effort = self._index.effort
        with self._lock:
            self._due = min(self._due + self._share * len(queries_BD), float(_QUERIES_AT_ONCE))
            busy = self._running is not None and not self._running.done()
            count = min(int(self._due), len(queries_BD))
            if busy or count == 0 or self._clock() < self._not_before_s:
                return
            self._due -= count
            # Evenly through the batch: batches are often sorted.
            chosen = np.arange(count) * len(queries_BD) // count
            answer = PartialTopK(fact_ids_BK=found.fact_ids_BK[chosen], scores_BK=found.scores_BK[chosen])
            self._running = self._pool.submit(self._check, queries_BD[chosen], answer, search_exactly, effort)

    def report(self) -> RecallReport | None:
        """What the last checks say; None before the first."""
        with self._lock:
            return self._report()

    def wait(self) -> None:
        """Wait until the check that is running has ended, and raise what it raised."""
        running = self._running
        if running is not None:
            running.result()

    def _check(
        self,
        queries_BD: NDArray[np.float64],
        found: PartialTopK,
        search_exactly: Callable[[NDArray[np.float64]], PartialTopK],
        effort: int,
    ) -> None:
        started_s = self._clock()
        checked = compare(found, search_exactly(queries_BD))
        gives_up = False
        with self._lock:
            ended_s = self._clock()
            self._not_before_s = ended_s + (ended_s - started_s) * (1 / self._time_share - 1)
            if effort == self._index.effort:  # else the answer says nothing of the present effort
                self._window.add(checked)
                self._settled += len(checked)
                gives_up = self._follow(effort)
        if gives_up:
            self._index.search_all_rows()  # takes a while, in which searches go on as before
            with self._lock:
                self._window.clear()

    def _follow(self, effort: int) -> bool:
        """Set the effort that the target takes; whether there is none."""
        report = self._report()
        if self._target is None or report is None or report.all_rows:
            return False
        if self._settled >= _SETTLED_QUERIES:
            self._too_little, self._settled = 0, 0
        most = self._index.most_effort
        wanted = next_effort(report, self._target, most, self._too_little)
        if wanted == effort:
            return effort == most and misses(report, self._target)
        if wanted > effort:
            self._too_little = effort
        self._settled = 0
        self._window.clear()
        self._index.effort = wanted
        return False

    def _report(self) -> RecallReport | None:
        return self._window.report(self._index.effort, all_rows=self._index.searches_all_rows)
