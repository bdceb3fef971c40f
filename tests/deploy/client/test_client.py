"""The client, sync and async: typed answers, retries that honour Retry-After, errors that say what to do."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest

from deploy.client import (
    AsyncClient,
    Client,
    Fact,
    InvalidRequest,
    Overloaded,
    RetryPolicy,
    ServiceError,
    ServiceUnavailable,
    Unauthorized,
)
from deploy.client.retry import retry_after_s
from memory_store.errors import ConfigError

FACT = {
    "fact_id": str(2**62),
    "subject_id": "p",
    "subject": "Peru",
    "relation": "capital",
    "objects": ["Lima"],
    "object_ids": ["l"],
    "score": None,
    "weight": 1.0,
}
ASKED = {
    "answers": [{"text": "who", "answer": ["Lima"], "facts": [FACT]}, {"text": "what", "answer": None, "facts": []}],
    "generation": 3,
    "coverage": 0.5,
    "model": "m",
    "latency_ms": {"total": 2.0, "queue": 0.5, "encode": None, "search": 1.0, "fetch": None},
}


class FakeService:
    """Answers with what it was given, in turn; the last one again and again. requests: what came."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        # a copy: what a client has read once, it takes for its own
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def sleep_async(self, seconds: float) -> None:
        self.slept.append(seconds)


Use = Callable[[Any], Any]


def with_client(kind: str, service: FakeService, method: str, *arguments: Any, **options: Any) -> tuple[Any, Clock]:
    """Call a method of the sync or the async client; returns its answer and the clock."""
    clock = Clock()
    options = {"retry": RetryPolicy(draw=random.Random(0)), "token": "", "clock": clock, **options}
    transport = httpx.MockTransport(service)
    if kind == "sync":
        with Client("http://service", transport=transport, sleep=clock.sleep, **options) as client:
            return getattr(client, method)(*arguments), clock

    async def call() -> Any:
        async with AsyncClient("http://service", transport=transport, sleep=clock.sleep_async, **options) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call()), clock


def refusal(status: int, kind: str = "overloaded", **headers: str) -> httpx.Response:
    body = {"error": {"type": kind, "message": "a reason", "request_id": "r1"}}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_answer_is_typed(kind: str) -> None:
    service = FakeService(httpx.Response(200, json=ASKED))
    result, _ = with_client(kind, service, "ask", ["who", "what"], 1)
    assert service.requests[0].url.path == "/v1/ask"
    assert service.requests[0].read() == b'{"text":["who","what"],"k":1}'
    first, second = result.answers
    assert first.answer == ("Lima",)
    assert (first.facts[0].fact_id, first.facts[0].objects, first.facts[0].score) == (2**62, ("Lima",), None)
    assert (second.answer, second.facts) == ((), ())
    assert (result.generation, result.coverage, result.model) == (3, 0.5, "m")
    assert result.latency_ms == {"total": 2.0, "queue": 0.5, "search": 1.0}


@pytest.mark.parametrize("vectors", [np.ones((2, 3), np.float32), [[1.0] * 3] * 2, [np.ones(3).tolist()] * 2])
def test_vectors_are_taken_as_arrays_or_lists(kind: str, vectors: Any) -> None:
    body = {
        "results": [{"fact_ids": ["7"], "scores": [1.5]}] * 2,
        **{name: ASKED[name] for name in ("generation", "coverage", "model", "latency_ms")},
    }
    service = FakeService(httpx.Response(200, json=body))
    result, _ = with_client(kind, service, "search", vectors, 1)
    assert service.requests[0].read() == b'{"vectors":[[1.0,1.0,1.0],[1.0,1.0,1.0]],"k":1}'
    assert result.fact_ids == ((7,), (7,))
    assert result.scores == ((1.5,), (1.5,))


def test_the_memory_and_a_refresh_are_typed(kind: str) -> None:
    body = {
        "generation": 1,
        "created_at": "t",
        "facts": 2,
        "dim": 3,
        "model": "m",
        "checkpoint_step": 4,
        "index": "exact",
        "backend": "ray",
        "shards": [{"shard": 0, "rows": 2, "bytes": 5, "restarts": 1}],
        "limits": {"k": 100},
    }
    result, _ = with_client(kind, FakeService(httpx.Response(200, json=body)), "memory")
    assert (result.facts, result.shards[0].restarts, result.limits["k"]) == (2, 1, 100)
    moved = FakeService(httpx.Response(200, json={"moved": "model", "generation": 9}))
    result, _ = with_client(kind, moved, "refresh", token="the token")
    assert (result.moved, result.generation) == ("model", 9)
    assert moved.requests[0].headers["authorization"] == "Bearer the token"


