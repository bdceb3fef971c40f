"""Stands before the routes: token, size of the body, a typed answer whatever happens; counts every request."""

import asyncio
import json
import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from deploy.serve.failures import Refused, of_status, public
from deploy.serve.settings import Access, Limits
from memory_store.storage import redact

__all__ = ["MARK", "OPEN", "WRITES", "Guard", "Receive", "Scope", "Send", "describe", "send_refusal"]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Observe = Callable[[str, str, int, float], None]  # route, method, status, seconds

OPEN = frozenset(
    {"/", "/healthz", "/readyz"}
)  # the page, which asks for a token, and what whoever runs the service asks
WRITES = frozenset({"/v1/facts", "/v1/refresh"})
MARK = (b"x-content-type-options", b"nosniff")  # a header of every answer of ours
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = logging.getLogger("hmn.serve")


class Guard:
    """ASGI middleware. Reads the body itself, within size and time, before any route sees the request.

    routes: every address there is, none with a parameter in it; nothing else reaches the application.
    """

    def __init__(self, app: Any, *, access: Access, limits: Limits, routes: frozenset[str], observe: Observe) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._routes = routes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        began_s = time.perf_counter()
        answer = _Answer(send, request_id=uuid4().hex)
        scope.setdefault("state", {})["request_id"] = answer.request_id
        address = _address(scope)
        known = address in self._routes
        try:
            self._admit(scope, address)
            body = await self._body(scope, receive)
            if not known:  # the router is more liberal: for it "/v1/facts\n" is /v1/facts, for which we ask the token
                raise of_status(404)
            await self._app(scope, _replay(body, receive), answer.send)
        except Exception as error:  # noqa: BLE001  # whatever it was, the client gets a typed body and no trace
            refused = public(error)
            if refused.kind == "internal":
                log.error("request %s failed: %s", answer.request_id, describe(error))
            await answer.refuse(refused)
        finally:
            route = address if known else "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._observe(route, method, answer.status or 499, time.perf_counter() - began_s)

    def _admit(self, scope: Scope, address: str) -> None:
        writes = address in WRITES
        if address in OPEN or not (writes or self._access.reads):
            return
        if self._access.digest is None:
            raise Refused("forbidden", "writing is switched off: the service was started without a token")
        if not self._access.admits(_header(scope, b"authorization")):
            raise Refused("unauthorized", "expected the header `Authorization: Bearer <token>` with the right token")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = Refused("too_large", f"expected a body of {self._limits.body_bytes:,} bytes or less")
        announced = (_header(scope, b"content-length") or b"0").strip()
        if not announced.isdigit():
            raise Refused("bad_request", "expected a Content-Length that is a number")
        if len(announced) > 18 or int(announced) > self._limits.body_bytes:
            raise too_large
        if (_header(scope, b"content-encoding") or b"identity").strip().lower() != b"identity":
            raise Refused("unsupported_media_type", "expected a body without Content-Encoding")
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":  # the client has gone
                        raise Refused("bad_request", "the body ended early")
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > self._limits.body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            raise Refused("timeout", f"expected the whole body within {self._limits.body_s:g} s") from None


class _Answer:
    """The sending end: adds the request id, knows whether an answer has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.status: int | None = None
        self._send = send

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": [*headers, MARK]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        if self.status is not None:  # an answer is under way: it can only be cut off
            return
        await send_refusal(self.send, refused, self.request_id)


async def send_refusal(send: Send, refused: Refused, request_id: str) -> None:
    """A refusal as a whole answer."""
    body = json.dumps(refused.body(request_id)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers()}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def describe(error: BaseException) -> str:
    """An error for the log, without credentials: its class, message and place; with HMN_DEBUG=1 the whole trace."""
    if os.environ.get("HMN_DEBUG", "") not in ("", "0"):
        return redact("".join(traceback.format_exception(error)))
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "-"
    return f"{type(error).__name__} at {place}: {redact(' '.join(str(error).split()))[:300]}"


def _address(scope: Scope) -> str:
    """The path below the prefix that the application is served under, as the router reads it."""
    path, prefix = scope["path"], scope.get("root_path", "")
    return str(path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path)


def _header(scope: Scope, name: bytes) -> bytes | None:
    found: bytes | None = next((value for key, value in scope["headers"] if key == name), None)
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and after it what the connection itself says."""
    given = False

    async def again() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
