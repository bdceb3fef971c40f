"""Requests and their answers, for both clients: what is sent, and what is made of what comes back."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import httpx

from deploy.client.errors import InvalidRequest, Overloaded, ServiceError, ServiceUnavailable, Unauthorized
from deploy.client.results import (
    Answer,
    AskResult,
    Fact,
    FactRead,
    MemoryInfo,
    RefreshResult,
    SearchResult,
    ShardInfo,
    WriteResult,
)
from deploy.client.retry import retry_after_s

__all__ = ["Call", "ask", "delete", "failure", "headers", "memory", "no_answer", "refresh", "search", "upsert"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request, and how its answer is read. body: sent as JSON where there is one."""

    method: str
    path: str
    read: Callable[[Any], Result]
    body: Mapping[str, object] | None = None

    def result(self, response: httpx.Response) -> Result:
        """The answer, typed. Raises ServiceError for one that is not of this service."""
        try:
            return self.read(response.json())
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(
                f"expected an answer of hmn to {self.method} {self.path}, found something else; check the address",
                status=response.status_code,
            ) from error


def headers(token: str | None) -> dict[str, str]:
    """token: HMN_TOKEN of the environment when None; empty for none."""
    found = os.environ.get("HMN_TOKEN") if token is None else token
    return {"authorization": f"Bearer {found}"} if found else {}


def ask(texts: str | Sequence[str], k: int) -> Call[AskResult]:
    return Call("POST", "/v1/ask", _ask_result, {"text": texts if isinstance(texts, str) else list(texts), "k": k})


def search(vectors: Any, k: int) -> Call[SearchResult]:
    """vectors: floats [B, D], as lists or as an array."""
    rows = vectors.tolist() if hasattr(vectors, "tolist") else [list(row) for row in vectors]
    return Call("POST", "/v1/search", _search_result, {"vectors": rows, "k": k})


def memory() -> Call[MemoryInfo]:
    return Call("GET", "/v1/memory", _memory_info)


def refresh() -> Call[RefreshResult]:
    return Call(
        "POST",
        "/v1/refresh",
        lambda content: RefreshResult(moved=content["moved"], generation=content["generation"]),
    )


def upsert(facts: Sequence[Fact]) -> Call[WriteResult]:
    return Call("POST", "/v1/facts", _write_result, {"upsert": [asdict(fact) for fact in facts]})


def delete(fact_ids: Sequence[int]) -> Call[WriteResult]:
    return Call("POST", "/v1/facts", _write_result, {"delete": [str(fact_id) for fact_id in fact_ids]})


def failure(response: httpx.Response) -> ServiceError:
    """The error that an answer other than 2xx stands for."""
    try:
        detail = response.json()["error"]
        message, request_id = str(detail["message"]), str(detail["request_id"])
    except (ValueError, KeyError, TypeError):
        message, request_id = f"the service answered with status {response.status_code}", None
    status = response.status_code
    kinds: dict[int, type[ServiceError]] = {401: Unauthorized, 403: Unauthorized, 429: Overloaded}
    kind = kinds.get(status, InvalidRequest if 400 <= status < 500 else ServiceUnavailable)
    return kind(
        message, status=status, request_id=request_id, retry_after_s=retry_after_s(response.headers.get("retry-after"))
    )


def no_answer(error: httpx.TransportError, base_url: str) -> ServiceError:
    """The error for a service that did not answer at all."""
    said = " ".join(str(error).split()) or type(error).__name__
    return ServiceUnavailable(
        f"expected a service at {base_url}, found: {said}; start it with `hmn serve`, or check the address"
    )


def _ask_result(content: Any) -> AskResult:
    return AskResult(
        answers=tuple(
            Answer(
                text=one["text"],
                answer=tuple(one["answer"] or ()),
                facts=tuple(_fact(fact) for fact in one["facts"]),
            )
            for one in content["answers"]
        ),
        generation=content["generation"],
        coverage=content["coverage"],
        model=content["model"],
        latency_ms=_latency(content),
    )


def _fact(content: Any) -> FactRead:
    plain = {name: content[name] for name in ("subject_id", "subject", "relation", "score", "weight")}
    return FactRead(
        fact_id=int(content["fact_id"]),
        objects=tuple(content["objects"]),
        object_ids=tuple(content["object_ids"]),
        **plain,
    )


def _search_result(content: Any) -> SearchResult:
    return SearchResult(
        fact_ids=tuple(tuple(int(fact_id) for fact_id in one["fact_ids"]) for one in content["results"]),
        scores=tuple(tuple(one["scores"]) for one in content["results"]),
        generation=content["generation"],
        coverage=content["coverage"],
        model=content["model"],
        latency_ms=_latency(content),
    )


def _write_result(content: Any) -> WriteResult:
    return WriteResult(
        generation=content["generation"],
        fact_ids=tuple(map(int, content["fact_ids"])),
        unknown=tuple(map(int, content["unknown"])),
    )


def _latency(content: Any) -> dict[str, float]:
    return {stage: value for stage, value in content["latency_ms"].items() if value is not None}


def _memory_info(content: Any) -> MemoryInfo:
    names = ("generation", "created_at", "facts", "dim", "model", "checkpoint_step", "index", "backend", "limits")
    shards = tuple(
        ShardInfo(shard=one["shard"], rows=one["rows"], bytes=one["bytes"], restarts=one["restarts"])
        for one in content["shards"]
    )
    return MemoryInfo(shards=shards, **{name: content[name] for name in names})