def test_facts_are_written_and_deleted_by_id(kind: str) -> None:
    service = FakeService(
        refusal(503), httpx.Response(200, json={"generation": 4, "fact_ids": [str(2**62)], "unknown": ["5"]})
    )
    fact = Fact(subject_id="p", subject="Peru", relation="capital", object_ids=["l"], objects=["Lima"])
    result, _ = with_client(kind, service, "upsert", [fact])
    assert (result.generation, result.fact_ids, result.unknown) == (4, (2**62,), (5,))
    assert len(service.requests) == 2
    assert json.loads(service.requests[1].read()) == {
        "upsert": [
            {
                "subject_id": "p",
                "subject": "Peru",
                "aliases": [],
                "relation": "capital",
                "object_ids": ["l"],
                "objects": ["Lima"],
            }
        ]
    }
    with_client(kind, service, "delete", [2**62, 5])
    assert json.loads(service.requests[2].read()) == {"delete": [str(2**62), "5"]}


def test_the_token_comes_from_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMN_TOKEN", "from outside")
    service = FakeService(httpx.Response(200, json=ASKED))
    with_client(kind, service, "ask", "who", token=None)
    assert service.requests[0].headers["authorization"] == "Bearer from outside"


def test_what_passes_by_itself_is_asked_again_no_sooner_than_the_service_says(kind: str) -> None:
    service = FakeService(
        refusal(429, retry_after="3"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        refusal(503),
        httpx.Response(200, json=ASKED),
    )
    result, clock = with_client(kind, service, "ask", "who")
    assert result.generation == 3
    assert len(service.requests) == 5
    assert clock.slept[0] == 3.0
    assert all(0 < pause_s <= 0.1 * 2**attempt for attempt, pause_s in enumerate(clock.slept) if attempt)


@pytest.mark.parametrize(
    ("answer", "error", "attempts"),
    [
        (refusal(429, retry_after="1"), Overloaded, 5),
        (refusal(503, "unavailable"), ServiceUnavailable, 5),
        (httpx.ConnectError("connection refused"), ServiceUnavailable, 5),
        (refusal(500, "internal"), ServiceUnavailable, 1),
        (refusal(422, "invalid_request"), InvalidRequest, 1),
        (refusal(413, "too_large"), InvalidRequest, 1),
        (refusal(401, "unauthorized"), Unauthorized, 1),
        (refusal(403, "forbidden"), Unauthorized, 1),
        (httpx.Response(404, text="<html>"), InvalidRequest, 1),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), ServiceUnavailable, 1),
        (httpx.Response(200, text="<html>"), ServiceError, 1),
        (httpx.Response(200, json=[]), ServiceError, 1),
        (httpx.Response(200, json={"answers": [{}]}), ServiceError, 1),
    ],
)
def test_what_does_not_pass_becomes_an_error_of_ours(
    kind: str, answer: Any, error: type[ServiceError], attempts: int
) -> None:
    service = FakeService(answer)
    with pytest.raises(error) as raised:
        with_client(kind, service, "ask", "who", token="a secret token")
    assert len(service.requests) == attempts
    assert "secret" not in str(raised.value)
    if not isinstance(answer, Exception) and answer.status_code in (429, 422):
        assert (raised.value.status, raised.value.request_id) == (answer.status_code, "r1")
        assert str(raised.value) == "a reason"


def test_a_wait_beyond_the_deadline_is_not_begun(kind: str) -> None:
    service = FakeService(refusal(429, retry_after="3600"))
    with pytest.raises(Overloaded) as raised:
        with_client(kind, service, "ask", "who")
    assert raised.value.retry_after_s == 3600
    assert len(service.requests) == 1


def test_readiness_is_asked_once_and_never_raises(kind: str) -> None:
    assert with_client(kind, FakeService(httpx.Response(200, json={"status": "ok"})), "ready")[0] is True
    for answer in (refusal(503), httpx.ConnectError("refused")):
        service = FakeService(answer)
        assert with_client(kind, service, "ready")[0] is False
        assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 11, 22, 12, tzinfo=UTC)) == expected


@pytest.mark.parametrize("options", [{"attempts": 0}, {"pause_s": -1.0}, {"pause_s": 9.0}])
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RetryPolicy(**options)


def test_the_client_loads_without_heavy_libraries() -> None:
    heavy: Sequence[str] = ("faiss", "fastapi", "numpy", "pandas", "pyarrow", "ray", "torch")
    program = f"import deploy.client, sys; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
