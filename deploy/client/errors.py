"""Every way a call to the service can fail for its caller."""

from memory_store.errors import HmnError

__all__ = ["InvalidRequest", "Overloaded", "ServiceError", "ServiceUnavailable", "Unauthorized"]


class ServiceError(HmnError):
    """The service did not give what was asked for. status: of HTTP, None where there was no answer at all.

    request_id: what the service's log calls the request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class InvalidRequest(ServiceError):
    """The service cannot take what was sent; the message says what it expected."""


class Unauthorized(ServiceError):
    """The token is missing, wrong, or nobody may do this."""


class Overloaded(ServiceError):
    """The queue of the service was full at every attempt."""


class ServiceUnavailable(ServiceError):
    """There is no service, or it could not answer at any attempt."""
