"""Requests that come at the same time become one call: nobody waits for a batch to fill, only for the one before."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deploy.serve.failures import Refused
from memory_store.errors import HmnError

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_RETRY_S = 30
SMOOTHING = 0.2  # weight of the newest batch in the running rate


@dataclass(eq=False)
class _Group(Generic[Item, Result]):
    """The items of one request; they stay together, so that one answer comes from one generation."""

    items: Sequence[Item]
    done: "asyncio.Future[list[Result]]"
    came_s: float


@dataclass(kw_only=True, eq=False)
class Batcher(Generic[Item, Result]):
    """Collects what comes while a call runs, and hands it over when that call ends.

    work: items -> one result or exception each; runs in `executor`, one call at a time. batch: items per call.
    waiting: items in the queue; more are refused. observe is told how many seconds each request waited for its call.
    """

    work: Callable[[list[Item]], Sequence[Result | Exception]]
    executor: Executor
    batch: int
    waiting: int
    deadline_s: float
    observe: Callable[[float], None] = lambda queued_s: None
    clock: Callable[[], float] = time.monotonic
    _queue: "deque[_Group[Item, Result]]" = field(default_factory=deque, init=False)
    _runner: "asyncio.Task[None] | None" = field(default=None, init=False)
    _items_per_s: float = field(default=0.0, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def queued(self) -> int:
        """Items that wait for a call."""
        return sum(len(group.items) for group in self._queue)

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """The results of the items, in their order.

        Raises Refused: overloaded when the queue is full, unavailable when the deadline passes; and what `work` gave as
        the exception of an item.
        """
        if self._closed:
            raise Refused("unavailable", "the service is shutting down", 1)
        if self.queued + len(items) > self.waiting:
            raise Refused("overloaded", f"more than {self.waiting} questions wait already", self.retry_after_s())
        group = _Group(items, asyncio.get_running_loop().create_future(), self.clock())
        self._queue.append(group)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())
        try:
            async with asyncio.timeout(self.deadline_s):
                return await group.done
        except TimeoutError:
            raise Refused(
                "unavailable", f"no answer within {self.deadline_s:g} s; try again", self.retry_after_s()
            ) from None

    def retry_after_s(self) -> int:
        """When the queue of now will have been worked off, in whole seconds; at least 1."""
        if self._items_per_s <= 0:
            return 1
        return max(1, min(LONGEST_RETRY_S, math.ceil(self.queued / self._items_per_s)))

    def close(self) -> None:
        """Refuse what waits and what comes."""
        self._closed = True
        for group in self._queue:
            if not group.done.done():
                group.done.set_exception(Refused("unavailable", "the service is shutting down", 1))
        self._queue.clear()

    async def _run(self) -> None:
        while groups := self._next():
            began_s = self.clock()
            for group in groups:
                self.observe(began_s - group.came_s)
            results = await self._call(groups)
            self._learn_rate(len(results), self.clock() - began_s)
            _deal(groups, results)

    async def _call(self, groups: "Sequence[_Group[Item, Result]]") -> Sequence[Result | Exception]:
        items = [item for group in groups for item in group.items]
        try:
            return await asyncio.get_running_loop().run_in_executor(self.executor, self.work, items)
        except (Refused, HmnError) as error:  # of the memory, not of a question: it is the answer to all of them
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer of the request that caused it
            if len(groups) == 1:
                return [error] * len(items)
            # One request of many made it fail: asked one by one, only that one does.
            return [result for group in groups for result in await self._call([group])]

    def _next(self) -> "list[_Group[Item, Result]]":
        """The groups of the next call; those that nobody waits for any more are dropped."""
        groups: list[_Group[Item, Result]] = []
        room = self.batch
        while self._queue and (self._queue[0].done.done() or len(self._queue[0].items) <= room):
            group = self._queue.popleft()
            if not group.done.done():
                groups.append(group)
                room -= len(group.items)
        return groups

    def _learn_rate(self, items: int, seconds: float) -> None:
        rate = items / max(seconds, 1e-6)
        self._items_per_s = rate if self._items_per_s == 0 else SMOOTHING * rate + (1 - SMOOTHING) * self._items_per_s


def _deal(groups: "Sequence[_Group[Item, Result]]", results: Sequence[Result | Exception]) -> None:
    start = 0
    for group in groups:
        mine = results[start : start + len(group.items)]
        start += len(group.items)
        if group.done.done():  # its client has gone, or its deadline has passed
            continue
        failed = next((result for result in mine if isinstance(result, Exception)), None)
        if failed is not None:
            group.done.set_exception(failed)
        else:
            group.done.set_result([result for result in mine if not isinstance(result, Exception)])
