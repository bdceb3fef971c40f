"""The coordinator over named doubles that fail where they are told to; no clock runs, nothing sleeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_store.coordinator import CallFailed, Coordinator, Served
from memory_store.errors import CorruptFile, ShardUnavailable, UnknownFact
from memory_store.policy import Failure, Partial, ShardPolicy
from memory_store.shard import FoundFacts, FoundVectors
from memory_store.topk import select

ROWS_PER_SHARD = 4


@dataclass
class FakeClock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Answer:
    value: Any

    def result(self, timeout_s: float) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@dataclass
class FakeShard:
    """Holds ids 10*number .. 10*number+3 with the id as its score; fails the calls named in `fail_on_call`."""

    number: int
    fail_on_call: Mapping[int, Failure | Exception] = field(default_factory=dict)
    refuses_to_start: bool = False
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    replaced: int = 0

    @property
    def ids(self) -> np.ndarray:
        return np.arange(10 * self.number, 10 * self.number + ROWS_PER_SHARD, dtype=np.int64)

    def start(self, method: str, *args: Any) -> Answer:
        self.calls.append((method, args))
        fault = self.fail_on_call.get(len(self.calls))
        if isinstance(fault, Failure):
            failed = CallFailed(fault, "a fault of the test")
            if self.refuses_to_start:
                raise failed
            return Answer(failed)
        if fault is not None:
            return Answer(fault)
        return Answer(getattr(self, "_" + method)(*args))

    def replace(self) -> None:
        self.replaced += 1

    def _search(self, generation: int, queries_BD: np.ndarray, k: int) -> Any:
        ids_BC = np.tile(self.ids, (len(queries_BD), 1))
        return select(ids_BC, ids_BC.astype(np.float64), k)

    def _fetch(self, generation: int, fact_ids_C: np.ndarray, columns: Any) -> FoundFacts:
        at = np.flatnonzero(np.isin(fact_ids_C, self.ids))
        return FoundFacts(at, pa.table({"fact_id": fact_ids_C[at]}))

    def _vectors(self, generation: int, fact_ids_C: np.ndarray) -> FoundVectors:
        at = np.flatnonzero(np.isin(fact_ids_C, self.ids))
        return FoundVectors(at, fact_ids_C[at, None].astype(np.float32))


SERVED = Served(generation=7, dim=2, fact_count=2 * ROWS_PER_SHARD, rows_by_shard=(ROWS_PER_SHARD, ROWS_PER_SHARD))
QUERIES = np.zeros((3, 2), dtype=np.float32)


def coordinator(*faults: Mapping[int, Failure | Exception], **options: Any) -> Coordinator:
    clock = FakeClock()
    shards = [FakeShard(number, fault, **options) for number, fault in enumerate(faults)]
    return Coordinator(shards=shards, clock=clock, sleep=clock.sleep)


def search(over: Coordinator, partial: Partial = Partial.REFUSE, k: int = 3):
    return over.search(SERVED, QUERIES, k, deadline_s=5.0, partial=partial)


def test_answers_of_all_shards_are_merged_and_carry_the_generation() -> None:
    answer = search(coordinator({}, {}), k=5)
    assert answer.fact_ids_BK.tolist() == [[13, 12, 11, 10, 3]] * 3
    assert answer.scores_BK.dtype == np.float32
    assert (answer.generation, answer.coverage) == (7, 1.0)


@pytest.mark.parametrize("refuses_to_start", [False, True])
def test_a_shard_that_restarts_is_asked_again_and_the_answer_is_complete(refuses_to_start: bool) -> None:
    over = coordinator({}, {1: Failure.RESTARTING, 2: Failure.RESTARTING}, refuses_to_start=refuses_to_start)
    answer = search(over)
    assert answer.fact_ids_BK[0].tolist() == [13, 12, 11]
    assert answer.coverage == 1.0
    assert over.recoveries == [0, 1]
    assert [method for method, _ in over.shards[0].calls] == ["search"], "the shard that lives is asked once"


def test_every_retry_asks_for_the_generation_of_the_first_attempt() -> None:
    over = coordinator({}, {1: Failure.RESTARTING})
    search(over)
    assert {args[0] for shard in over.shards for _, args in shard.calls} == {7}


def test_a_shard_that_never_comes_back_fails_the_call_at_the_deadline_with_its_name() -> None:
    over = coordinator({}, dict.fromkeys(range(1, 1000), Failure.RESTARTING))
    with pytest.raises(ShardUnavailable, match=r"shard 1 of 2 did not answer `search` .* raise the deadline"):
        search(over)
    assert over.clock.now_s == pytest.approx(5.0)


def test_a_dead_shard_may_be_left_out_only_when_allowed_and_coverage_says_so() -> None:
    answer = search(coordinator({}, {1: Failure.RESTARTING}), Partial.ALLOW)
    assert answer.fact_ids_BK[0].tolist() == [3, 2, 1]
    assert answer.coverage == 0.5


def test_an_answer_that_searched_nothing_is_refused_even_when_partial_is_allowed() -> None:
    with pytest.raises(ShardUnavailable, match="at least one of 2 shards"):
        search(coordinator({1: Failure.TIMED_OUT}, {1: Failure.GONE}), Partial.ALLOW)


@pytest.mark.parametrize("partial", list(Partial))
def test_a_shard_that_is_gone_is_replaced(partial: Partial) -> None:
    over = coordinator({1: Failure.GONE}, {})
    answer = search(over, partial)
    assert over.shards[0].replaced == 1
    assert answer.coverage == (1.0 if partial is Partial.REFUSE else 0.5)


def test_a_shard_that_dies_whenever_it_is_replaced_fails_the_call() -> None:
    over = coordinator(dict.fromkeys(range(1, 100), Failure.GONE), {})
    with pytest.raises(ShardUnavailable, match="shard 0 of 2"):
        search(over)
    assert over.shards[0].replaced == ShardPolicy().most_replacements


def test_a_shards_own_error_is_passed_on_and_never_retried() -> None:
    over = coordinator({1: CorruptFile("part p is truncated")}, {})
    with pytest.raises(CorruptFile, match="part p is truncated"):
        search(over, Partial.ALLOW)
    assert len(over.shards[0].calls) == 1


def test_rows_come_back_in_the_order_asked_with_repeats() -> None:
    over = coordinator({}, {})
    asked = np.array([12, 0, 12, 3], dtype=np.int64)
    assert over.fetch(SERVED, asked, None, deadline_s=5.0)["fact_id"].to_pylist() == asked.tolist()
    assert over.vectors(SERVED, asked, deadline_s=5.0)[:, 0].tolist() == asked.tolist()


def test_an_unknown_id_is_named() -> None:
    over = coordinator({}, {})
    with pytest.raises(UnknownFact, match=r"generation 7, found 2 that it does not hold: 99, -1"):
        over.fetch(SERVED, np.array([0, 99, -1], dtype=np.int64), None, deadline_s=5.0)
