"""Copies of one shard behind one handle: late calls go to a second copy too, failed ones to another at once."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memory_store.calls import Call, CallFailed, ShardHandle
from memory_store.errors import CorruptFile, HmnError, StorageFailed
from memory_store.hedging import HedgePolicy, Latencies
from memory_store.policy import Failure
from memory_store.shard import CopyStats, ShardStats

__all__ = ["HedgedCall", "ReplicaSet", "Wait", "tend"]

Wait = Callable[[Sequence[Call], float], Sequence[int]]
"""(calls, seconds) -> positions of calls that ended, at least one of them unless the time ran out first."""

_log = logging.getLogger(__name__)

_ALL_COPIES = ("load", "release", "stats")
_GRACE_S = 1.0  # for the other copies, once one has answered a call to all
_GRACE_TIMES = 2.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_LONGEST_PAUSE_UNREADABLE_S = 10.0
_LOAD_S = 600.0
_READY_S = 5.0  # for an answer that is there


@dataclass(eq=False)
class _Attempt:
    copy: int
    call: Call


@dataclass(eq=False)
class _Copy:
    handle: ShardHandle
    serving: bool = True
    gone: bool = False  # it will not come back by itself
    died: bool = False
    restarts: int = 0
    incarnations: set[str] = field(default_factory=set)
    under_way: list[_Attempt] = field(default_factory=list)
    given_up: list[_Attempt] = field(default_factory=list)  # another copy was faster; part of under_way


class ReplicaSet:
    """A ShardHandle over copies of one shard, any of which answers for it; thread-safe.

    A call goes to the copy with the fewest calls under way. A copy whose process fails, or that cannot read its files,
    is not asked again until it has loaded, in the background, what the others serve. `start` and `result` fail only
    when every copy has failed.
    """

    def __init__(
        self,
        copies: Sequence[ShardHandle],
        wait: Wait,
        *,
        policy: HedgePolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        beside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """beside: runs a function in the background."""
        self.wait = wait
        self.clock = clock
        self._copies = [_Copy(handle) for handle in copies]
        self._sleep = sleep
        self._beside = beside or _in_thread
        self._latencies: dict[str, Latencies] = defaultdict(lambda: Latencies(policy or HedgePolicy()))
        self._lock = threading.RLock()
        self._generation: int | None = None  # the one that was last asked for
        self._turn = 0
        self._closed = False
        self._hedged = 0
        self._failed_over = 0

    def start(self, method: str, *args: Any) -> Call:
        if method != "stats":
            self._generation = args[0]
        if method in _ALL_COPIES:
            return _CallToAll(self, method, args)
        return HedgedCall(self, method, args)

    def replace(self) -> None:
        """Start others for all copies that will not come back by themselves."""
        for copy in self._copies:
            self._replace_if_gone(copy)

    def close(self) -> None:
        """Copies that are away are no longer brought back."""
        with self._lock:
            self._closed = True

    def latencies(self, method: str) -> Latencies:
        with self._lock:
            return self._latencies[method]

    def pick(self, tried: set[int]) -> int | None:
        """The copy to ask next: one that serves before one that does not, and the least busy; None when all were."""
        with self._lock:
            self._reap()
            self._turn += 1
            left = [number for number in range(len(self._copies)) if number not in tried]
            count = len(self._copies)
            return min(
                left,
                key=lambda number: (
                    not self._copies[number].serving,
                    len(self._copies[number].under_way),
                    (number - self._turn) % count,
                ),
                default=None,
            )

    def begin(self, number: int, method: str, args: tuple[Any, ...]) -> _Attempt:
        """Ask one copy. Raises CallFailed where it refuses the call itself."""
        copy = self._copies[number]
        try:
            attempt = _Attempt(number, copy.handle.start(method, *args))
        except CallFailed as failed:
            self.fails(number, failed)
            raise
        with self._lock:
            copy.under_way.append(attempt)
        return attempt

    def take(self, attempt: _Attempt) -> Any:
        """The answer of an attempt that has ended; notes what a failure says of the copy."""
        self._forget(attempt)
        try:
            return attempt.call.result(_READY_S)
        except (CallFailed, CorruptFile, StorageFailed) as failed:
            self.fails(attempt.copy, failed)
            raise

    def give_up(self, attempt: _Attempt) -> None:
        """Nobody waits for it any more. It counts as under way until it ends: a copy that hangs is asked less."""
        with self._lock:
            self._copies[attempt.copy].given_up.append(attempt)

    def fails(self, number: int, why: Exception) -> None:
        """Stop asking a copy, and bring it back in the background."""
        with self._lock:
            copy = self._copies[number]
            _note_death(copy, why)
            if self._closed or not copy.serving:
                return
            copy.serving = False
        _log.info("copy %d of a shard is away: %s", number, why)
        self._beside(lambda: self._bring_back(number))

    def count(self, *, hedged: int = 0, failed_over: int = 0) -> None:
        with self._lock:
            self._hedged += hedged
            self._failed_over += failed_over

    def serving(self) -> list[int]:
        """The copies that are asked; all of them where none serves, as any may be back."""
        with self._lock:
            return [n for n, copy in enumerate(self._copies) if copy.serving] or list(range(len(self._copies)))

    def combined(self, lines: dict[int, ShardStats]) -> ShardStats:
        """One line for the shard, from those of the copies that answered."""
        with self._lock:
            for number, line in lines.items():
                self._copies[number].incarnations.add(line.incarnation)
            copies = tuple(
                CopyStats(
                    replica=number,
                    serving=copy.serving,
                    pid=lines[number].pid if number in lines else None,  # an earlier one may be dead
                    restarts=max(len(copy.incarnations) - 1, copy.restarts),
                )
                for number, copy in enumerate(self._copies)
            )
            return replace(
                lines[min(lines)],
                restarts=sum(copy.restarts for copy in copies),
                copies=copies,
                hedged=self._hedged,
                failed_over=self._failed_over,
            )

    def _reap(self) -> None:
        given_up = [attempt for copy in self._copies for attempt in copy.given_up]
        if not given_up:
            return
        for position in self.wait([attempt.call for attempt in given_up], 0.0):
            attempt = given_up[position]
            self._copies[attempt.copy].given_up.remove(attempt)
            try:
                self.take(attempt)
            except (CallFailed, HmnError):
                continue  # noted; the call itself was answered

    def _forget(self, attempt: _Attempt) -> None:
        with self._lock:
            if attempt in self._copies[attempt.copy].under_way:
                self._copies[attempt.copy].under_way.remove(attempt)

    def _replace_if_gone(self, copy: _Copy) -> None:
        with self._lock:
            if copy.gone and not self._closed:
                copy.handle.replace()
                copy.gone = False

    def _bring_back(self, number: int) -> None:
        copy = self._copies[number]
        pause_s = _PAUSE_S
        while not self._closed:
            generation = self._generation
            try:
                self._replace_if_gone(copy)
                if generation is not None:
                    copy.handle.start("load", generation).result(_LOAD_S)
            except Exception as failed:  # noqa: BLE001 - also what Ray raises while it shuts down
                _note_death(copy, failed)
                self._sleep(pause_s)
                longest_s = _LONGEST_PAUSE_S if isinstance(failed, CallFailed) else _LONGEST_PAUSE_UNREADABLE_S
                pause_s = min(2 * pause_s, longest_s)
                continue
            with self._lock:
                if generation == self._generation:  # else it would keep its first caller waiting
                    copy.serving = True
                    copy.restarts += copy.died
                    copy.died = False
                    copy.under_way.clear()
                    copy.given_up.clear()
                    return


def _note_death(copy: _Copy, why: Exception) -> None:
    if isinstance(why, CallFailed):
        copy.died |= why.failure is not Failure.TIMED_OUT
        copy.gone |= why.failure is Failure.GONE


class HedgedCall:
    """A call that any copy may answer. `tend` drives it."""

    def __init__(self, copies: ReplicaSet, method: str, args: tuple[Any, ...]) -> None:
        self.copies = copies
        self.under_way: list[_Attempt] = []
        self.settled = False
        self._method = method
        self._args = args
        self._latencies = copies.latencies(method)
        self._began_s = copies.clock()
        self._tried: set[int] = set()
        self._hedged = False
        self._answer: Any = None
        self._failed: Exception | None = None
        self._ask_another()

    def result(self, timeout_s: float) -> Any:
        tend([self], self.copies.clock() + timeout_s, self.copies.clock)
        if not self.settled:
            for attempt in self.under_way:
                self.copies.give_up(attempt)
            self.under_way.clear()
            raise CallFailed(Failure.TIMED_OUT, "no reply of any copy in time")
        if self._failed is not None:
            raise self._failed
        return self._answer

    def next_look_s(self, now_s: float) -> float:
        """Seconds until this call may have to be sent to another copy; sends it now if it is time."""
        if self._hedged:
            return float("inf")
        waited_s = now_s - self._began_s
        if self._tried.issuperset(self.copies.serving()):
            return max(self._latencies.delay_s, _PAUSE_S)  # another one may come back
        if not self._latencies.may_hedge(waited_s):
            return self._latencies.next_look_s(waited_s)
        self._hedged = True
        self.copies.count(hedged=1)
        self._ask_another()
        return float("inf")

    def take(self, attempt: _Attempt) -> None:
        """Use what an attempt that has ended says."""
        self.under_way.remove(attempt)
        try:
            self._answer = self.copies.take(attempt)
        except (CallFailed, CorruptFile, StorageFailed) as failed:
            self._failed = failed
            if not self.under_way:
                self._ask_another()
            return
        except Exception as raised:  # noqa: BLE001 - the answer of a shard that says no; every copy would say the same
            self._failed = raised
        else:
            self.copies.count(failed_over=self._failed is not None)
            self._failed = None
            self._latencies.add(self.copies.clock() - self._began_s)
        self._settle()

    def _ask_another(self) -> None:
        """The next copy that takes the call; the call has failed when none does and none is at work on it."""
        while (number := self.copies.pick(self._tried)) is not None:
            self._tried.add(number)
            try:
                self.under_way.append(self.copies.begin(number, self._method, self._args))
            except CallFailed as failed:
                self._failed = failed
                continue
            return
        if not self.under_way:
            self._settle()

    def _settle(self) -> None:
        self.settled = True
        for attempt in self.under_way:
            self.copies.give_up(attempt)
        self.under_way.clear()


def tend(calls: Sequence[HedgedCall], deadline_s: float, clock: Callable[[], float]) -> None:
    """Wait until every call is settled or the deadline has come; meanwhile, send those that are late to other copies.

    The calls are those of one question to the shards of one memory: they wait together, so that none is late twice.
    """
    while pending := [call for call in calls if not call.settled]:
        now_s = clock()
        look_s = min([deadline_s - now_s, *(call.next_look_s(now_s) for call in pending)])
        waiting = [(call, attempt) for call in pending for attempt in call.under_way]
        ended = pending[0].copies.wait([attempt.call for _, attempt in waiting], max(0.0, look_s))
        for position in ended:
            call, attempt = waiting[position]
            if attempt in call.under_way:  # else another copy has answered in the same moment
                call.take(attempt)
        if not ended and clock() >= deadline_s:
            return


class _CallToAll:
    """A call that every copy is to carry out. Those that are away or far behind the first do so when they come back."""

    def __init__(self, copies: ReplicaSet, method: str, args: tuple[Any, ...]) -> None:
        self._copies = copies
        self._method = method
        self._failed: Exception | None = None
        self._began_s = copies.clock()
        self._attempts: list[_Attempt] = []
        for number in copies.serving():
            try:
                self._attempts.append(copies.begin(number, method, args))
            except CallFailed as failed:
                self._failed = failed

    def result(self, timeout_s: float) -> Any:
        copies, answers = self._copies, dict[int, Any]()
        until_s = copies.clock() + timeout_s
        while self._attempts and (left_s := until_s - copies.clock()) > 0:
            for attempt in [self._attempts[n] for n in copies.wait([a.call for a in self._attempts], left_s)]:
                self._attempts.remove(attempt)
                try:
                    answers[attempt.copy] = copies.take(attempt)
                except (CallFailed, HmnError) as failed:
                    self._failed = failed
                    continue
                now_s = copies.clock()
                until_s = min(until_s, now_s + max(_GRACE_S, _GRACE_TIMES * (now_s - self._began_s)))
        late = CallFailed(Failure.TIMED_OUT, f"no reply to `{self._method}` in time")
        for attempt in self._attempts:
            copies.give_up(attempt)
            if answers and self._method == "load":
                copies.fails(attempt.copy, late)
        if not answers:
            raise self._failed or late
        return copies.combined(answers) if self._method == "stats" else answers[min(answers)]


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="hmn-copy-back", daemon=True).start()
