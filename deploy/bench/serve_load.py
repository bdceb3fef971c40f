"""A closed-loop load on a running service: so many clients, each asking its next question when it has its answer."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import httpx

__all__ = ["Load", "drive", "percentile_ms"]

TIMEOUT_S = 120.0


@dataclass(kw_only=True)
class Load:
    """What clients met. latencies_s: of answered requests, from sending to the last byte, as a client sees them.

    refused: answered 429, which is declared backpressure. failed: everything else that is not an answer to what was
    asked. batches, batched: searches that the service made meanwhile, and the questions in them.
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


async def drive(http: httpx.AsyncClient, texts: Sequence[str], *, clients: int, seconds: float, k: int) -> Load:
    """Ask for so many seconds. Every question that was begun is waited for and counts, and so does its time."""
    load = Load(clients=clients)
    numbers = count()
    before = await _batches(http)
    began_s = time.perf_counter()
    ends_s = began_s + seconds

    async def client() -> None:
        while (sent_s := time.perf_counter()) < ends_s:
            text = texts[next(numbers) % len(texts)]
            try:
                response = await http.post("/v1/ask", json={"text": text, "k": k})
            except httpx.TransportError as error:
                load.fail(type(error).__name__)
                continue
            took_s = time.perf_counter() - sent_s
            if response.status_code == 429:
                load.refused += 1
                await asyncio.sleep(min(float(response.headers["retry-after"]), max(0.0, ends_s - time.perf_counter())))
            elif response.status_code != 200:
                load.fail(f"status {response.status_code}")
            elif response.json()["answers"][0]["text"] != text:
                load.fail("the answer to another question")
            else:
                load.latencies_s.append(took_s)

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began_s
    after = await _batches(http)
    load.batches, load.batched = after[0] - before[0], after[1] - before[1]
    return load


def percentile_ms(latencies_s: Sequence[float], share: float) -> float | None:
    """The latency that this share of the answers did not exceed, in milliseconds (nearest rank)."""
    if not latencies_s:
        return None
    ordered = sorted(latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _batches(http: httpx.AsyncClient) -> tuple[int, int]:
    """(searches, questions in them) since the service started, as it counts them."""
    text = (await http.get("/metrics")).text
    found = dict(re.findall(r"^hmn_batch_items_(count|sum) (\S+)$", text, re.MULTILINE))
    return int(float(found.get("count", 0))), int(float(found.get("sum", 0)))
