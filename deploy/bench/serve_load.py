"""A closed-loop load on a running service: so many clients, each asking its next question when it has its answer."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

__all__ = [
    "Answered",
    "Connect",
    "Load",
    "Request",
    "connect_to",
    "drive",
    "get",
    "percentile_ms",
    "questions",
    "vectors",
]

TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that is made again and again. fits: whether the JSON of an answer is one to this request."""

    path: str
    content: bytes
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Answered:
    """What came back. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes


Send = Callable[[str, str, bytes], Awaitable[Answered]]
"""(method, path, body) -> what came back. Raises OSError, asyncio.IncompleteReadError or TimeoutError."""

Connect = Callable[[], AbstractAsyncContextManager[Send]]
"""A way to the service, one for each client; in a test, one that needs no network."""


@dataclass(kw_only=True)
class Load:
    """What clients met. latencies_s: of answered requests, from sending to the last byte, as a client sees them.

    refused: answered 429 or 503 with Retry-After, which is declared backpressure. failed: everything else that is not
    an answer to what was asked. batches, batched: searches that the service made meanwhile, and the questions in them.
    """

    clients: int
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    batched: int = 0

    @property
    def questions_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.failures[reason] = self.failures.get(reason, 0) + 1


def questions(texts: Sequence[str], k: int) -> list[Request]:
    """One request to /v1/ask for each text."""

    def fits(text: str) -> Callable[[Any], bool]:
        return lambda content: bool(content["answers"][0]["text"] == text)

    return [
        Request(path="/v1/ask", content=json.dumps({"text": text, "k": k}).encode(), fits=fits(text)) for text in texts
    ]


def vectors(rows: Sequence[Sequence[float]], best: Sequence[str], k: int) -> list[Request]:
    """One request to /v1/search for each vector; best: the fact id that is the first answer to it."""

    def fits(fact_id: str) -> Callable[[Any], bool]:
        return lambda content: bool(content["results"][0]["fact_ids"][0] == fact_id)

    return [
        Request(path="/v1/search", content=json.dumps({"vectors": [row], "k": k}).encode(), fits=fits(fact_id))
        for row, fact_id in zip(rows, best, strict=True)
    ]


async def drive(
    connect: Connect,
    requests: Sequence[Request],
    *,
    clients: int,
    seconds: float,
    until: Callable[[], bool] = lambda: True,
) -> Load:
    """Ask for so many seconds, and on until `until` holds. Every request that was begun is waited for and counts."""
    load = Load(clients=clients)
    numbers = count()
    before = await _batches(connect)
    began_s = time.perf_counter()
    ends_s = began_s + seconds

    async def client() -> None:
        async with connect() as send:
            while (sent_s := time.perf_counter()) < ends_s or not until():
                request = requests[next(numbers) % len(requests)]
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        answered = await send("POST", request.path, request.content)
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    load.fail(type(error).__name__)
                    await asyncio.sleep(0.05)
                    continue
                took_s = time.perf_counter() - sent_s
                pause_s = _count(load, request, answered, took_s)
                if pause_s:
                    await asyncio.sleep(min(pause_s, max(0.05, ends_s - time.perf_counter())))

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began_s
    after = await _batches(connect)
    load.batches, load.batched = after[0] - before[0], after[1] - before[1]
    return load


def _count(load: Load, request: Request, answered: Answered, took_s: float) -> float:
    """Book an answer; returns the seconds that the service asked to be left alone."""
    if answered.status in (429, 503) and "retry-after" in answered.headers:
        load.refused += 1
        return float(answered.headers["retry-after"])
    if answered.status != 200:
        load.fail(f"status {answered.status}")
    elif not request.fits(json.loads(answered.content)):
        load.fail("the answer to another question")
    else:
        load.latencies_s.append(took_s)
    return 0.0


def percentile_ms(latencies_s: Sequence[float], share: float) -> float | None:
    """The latency that this share of the answers did not exceed, in milliseconds (nearest rank)."""
    if not latencies_s:
        return None
    ordered = sorted(latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def get(connect: Connect, path: str) -> bytes:
    """The body at an address. Raises OSError where it is not 200."""
    async with connect() as send:
        answered = await send("GET", path, b"")
    if answered.status != 200:
        raise OSError(f"expected {path} to be answered, found status {answered.status}")
    return answered.content


async def _batches(connect: Connect) -> tuple[int, int]:
    """(searches, questions in them) since the service started, as it counts them; zeros of a replica just started."""
    text = (await get(connect, "/metrics")).decode()
    found = dict(re.findall(r"^hmn_batch_items_(count|sum) (\S+)$", text, re.MULTILINE))
    return int(float(found.get("count", 0))), int(float(found.get("sum", 0)))


def connect_to(url: str, token: str | None = None) -> Connect:
    """Connections that stay open, over plain sockets: a comfortable client would take more time than the service."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    headers = f"host: {parts.netloc}\r\ncontent-type: application/json\r\n"
    if token:
        headers += f"authorization: Bearer {token}\r\n"

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        connection = _Connection(host, port, headers.encode())
        try:
            yield connection.send
        finally:
            await connection.close()

    return connect


class _Connection:
    """HTTP/1.1 as far as an answer with a Content-Length, or in chunks, needs it; opened again when it was closed."""

    def __init__(self, host: str, port: int, headers: bytes) -> None:
        self._place = (host, port)
        self._headers = headers
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: str, path: str, content: bytes) -> Answered:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place)
        reader, writer = self._streams
        try:
            head = f"{method} {path} HTTP/1.1\r\ncontent-length: {len(content)}\r\n".encode()
            writer.write(head + self._headers + b"\r\n" + content)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines[1:] if line)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            if headers.get("transfer-encoding") == "chunked":
                body = await _chunks(reader)
            else:
                body = await reader.readexactly(int(headers.get("content-length", 0)))
        except BaseException:  # what is half read cannot be used for another request
            await self.close()
            raise
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return Answered(int(lines[0].split()[1]), headers, body)

    async def close(self) -> None:
        if self._streams is not None:
            (_, writer), self._streams = self._streams, None
            writer.close()
            with suppress(OSError):  # the other side was faster
                await writer.wait_closed()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(pieces)
