"""Stands before Ray Serve's router: a request whose replica died under it is sent again, and every answer is typed."""

from typing import Any
from uuid import uuid4

from starlette.middleware import Middleware

from deploy.serve.failures import Refused
from deploy.serve.guard import MARK, Receive, Scope, Send, send_refusal

__all__ = ["BODY_BYTES_KEPT", "Front", "middlewares"]

BODY_BYTES_KEPT = 2**20  # of a body that may be sent again; a larger one is refused by the service anyway
SENT_AGAIN = 1
RAYS_OWN = frozenset({408, 500, 503})  # its refusals: plain text that names requests and deployments
RETRY_AFTER_S = 2


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its HTTP front when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this function."""
    return [Middleware(Front)]


class Front:
    """ASGI middleware around the router. Every request of ours may be made twice, so a silent failure is repeated.

    Ray says nothing at all for a request whose replica died, and the HTTP server makes "Internal Server Error" of that.
    With another replica, the repetition is answered at once; with none, when the next one is there, or with
    503 after Ray's request_timeout_s.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        for _ in range(1 + SENT_AGAIN):
            answer = _Checked(send)
            await self._app(dict(scope), body.again(), answer.send)
            if answer.begun or not body.repeatable:
                break
        if not answer.begun and not body.gone:
            await _unavailable(send)


class _Body:
    """What a client sent, kept as it is read, so that it can be read once more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[dict[str, Any]] = []
        self._kept_bytes = 0
        self.repeatable = True
        self.gone = False  # the client

    def again(self) -> Receive:
        """A `receive` that begins with what was read before."""
        unread = list(self._kept)

        async def receive() -> dict[str, Any]:
            if unread:
                return unread.pop(0)
            message = await self._receive()
            self._keep(message)
            return message

        return receive

    def _keep(self, message: dict[str, Any]) -> None:
        if message["type"] != "http.request":
            self.gone, self.repeatable = True, False
            return
        self._kept_bytes += len(message.get("body", b""))
        if self._kept_bytes > BODY_BYTES_KEPT:
            self._kept, self.repeatable = [], False
        elif self.repeatable:
            self._kept.append(message)


class _Checked:
    """The sending end: lets the service's own answers through, and says Ray's refusals in the service's words."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._replaced = False
        self.begun = False

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = message.get("headers", [])
            ours = any(name.lower() == MARK[0] and value == MARK[1] for name, value in headers)
            self._replaced = not ours and message["status"] in RAYS_OWN
            if self._replaced:
                await _unavailable(self._send)
                return
            if ours:
                message = {**message, "headers": _without_second_id(headers)}
        if not self._replaced:
            await self._send(message)


def _without_second_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without the request id that Ray adds behind that of the service, which is the one in the log."""
    ids = [number for number, (name, _) in enumerate(headers) if name.lower() == b"x-request-id"]
    return [header for number, header in enumerate(headers) if number not in ids[1:]]


async def _unavailable(send: Send) -> None:
    refused = Refused("unavailable", "no replica of the service answers at the moment; try again", RETRY_AFTER_S)
    await send_refusal(send, refused, uuid4().hex)
