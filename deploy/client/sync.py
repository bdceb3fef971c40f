"""The client of the service for ordinary code."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from deploy.client import calls
from deploy.client.results import AskResult, Fact, MemoryInfo, RefreshResult, SearchResult, WriteResult
from deploy.client.retry import RetryPolicy

__all__ = ["Client"]

Result = TypeVar("Result")


class Client:
    """Asks a running `hmn serve`; keeps connections open, thread-safe. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """token: by default the one in HMN_TOKEN. timeout_s: of one attempt. transport, sleep, clock: for tests."""
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.Client(base_url=url, headers=calls.headers(token), timeout=timeout_s, transport=transport)

    def ask(self, texts: str | Sequence[str], k: int = 5) -> AskResult:
        """Answers to one question or several, from k facts each.

        Raises InvalidRequest, Unauthorized; Overloaded, ServiceUnavailable when the retries are used up.
        """
        return self._do(calls.ask(texts, k))

    def search(self, vectors: Any, k: int = 10) -> SearchResult:
        """The k facts of largest inner product with each vector; floats [B, D]. Raises what `ask` raises."""
        return self._do(calls.search(vectors, k))

    def memory(self) -> MemoryInfo:
        """What is served."""
        return self._do(calls.memory())

    def ready(self) -> bool:
        """Whether questions are answered now; asks once."""
        try:
            response = self._http.request("GET", "/readyz")
        except httpx.TransportError:
            return False
        return response.status_code == 200

    def upsert(self, facts: Sequence[Fact]) -> WriteResult:
        """Put facts into the memory, new ones beside, known ones in place of what they said; needs the token.

        Durable and in every later answer when it returns. Raises what `ask` raises; the same again is safe.
        """
        return self._do(calls.upsert(facts))

    def delete(self, fact_ids: Sequence[int]) -> WriteResult:
        """Delete facts by id; needs the token. Ids that the memory does not hold are no error. Raises as `ask`."""
        return self._do(calls.delete(fact_ids))

    def refresh(self) -> RefreshResult:
        """Have the service look for a newer generation or model now; needs the token."""
        return self._do(calls.refresh())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, call: calls.Call[Result]) -> Result:
        began_s = self._clock()
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._http.request(call.method, call.path, json=call.body)
            except httpx.TransportError as error:
                failed = calls.no_answer(error, str(self._http.base_url))
            else:
                if response.is_success:
                    return call.result(response)
                failed = calls.failure(response)
            pause_s = self._retry.pause(attempt, failed.status, failed.retry_after_s, self._clock() - began_s)
            if pause_s is None:
                raise failed
            self._sleep(pause_s)
