"""Fan-out to the shards, deadlines, the failure policy carried out, and the merge; the shards are passed in."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.calls import Call, CallFailed, ShardHandle
from memory_store.errors import ShardUnavailable, UnknownFact
from memory_store.parts import take_rows
from memory_store.policy import Decision, Partial, ShardPolicy, ShardReport
from memory_store.replicas import HedgedCall, tend
from memory_store.shard import FoundFacts, FoundPlaces, FoundVectors, ShardStats
from memory_store.topk import PartialTopK, TopK, merge

# B queries, K slots, D dimension, C fact ids asked for

__all__ = ["Call", "CallFailed", "Coordinator", "Served", "ShardHandle"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """The generation that answers: what a call needs to know of it. Replaced as a whole, so no answer mixes two."""

    generation: int
    dim: int
    fact_count: int
    rows_by_shard: tuple[int, ...]


@dataclass(kw_only=True)
class Coordinator:
    """Asks every shard, merges what they say, and treats failures as `policy` decides.

    sleep and clock are passed in so that tests step through failures without waiting.
    """

    shards: Sequence[ShardHandle]
    policy: ShardPolicy = field(default_factory=ShardPolicy)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    incarnations: list[set[str]] = field(init=False)  # per shard, every process that was seen to serve it
    recoveries: list[int] = field(init=False)  # per shard, how often it answered again after its process had died

    def __post_init__(self) -> None:
        self.incarnations = [set() for _ in self.shards]
        self.recoveries = [0] * len(self.shards)

    def search(
        self, served: Served, queries_BD: NDArray[np.float32], k: int, *, deadline_s: float, partial: Partial
    ) -> TopK:
        """The merged top k of all shards; ShardUnavailable when a shard did not answer and may not be left out."""
        answers: list[PartialTopK | None] = self._ask_all(
            "search", (served.generation, queries_BD, k), deadline_s=deadline_s, partial=partial
        )
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise ShardUnavailable(
                f"expected an answer from at least one of {len(self.shards)} shards within {deadline_s:g} s, found "
                "none; retry, or raise the deadline"
            )
        searched = sum(rows for rows, answer in zip(served.rows_by_shard, answers, strict=True) if answer is not None)
        merged = merge(found, k)
        with np.errstate(over="ignore"):  # beyond float32 a product reads as infinity; its rank is decided
            scores_BK = merged.scores_BK.astype(np.float32)
        return TopK(
            fact_ids_BK=merged.fact_ids_BK,
            scores_BK=scores_BK,
            generation=served.generation,
            coverage=searched / served.fact_count if served.fact_count else 1.0,
        )

    def fetch(
        self, served: Served, fact_ids_C: NDArray[np.int64], columns: Sequence[str] | None, *, deadline_s: float
    ) -> pa.Table:
        """Fact rows in the order asked; UnknownFact when no shard holds an id."""
        found: list[FoundFacts] = self._ask_all(
            "fetch", (served.generation, fact_ids_C, columns), deadline_s=deadline_s
        )
        order_C = _order([answer.positions_F for answer in found], fact_ids_C, served.generation)
        return take_rows(pa.concat_tables([answer.table for answer in found]), order_C)

    def vectors(self, served: Served, fact_ids_C: NDArray[np.int64], *, deadline_s: float) -> NDArray[np.float32]:
        """Stored vectors, float32 [C, D], in the order asked; UnknownFact when no shard holds an id."""
        found: list[FoundVectors] = self._ask_all("vectors", (served.generation, fact_ids_C), deadline_s=deadline_s)
        order_C = _order([answer.positions_F for answer in found], fact_ids_C, served.generation)
        stacked_CD: NDArray[np.float32] = np.concatenate([answer.vectors_FD for answer in found])
        return stacked_CD[order_C]

    def locate(
        self, generation: int, fact_ids_C: NDArray[np.int64], *, deadline_s: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part [C] of the manifest, row [C] in it) of each live fact, -1 where no shard holds it; each id once."""
        part_C, row_C = (np.full(len(fact_ids_C), -1, dtype=np.int64) for _ in range(2))
        found: list[FoundPlaces] = self._ask_all("locate", (generation, fact_ids_C), deadline_s=deadline_s)
        for answer in found:
            part_C[answer.positions_F] = answer.part_F
            row_C[answer.positions_F] = answer.row_F
        return part_C, row_C

    def load(self, generation: int, *, deadline_s: float) -> tuple[int, ...]:
        """Have every shard load a generation beside the one it serves; returns the rows of each."""
        return tuple(self._ask_all("load", (generation,), deadline_s=deadline_s))

    def release(self, keep_generation: int, *, deadline_s: float) -> None:
        """Have every shard let other generations go."""
        self._ask_all("release", (keep_generation,), deadline_s=deadline_s)

    def stats(self, served: Served, *, deadline_s: float) -> tuple[ShardStats, ...]:
        """One line per shard; `restarts` counts those noticed by a failed call or by a change of process."""
        lines: list[ShardStats] = self._ask_all("stats", (served.generation,), deadline_s=deadline_s)
        for number, line in enumerate(lines):
            self.incarnations[number].add(line.incarnation)
        return tuple(
            replace(line, restarts=max(len(self.incarnations[number]) - 1, self.recoveries[number]))
            if not line.copies
            else line
            for number, line in enumerate(lines)
        )

    def _ask_all(
        self, method: str, args: tuple[Any, ...], *, deadline_s: float, partial: Partial = Partial.REFUSE
    ) -> list[Any]:
        """One answer per shard, None where the policy left a shard out."""
        deadline = self.clock() + deadline_s
        calls = [self._start(shard, method, args) for shard in self.shards]
        tend([call for call in calls if isinstance(call, HedgedCall)], deadline, self.clock)
        return [self._settle(number, call, method, args, deadline, partial) for number, call in enumerate(calls)]

    def _start(self, shard: ShardHandle, method: str, args: tuple[Any, ...]) -> Call:
        try:
            return shard.start(method, *args)
        except CallFailed as failed:  # a dead actor may refuse the call itself; it counts when the answer is awaited
            return _NotStarted(failed)

    def _settle(
        self, number: int, call: Call, method: str, args: tuple[Any, ...], deadline: float, partial: Partial
    ) -> Any:
        failures = 0
        while True:
            try:
                answer = call.result(max(0.0, deadline - self.clock()))
                self.recoveries[number] += failures > 0
                return answer
            except CallFailed as failed:
                failures += 1
                report = ShardReport(
                    shard=number,
                    failures=failures,
                    failure=failed.failure,
                    remaining_s=max(0.0, deadline - self.clock()),
                )
                decision = self.policy.decide(report, partial)
                if decision is Decision.FAIL:
                    way_out = "retry, raise the deadline, or allow partial answers"
                    if method != "search":  # nothing else may leave rows out
                        way_out = "retry, or raise the deadline"
                    raise ShardUnavailable(
                        f"shard {number} of {len(self.shards)} did not answer `{method}` after {failures} failure(s), "
                        f"the last: {failed.failure.value} ({failed}); {way_out}"
                    ) from failed
                if decision in (Decision.REPLACE, Decision.SKIP_AND_REPLACE):
                    self.shards[number].replace()
                if decision in (Decision.SKIP, Decision.SKIP_AND_REPLACE):
                    return None
                self.sleep(self.policy.pause_before_retry_s(report))
                call = self._start(self.shards[number], method, args)


@dataclass(frozen=True)
class _NotStarted:
    failed: CallFailed

    def result(self, timeout_s: float) -> Any:
        raise self.failed


def _order(
    positions_by_shard: Sequence[NDArray[np.int64]], fact_ids_C: NDArray[np.int64], generation: int
) -> NDArray[np.int64]:
    """Where each of the C ids asked for lies in the shards' answers laid end to end."""
    positions = np.concatenate(list(positions_by_shard))
    order_C = np.full(len(fact_ids_C), -1, dtype=np.int64)
    order_C[positions] = np.arange(len(positions))
    unknown = fact_ids_C[order_C < 0]
    if len(unknown):
        named = ", ".join(str(fact_id) for fact_id in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UnknownFact(
            f"expected ids of facts in generation {generation}, found {len(unknown)} that it does not hold: {named}; "
            "refresh, or open the generation that the ids came from"
        )
    return order_C
