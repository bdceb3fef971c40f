"""A named double of the engine, and a way to talk to the application without a server."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from deploy.serve.app import make_app
from deploy.serve.engine import Asked, Batch, Status, Wanted
from deploy.serve.failures import Refused
from deploy.serve.rollout import Move, Rollout
from deploy.serve.settings import Access, Limits, ServeSettings, Source
from deploy.serve.writing import Upsert, Write, Written
from memory_store.shard import ShardStats
from trainer.ask import Answer

DIM = 4
TOKEN = "a token that is long enough"


class FakeEngine:
    """Answers every question with facts named after it. fail_with: raised by the next batches instead.

    hold: while it is cleared, batches wait, so that a test decides what comes together. sizes: of the batches begun.
    poison: a question that makes its whole batch fail. writes: what was written.
    """

    def __init__(self) -> None:
        self.fail_with: Exception | None = None
        self.poison: str | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.sizes: list[int] = []
        self.ready = True
        self.generation = 3
        self.coverage = 1.0
        self.closed = False
        self.writes: list[Write] = []

    def ask(self, asked: Sequence[Asked]) -> Batch:
        self._begin(len(asked))
        if self.poison in [one.text for one in asked]:
            raise RuntimeError("a bug in /secret/path with s3://user:password@bucket/memory")
        return self._batch([[_fact(one.text, rank) for rank in range(one.k)] for one in asked])

    def search(self, wanted: Sequence[Wanted]) -> Batch:
        self._begin(len(wanted))
        return self._batch(
            [
                (np.arange(one.k), np.linspace(1, 0, one.k, dtype=np.float32))
                if len(one.vector_D) == DIM
                else Refused("invalid_request", f"expected vectors of dimension {DIM}, found {len(one.vector_D)}")
                for one in wanted
            ]
        )

    def status(self) -> Status:
        shard = ShardStats(
            shard=0,
            rows=10,
            bytes=160,
            index="exact",
            generation=self.generation,
            generations_resident=(3,),
            pid=1,
            incarnation="a",
            restarts=2,
        )
        return Status(
            ready=self.ready,
            generation=self.generation,
            created_at="2026-01-01T00:00:00+00:00",
            facts=10,
            dim=DIM,
            encoder="double-1",
            checkpoint_step=7,
            index="exact",
            backend="local",
            shards=(shard,),
        )

    def check(self) -> None:
        pass

    def roll_out(self) -> Rollout:
        self.hold.wait(60)
        if self.fail_with is not None:
            raise self.fail_with
        self.generation += 1
        return Rollout(Move.GENERATION, self.generation)

    def write(self, write: Write) -> Written:
        self.writes.append(write)
        self.hold.wait(60)
        if self.fail_with is not None:
            raise self.fail_with
        self.generation += 1
        ids = range(2**62, 2**62 + len(write.facts)) if isinstance(write, Upsert) else write.fact_ids
        return Written(generation=self.generation, fact_ids=tuple(ids))

    def close(self) -> None:
        self.closed = True

    def _begin(self, size: int) -> None:
        self.sizes.append(size)
        self.hold.wait(60)
        if self.fail_with is not None:
            raise self.fail_with

    def _batch(self, results: list[Any]) -> Batch:
        return Batch(
            results=results,
            generation=self.generation,
            encoder="double-1",
            coverage=self.coverage,
            stages_s={"encode": 0.001, "search": 0.002, "fetch": 0.003},
        )


def _fact(text: str, rank: int) -> Answer:
    return Answer(
        fact_id=2**62 + rank,
        subject_id="s",
        subject=text,
        relation="is",
        objects=(f"answer to {text}",),
        object_ids=("o",),
        score=float("inf") if rank == 0 else 1.0,
        weight=1.0 if rank == 0 else 0.0,
    )


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Give the event loop away until something holds; fails after half a minute."""
    async with asyncio.timeout(30):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.001)


@pytest.fixture
def post_together(engine: FakeEngine) -> Callable[..., Any]:
    """Post questions so that the first is a batch of its own and the others wait together; returns their answers.

    release=False: the test itself lets the first batch go on.
    """

    async def post(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], release: bool = True) -> Any:
        async def waiting() -> bool:
            return f"hmn_queued_items {len(bodies) - 1}.0" in (await client.get("/metrics")).text

        engine.hold.clear()
        first = asyncio.ensure_future(client.post("/v1/ask", json=bodies[0]))
        await until(lambda: engine.sizes == [1])
        others = [asyncio.ensure_future(client.post("/v1/ask", json=body)) for body in bodies[1:]]
        await until(waiting)
        if release:
            engine.hold.set()
        return await asyncio.gather(first, *others)

    return post


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


Talk = Callable[[httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture
def converse(engine: FakeEngine) -> Callable[..., Any]:
    """Run a conversation with the application over the double; returns what it returns.

    prefix: that the application is served under, with which all paths begin.
    """

    def run(
        talk: Talk,
        *,
        limits: Limits | None = None,
        token: str | None = TOKEN,
        reads: bool = False,
        prefix: str = "",
    ) -> Any:
        settings = ServeSettings(
            source=Source(run_dir="unused"),
            limits=limits or Limits(),
            access=Access.from_token(token, reads=reads),
            poll_s=0,
        )
        app = make_app(engine, settings)

        async def all_of_it() -> Any:
            transport = httpx.ASGITransport(app=app, root_path=prefix)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://service") as client,
            ):
                return await talk(client)

        return asyncio.run(all_of_it())

    return run


@pytest.fixture
def ask_meanwhile() -> Callable[[Callable[[], Any], Iterable[Callable[[], None]]], list[Any]]:
    """Asks in a thread while the changes are made one after the other; returns all answers, none of which may fail."""

    def run(ask: Callable[[], Any], changes: Iterable[Callable[[], None]]) -> list[Any]:
        seen: list[Any] = []
        failures: list[Exception] = []
        stop = threading.Event()

        def ask_on() -> None:
            while not stop.is_set():
                try:
                    seen.append(ask())
                except Exception as error:  # noqa: BLE001  # whatever it is, it is what must not happen
                    failures.append(error)

        asking = threading.Thread(target=ask_on)
        asking.start()
        try:
            for change in changes:
                change()
                answered = len(seen)
                while len(seen) < answered + 3 and not failures:
                    stop.wait(0.001)
        finally:
            stop.set()
            asking.join()
        assert failures == []
        return seen

    return run
