"""The load generator of `hmn bench serve`: it counts what happened, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx
import pytest

from deploy.bench.serve_load import Answered, Connect, Load, connect_to, drive, percentile_ms, questions, vectors
from deploy.bench.serve_load import Send as SendOne
from deploy.serve.settings import Limits
from memory_store.errors import ShardUnavailable

Converse = Callable[..., Any]


def over(client: httpx.AsyncClient) -> Connect:
    """Connections that lead into the application without a server."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[SendOne]:
        async def send(method: str, path: str, content: bytes) -> Answered:
            reply = await client.request(method, path, content=content, headers={"content-type": "application/json"})
            return Answered(reply.status_code, dict(reply.headers), reply.content)

        yield send

    return connect


def test_every_answered_question_counts_once(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        return await drive(over(client), questions(["a", "b", "c"], 1), clients=4, seconds=0.2)

    load: Load = converse(talk)
    assert load.questions_per_s > 0
    assert (load.refused, load.failed) == (0, 0)
    assert load.batched == len(load.latencies_s) == sum(engine.sizes)
    assert load.batches == len(engine.sizes)
    assert load.seconds >= 0.2


def test_a_load_goes_on_until_what_it_waits_for_has_happened(converse: Converse) -> None:
    looks = iter([False] * 5)

    async def talk(client: httpx.AsyncClient) -> Load:
        return await drive(over(client), questions(["a"], 1), clients=1, seconds=0.0, until=lambda: next(looks, True))

    load: Load = converse(talk)
    assert len(load.latencies_s) == 5


def test_vectors_are_checked_by_the_fact_that_must_come_first(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        right, wrong = vectors([[0.0] * 4] * 2, ["0", "1"], 2)
        return await drive(over(client), [right, wrong], clients=1, seconds=0.05)

    load: Load = converse(talk)
    assert load.latencies_s
    assert load.failures == {"the answer to another question": load.failed}


def test_backpressure_is_counted_apart_from_failures(converse: Converse) -> None:
    looks = count()

    async def talk(client: httpx.AsyncClient) -> Load:
        asked = questions(["a"], 1)
        return await drive(over(client), asked, clients=16, seconds=0.1, until=lambda: next(looks) > 64)

    load: Load = converse(talk, limits=Limits(items=1, batch=1, waiting=1))
    assert load.refused > 0
    assert load.failed == 0
    assert load.latencies_s


def test_failures_are_counted_by_kind(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        engine.fail_with = OSError("gone")
        return await drive(over(client), questions(["a"], 1), clients=1, seconds=0.05)

    load: Load = converse(talk)
    assert load.latencies_s == []
    assert load.failures == {"status 500": load.failed}
    assert load.failed > 0


def test_a_shard_that_is_away_is_declared_with_a_time_to_come_back(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        engine.fail_with = ShardUnavailable("gone")
        return await drive(over(client), questions(["a"], 1), clients=1, seconds=0.05)

    load: Load = converse(talk)
    assert (load.failed, load.latencies_s) == (0, [])
    assert load.refused > 0


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", (200, b"{}")),
        (b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\nconnection: close\r\n\r\n", (429, b"")),
    ],
)
def test_a_connection_reads_an_answer_and_is_used_again(said: bytes, found: tuple[int, bytes]) -> None:
    heard: list[bytes] = []
    served: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        while request := await reader.read(65_536):
            heard.append(request)
            writer.write(said)
            await writer.drain()
            if b"close" in said:
                break
        writer.close()
        await writer.wait_closed()

    async def talk() -> list[Answered]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect_to(f"http://127.0.0.1:{port}", "a token")() as send:
                answers = [await send("POST", "/v1/ask", b"{}") for _ in range(2)]
            await asyncio.gather(*served)
        return answers

    assert [(one.status, one.content) for one in asyncio.run(talk())] == [found] * 2
    assert heard[0].startswith(b"POST /v1/ask HTTP/1.1\r\ncontent-length: 2\r\n")
    assert b"authorization: Bearer a token\r\n" in heard[0]


@pytest.mark.parametrize(
    ("latencies_s", "share", "expected"),
    [([], 0.5, None), ([0.003], 0.99, 3.0), ([0.001, 0.002, 0.003, 0.004], 0.5, 3.0), ([0.002, 0.001], 0.99, 2.0)],
)
def test_a_percentile_is_a_latency_that_happened(latencies_s: list[float], share: float, expected: float) -> None:
    assert percentile_ms(latencies_s, share) == expected
