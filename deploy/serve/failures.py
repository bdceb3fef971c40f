"""Every way a request can fail, as a status, a type and a message that names nothing inside the service."""

from dataclasses import dataclass

from memory_store.errors import ConfigError, DimensionMismatch, HmnError, InvalidVectors, ShardUnavailable

__all__ = ["STATUSES", "Refused", "of_status", "public"]

# type of the error body -> HTTP status
STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "overloaded": 429,
    "internal": 500,
    "unavailable": 503,
}


@dataclass(eq=False)  # not frozen: Python writes an exception's traceback into it
class Refused(Exception):
    """A request that is not answered. retry_after_s: when it is worth asking again."""

    kind: str
    message: str
    retry_after_s: int | None = None

    @property
    def status(self) -> int:
        return STATUSES[self.kind]

    def body(self, request_id: str) -> dict[str, object]:
        """The JSON of the answer."""
        return {"error": {"type": self.kind, "message": self.message, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        found = {}
        if self.retry_after_s is not None:
            found["retry-after"] = str(self.retry_after_s)
        if self.kind == "unauthorized":
            found["www-authenticate"] = "Bearer"
        return found


def public(error: BaseException) -> Refused:
    """What the client is told of an error. Messages of our own errors name files and URLs: they stay in the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ShardUnavailable):
        return Refused("unavailable", "a part of the memory does not answer at the moment; try again", 2)
    if isinstance(error, DimensionMismatch | InvalidVectors):
        return Refused("invalid_request", "the vectors do not fit the memory; GET /v1/memory says its dimension")
    if isinstance(error, HmnError) and not isinstance(error, ConfigError):
        return Refused("unavailable", "the memory cannot be read at the moment; try again", 5)
    return Refused("internal", "the service failed on this request; its log names the request_id")


def of_status(status: int) -> Refused:
    """For a status that the framework chose: no such route, method not allowed."""
    messages = {
        404: "there is no such address; GET /openapi.json lists them",
        405: "this address takes another method; GET /openapi.json lists them",
    }
    kind = next((kind for kind, known in STATUSES.items() if known == status), None)
    if kind is None:
        kind = "bad_request" if 400 <= status < 500 else "internal"
    return Refused(kind, messages.get(status, "the request could not be read"))
