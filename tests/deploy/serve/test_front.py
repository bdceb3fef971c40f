"""Before the router: silence is asked again once, Ray's own refusals become ours, our own pass untouched."""

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import httpx
import pytest

from deploy.jobs.serve import FRONT
from deploy.serve.front import BODY_BYTES_KEPT, Front, middlewares
from deploy.serve.guard import MARK, Receive, Scope, Send

OURS = [(b"content-type", b"application/json"), (b"x-request-id", b"ours"), MARK, (b"X-Request-ID", b"rays")]


class FakeRouter:
    """Does one thing per request, in turn, the last one again and again: "die" silently after reading the body, or
    answer with (status, headers, text). bodies: what it read."""

    def __init__(self, *turns: Any) -> None:
        self._turns = list(turns)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        pieces = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        self.bodies.append(b"".join(pieces))
        if turn != "die":
            status, headers, text = turn
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text})


def post(router: FakeRouter, content: Any = b'{"text": "who"}') -> httpx.Response:
    async def talk() -> httpx.Response:
        transport = httpx.ASGITransport(app=Front(router))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.post("/v1/ask", content=content)

    return asyncio.run(talk())


def assert_unavailable(reply: httpx.Response) -> None:
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"].keys() == {"type", "message", "request_id"}
    assert reply.json()["error"]["type"] == "unavailable"


def test_a_request_whose_replica_died_is_sent_again_whole() -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        yield b'{"text": '
        yield b'"who"}'

    router = FakeRouter("die", (200, OURS, b"{}"))
    assert post(router, in_pieces()).status_code == 200
    assert router.bodies == [b'{"text": "who"}'] * 2


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    router = FakeRouter("die")
    assert_unavailable(post(router))
    assert len(router.bodies) == 2


@pytest.mark.parametrize("status", [408, 500, 503])
def test_what_ray_says_in_its_own_words_becomes_a_refusal_of_ours(status: int) -> None:
    reply = post(FakeRouter((status, [(b"content-type", b"text/plain")], b"Request 1 to hmn_Replica timed out")))
    assert_unavailable(reply)
    assert "hmn_Replica" not in reply.text


@pytest.mark.parametrize("status", [200, 408, 429, 500, 503])
def test_an_answer_of_the_service_passes_with_its_own_request_id(status: int) -> None:
    router = FakeRouter((status, OURS, b"whatever it is"))
    reply = post(router)
    assert (reply.status_code, reply.text) == (status, "whatever it is")
    assert reply.headers.get_list("x-request-id") == ["ours"]
    assert len(router.bodies) == 1


def test_a_body_too_large_to_keep_is_not_sent_again() -> None:
    async def large() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * (BODY_BYTES_KEPT // 2)

    router = FakeRouter("die", (200, OURS, b"{}"))
    assert_unavailable(post(router, large()))
    assert len(router.bodies) == 1


def test_a_client_that_has_gone_is_told_nothing() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    asyncio.run(Front(FakeRouter("die"))({"type": "http"}, receive, send))


def test_ray_finds_the_front_by_the_name_it_is_told() -> None:
    (path,) = FRONT.values()
    module, _, name = path.rpartition(".")
    assert getattr(import_module(module), name) is middlewares
    assert [one.cls for one in middlewares()] == [Front]
