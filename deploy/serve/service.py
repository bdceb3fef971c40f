"""Between the routes and the engine: batches, their results as replies, and the upkeep that runs beside."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from deploy.serve.batcher import Batcher
from deploy.serve.engine import Asked, Batch, Engine, Wanted
from deploy.serve.failures import Refused
from deploy.serve.guard import describe
from deploy.serve.metrics import ServiceMetrics
from deploy.serve.rollout import Rollout
from deploy.serve.schema import Answered, AskReply, FactRead, Found, LatencyMs, SearchReply
from deploy.serve.settings import ServeSettings
from deploy.serve.writing import Write, Written
from trainer.ask import Answer

__all__ = ["Service"]

CHECK_S = 5.0  # how often the shards are asked how they are

Item = TypeVar("Item", Asked, Wanted)

log = logging.getLogger("hmn.serve")


@dataclass(frozen=True, eq=False)
class _Part:
    """One item's share of a batch."""

    result: Any
    batch: Batch


class Service:
    """Answers requests from an engine: one thread computes batches, another one rolls out and checks."""

    def __init__(self, engine: Engine, settings: ServeSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = ServiceMetrics(among_others=settings.source.name is not None)
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="hmn-batch")
        self._keeping = ThreadPoolExecutor(1, thread_name_prefix="hmn-upkeep")
        limits = settings.limits
        self._asked: Batcher[Asked, _Part] = Batcher(
            work=lambda items: self._parts(engine.ask(items)),
            executor=self._computing,
            batch=limits.batch,
            waiting=limits.waiting,
            deadline_s=limits.deadline_s,
            observe=self.metrics.queued_for,
        )
        self._wanted: Batcher[Wanted, _Part] = Batcher(
            work=lambda items: self._parts(engine.search(items)),
            executor=self._computing,
            batch=limits.batch,
            waiting=limits.waiting,
            deadline_s=limits.deadline_s,
            observe=self.metrics.queued_for,
        )
        self._upkeep: asyncio.Task[None] | None = None
        self._writing = 0

    async def start(self) -> None:
        """Begin to look for rollouts and after the shards."""
        self._upkeep = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Refuse what waits, let what runs end, close the engine."""
        if self._upkeep is not None:
            self._upkeep.cancel()
        self._asked.close()
        self._wanted.close()
        for threads in (self._computing, self._keeping):
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self.engine.close)

    async def ask(self, texts: Sequence[str], k: int) -> AskReply:
        """Answers to the questions of one request. Raises Refused and what the engine raises."""
        began_s = time.perf_counter()
        parts = await self._asked.submit([Asked(text, k) for text in texts])
        batch = parts[0].batch
        return AskReply(
            answers=[_answered(text, part.result) for text, part in zip(texts, parts, strict=True)],
            generation=batch.generation,
            coverage=batch.coverage,
            model=batch.encoder,
            latency_ms=_latency(batch, time.perf_counter() - began_s),
        )

    async def search(self, vectors: Sequence[Sequence[float]], k: int) -> SearchReply:
        """What is nearest to the vectors of one request. Raises Refused and what the engine raises."""
        began_s = time.perf_counter()
        with np.errstate(over="ignore"):  # beyond float32 a number becomes infinity
            wanted = [Wanted(np.asarray(vector, dtype=np.float32), k) for vector in vectors]
        if not all(np.isfinite(one.vector_D).all() for one in wanted):  # refused here: it must not spoil a batch
            raise Refused("invalid_request", "expected numbers that float32 can hold")
        parts = await self._wanted.submit(wanted)
        batch = parts[0].batch
        return SearchReply(
            results=[_found(*part.result) for part in parts],
            generation=batch.generation,
            coverage=batch.coverage,
            model=batch.encoder,
            latency_ms=_latency(batch, time.perf_counter() - began_s),
        )

    async def roll_out(self) -> Rollout:
        """Look for something newer now. Raises Refused (unavailable: it takes longer), and what the engine raises."""
        running = asyncio.get_running_loop().run_in_executor(self._keeping, self.engine.roll_out)
        try:
            async with asyncio.timeout(self.settings.limits.deadline_s):
                return await asyncio.shield(running)
        except TimeoutError:
            running.add_done_callback(_log_failure)
            raise Refused("unavailable", "the rollout goes on; GET /v1/memory says when it is done", 5) from None

    async def write(self, write: Write) -> Written:
        """Upsert or delete facts; one write at a time. Raises Refused and what the engine raises."""
        limits = self.settings.limits
        if self._writing >= limits.writing:
            raise Refused("overloaded", f"{limits.writing} writes are under way or wait already", 1)
        self._writing += 1
        running = asyncio.get_running_loop().run_in_executor(self._keeping, self.engine.write, write)
        running.add_done_callback(self._has_written)
        try:
            async with asyncio.timeout(limits.deadline_s):
                return await asyncio.shield(running)  # goes on although its client does not wait for it
        except TimeoutError:
            raise Refused("unavailable", "the write is still under way; the same again is safe", 5) from None

    def _has_written(self, done: "asyncio.Future[Written]") -> None:
        self._writing -= 1
        _log_failure(done)

    def metrics_text(self) -> bytes:
        return self.metrics.text(self.engine.status(), self._asked.queued + self._wanted.queued)

    def _parts(self, batch: Batch) -> list[_Part | Exception]:
        self.metrics.batch(len(batch.results), batch.stages_s, batch.coverage)
        return [result if isinstance(result, Exception) else _Part(result, batch) for result in batch.results]

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        polled_s = checked_s = time.monotonic()
        poll_s = self.settings.poll_s or math.inf
        while True:
            await asyncio.sleep(min(poll_s, CHECK_S))
            try:
                if time.monotonic() - polled_s >= poll_s:
                    polled_s = time.monotonic()
                    await loop.run_in_executor(self._keeping, self.engine.roll_out)
                if time.monotonic() - checked_s >= CHECK_S:
                    checked_s = time.monotonic()
                    await loop.run_in_executor(self._keeping, self.engine.check)
            except Exception as error:  # noqa: BLE001  # the service goes on with what it serves, and tries again
                log.warning("upkeep failed, serving goes on: %s", describe(error))


def _log_failure(done: "asyncio.Future[Any]") -> None:
    """For what goes on although nobody may wait for it any more."""
    if not done.cancelled() and (error := done.exception()) is not None and not isinstance(error, Refused):
        log.warning("a write or a rollout failed: %s", describe(error))


def _answered(text: str, facts: Sequence[Answer]) -> Answered:
    return Answered(
        text=text,
        answer=list(facts[0].objects) if facts else None,
        facts=[
            FactRead(
                fact_id=str(fact.fact_id),
                subject_id=fact.subject_id,
                subject=fact.subject,
                relation=fact.relation,
                objects=list(fact.objects),
                object_ids=list(fact.object_ids),
                score=_number(fact.score),
                weight=fact.weight,
            )
            for fact in facts
        ],
    )


def _found(ids_K: Any, scores_K: Any) -> Found:
    held = ids_K >= 0
    return Found(
        fact_ids=[str(fact_id) for fact_id in ids_K[held].tolist()],
        scores=[_number(score) for score in scores_K[held].tolist()],
    )


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _latency(batch: Batch, total_s: float) -> LatencyMs:
    stages_ms = {name: round(1000 * seconds, 3) for name, seconds in batch.stages_s.items()}
    queue_s = max(0.0, total_s - sum(batch.stages_s.values()))
    return LatencyMs(total=round(1000 * total_s, 3), queue=round(1000 * queue_s, 3), **stages_ms)
