"""Copies of a shard, as doubles that answer late, die or cannot read, on a clock that only waiting moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from memory_store.calls import CallFailed
from memory_store.coordinator import Coordinator, Served
from memory_store.errors import CorruptFile, ShardUnavailable, UnknownFact
from memory_store.hedging import HedgePolicy, Latencies
from memory_store.policy import Failure, Partial
from memory_store.replicas import ReplicaSet
from memory_store.shard import ShardStats
from memory_store.topk import select

NEVER_S = 1e9
LINE = ShardStats(
    shard=0, rows=4, bytes=1, index="exact", generation=7, generations_resident=(7,), pid=1, incarnation="a"
)


@dataclass
class Machine:
    """The time of a test, and what was to be done in the background."""

    now_s: float = 0.0
    background: list[Callable[[], None]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[int]:
        assert calls, "waiting for nothing"
        first_s = min(call.at_s for call in calls)
        self.now_s = max(self.now_s, min(first_s, self.now_s + timeout_s))
        return [position for position, call in enumerate(calls) if call.at_s <= self.now_s]


@dataclass
class Answer:
    at_s: float
    value: Any

    def result(self, timeout_s: float) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@dataclass
class FakeCopy:
    """Answers `search` with its own number, after seconds; a plan names the calls that go another way."""

    machine: Machine
    number: int
    seconds: float = 0.01
    plan: dict[int, float | Exception] = field(default_factory=dict)
    dead: Failure | None = None
    calls: list[str] = field(default_factory=list)
    replaced: int = 0

    def start(self, method: str, *args: Any) -> Answer:
        self.calls.append(method)
        if self.dead is not None:
            raise CallFailed(self.dead, "a fault of the test")
        planned = self.plan.get(len(self.calls), self.seconds)
        if isinstance(planned, Exception):
            return Answer(self.machine.now_s, planned)
        value: Any = {"load": 4, "stats": replace(LINE, incarnation=f"of {self.number}", pid=self.number)}.get(method)
        return Answer(self.machine.now_s + planned, self.number if value is None else value)

    def replace(self) -> None:
        self.replaced += 1
        self.dead = None


def copies(count: int = 2, **options: Any) -> tuple[Machine, list[FakeCopy], ReplicaSet]:
    machine = Machine()
    fakes = [FakeCopy(machine, number) for number in range(count)]
    both = ReplicaSet(
        fakes,
        machine.wait,
        clock=machine.clock,
        sleep=machine.sleep,
        beside=machine.background.append,
        policy=HedgePolicy(first_delay_s=0.1, **options),
    )
    return machine, fakes, both


def test_calls_are_dealt_to_all_copies() -> None:
    _, fakes, both = copies()
    answers = [both.start("search", 7).result(1.0) for _ in range(10)]
    assert sorted(answers) == [0] * 5 + [1] * 5
    assert [len(fake.calls) for fake in fakes] == [5, 5]


@pytest.mark.parametrize("failure", [Failure.RESTARTING, Failure.GONE])
@pytest.mark.parametrize("refuses", [True, False])
def test_a_dead_copy_costs_no_failed_answer_and_no_time(failure: Failure, refuses: bool) -> None:
    machine, (first, second), both = copies()
    first.dead = failure if refuses else None
    first.plan = dict.fromkeys(range(1, 10), CallFailed(failure, "killed"))
    for _ in range(6):
        began_s = machine.now_s
        assert both.start("search", 7).result(1.0) == 1
        assert machine.now_s - began_s == pytest.approx(second.seconds)
    assert len(first.calls) == 1, "it is not asked again until it is back"
    assert len(machine.background) == 1


def test_a_copy_that_came_back_loads_what_is_served_before_it_is_asked() -> None:
    machine, (first, _), both = copies()
    first.plan = {n: CallFailed(Failure.RESTARTING, "killed") for n in (1, 2, 3)}
    while not machine.background:
        both.start("search", 7).result(1.0)
    machine.background.pop()()
    assert first.calls == ["search", "load", "load", "load"]
    assert {both.start("search", 7).result(1.0) for _ in range(4)} == {0, 1}
    line = both.start("stats", 7).result(1.0)
    assert [(copy.replica, copy.serving, copy.restarts) for copy in line.copies] == [(0, True, 1), (1, True, 0)]
    assert (line.restarts, line.failed_over, line.hedged) == (1, 1, 0)


def test_a_copy_that_does_not_say_its_process_has_none() -> None:
    _, (_, second), both = copies()
    assert [copy.pid for copy in both.start("stats", 7).result(1.0).copies] == [0, 1]
    second.plan = {2: 50.0}  # its process was killed, and the new one has not begun to answer
    assert [(copy.serving, copy.pid) for copy in both.start("stats", 7).result(9.0).copies] == [(True, 0), (True, None)]


def test_a_copy_that_is_gone_is_replaced_once() -> None:
    machine, (first, _), both = copies()
    first.dead = Failure.GONE
    while not machine.background:
        both.start("search", 7).result(1.0)
    machine.background.pop()()
    both.replace()
    assert first.replaced == 1


def test_a_late_call_is_answered_by_the_second_copy_after_the_delay() -> None:
    machine, (first, second), both = copies()
    first.plan = {1: 50.0}
    answers = [both.start("search", 7).result(100.0) for _ in range(2)]
    assert answers == [1, 1]
    assert machine.now_s == pytest.approx(0.1 + 2 * second.seconds, abs=1e-3)
    assert both.start("stats", 7).result(1.0).hedged == 1


def test_the_tail_is_capped_although_one_copy_hangs() -> None:
    machine, (first, _), both = copies()
    first.seconds = NEVER_S
    times_s = []
    for _ in range(200):
        began_s = machine.now_s
        assert both.start("search", 7).result(10.0) == 1
        times_s.append(machine.now_s - began_s)
    assert max(times_s) == pytest.approx(0.11, abs=1e-3), "the first delay, and then the other copy"
    assert len(first.calls) <= 2, "what hangs has a call under way and is passed over"


def test_copies_that_are_all_slow_are_not_given_twice_the_work() -> None:
    _, fakes, both = copies(share=0.1, patience=1000.0)
    for number in range(300):
        for fake in fakes:
            fake.seconds = 0.01 if number < 100 else 5.0
        both.start("search", 7).result(100.0)
    assert sum(len(fake.calls) for fake in fakes) <= 300 * 1.1 + 11


def test_a_copy_that_cannot_read_its_files_is_passed_over_and_a_bad_question_is_not() -> None:
    _, (first, second), both = copies()
    first.plan = dict.fromkeys(range(1, 10), CorruptFile("part p is truncated"))
    assert [both.start("search", 7).result(1.0) for _ in range(3)] == [1, 1, 1]
    second.plan = dict.fromkeys(range(1, 20), CorruptFile("part p is truncated"))
    with pytest.raises(CorruptFile, match="part p is truncated"):
        both.start("search", 7).result(1.0)
    _, fakes, both = copies()
    for fake in fakes:
        fake.plan = {1: UnknownFact("no such fact")}
    with pytest.raises(UnknownFact):
        both.start("fetch", 7).result(1.0)
    assert sum(len(fake.calls) for fake in fakes) == 1


def test_a_load_waits_for_all_copies_but_not_for_one_that_hangs_or_is_dead() -> None:
    machine, (first, second), both = copies()
    second.seconds = 0.5
    assert both.start("load", 8).result(600.0) == 4
    assert (machine.now_s, first.calls, second.calls) == (0.5, ["load"], ["load"])
    second.seconds = NEVER_S
    assert both.start("load", 9).result(600.0) == 4
    assert machine.now_s < 3.0
    assert {both.start("search", 9).result(1.0) for _ in range(4)} == {0}, "it lags behind"
    first.dead = Failure.RESTARTING
    second.dead = Failure.RESTARTING
    with pytest.raises(CallFailed):
        both.start("load", 10).result(600.0)


def test_shards_that_are_late_together_are_late_once() -> None:
    machine = Machine()
    sets = []
    for _ in range(3):
        fakes = [FakeCopy(machine, number, seconds=0.01) for number in range(2)]
        both = ReplicaSet(
            fakes,
            machine.wait,
            clock=machine.clock,
            beside=machine.background.append,
            policy=HedgePolicy(first_delay_s=0.1),
        )
        slow = both.pick(set())
        assert slow is not None
        fakes[1 - slow].seconds = NEVER_S
        for fake in fakes:
            fake.start = _searching(fake)  # type: ignore[method-assign]
        sets.append(both)
    over = Coordinator(shards=sets, clock=machine.clock, sleep=machine.sleep)
    served = Served(generation=7, dim=2, fact_count=3, rows_by_shard=(1, 1, 1))
    answer = over.search(served, np.zeros((1, 2), np.float32), 1, deadline_s=60.0, partial=Partial.REFUSE)
    assert answer.coverage == 1.0
    assert machine.now_s == pytest.approx(0.11, abs=1e-3)


def _searching(fake: FakeCopy) -> Callable[..., Answer]:
    def start(method: str, generation: int, queries_BD: np.ndarray, k: int) -> Answer:
        ids_BC = np.zeros((len(queries_BD), 1), np.int64)
        return Answer(fake.machine.now_s + fake.seconds, select(ids_BC, ids_BC.astype(np.float64), k))

    return start


def test_a_shard_is_unavailable_only_when_all_its_copies_are() -> None:
    machine, fakes, both = copies()
    for fake in fakes:
        fake.dead = Failure.RESTARTING
    over = Coordinator(shards=[both], clock=machine.clock, sleep=machine.sleep)
    served = Served(generation=7, dim=2, fact_count=1, rows_by_shard=(1,))
    with pytest.raises(ShardUnavailable, match="shard 0 of 1"):
        over.search(served, np.zeros((1, 2), np.float32), 1, deadline_s=5.0, partial=Partial.REFUSE)
    assert machine.now_s == pytest.approx(5.0)
    assert len(machine.background) == 2


def test_the_delay_follows_the_live_latencies() -> None:
    latencies = Latencies(HedgePolicy(quantile=0.95, least_delay_s=0.002, first_delay_s=0.25))
    assert latencies.delay_s == 0.25
    for milliseconds in range(100):
        latencies.add(milliseconds / 1000)
    assert latencies.delay_s == pytest.approx(0.09, abs=0.01)
    assert not latencies.may_hedge(0.05)
    assert latencies.may_hedge(0.1)
    for _ in range(600):
        latencies.add(1e-6)
    assert latencies.delay_s == 0.002
