"""When to ask again: failures in, a pause or the end out; nothing here waits."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from memory_store.errors import ConfigError

__all__ = ["RetryPolicy", "retry_after_s"]

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Pauses double from pause_s to longest_pause_s, and are drawn from the upper half of that, so that many clients
    do not come back together. What the service says in Retry-After is the least.

    attempts: calls in all. deadline_s: seconds after which no further attempt begins.
    """

    attempts: int = 5
    pause_s: float = 0.1
    longest_pause_s: float = 5.0
    deadline_s: float = 60.0
    draw: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"expected attempts >= 1, found {self.attempts}")
        if not 0 <= self.pause_s <= self.longest_pause_s:
            raise ConfigError(
                f"expected 0 <= pause_s <= longest_pause_s, found {self.pause_s} and {self.longest_pause_s}"
            )

    def pause(self, attempt: int, status: int | None, asked_s: float | None, spent_s: float) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed, or None to give up.

        status: of HTTP; None where there was no answer. asked_s: the Retry-After of the answer. spent_s: since the
        first attempt began.
        """
        if attempt >= self.attempts or (status is not None and status not in RETRIED_STATUSES):
            return None
        longest_s = min(self.longest_pause_s, self.pause_s * 2.0 ** min(attempt - 1, 30))
        pause_s = max(asked_s or 0.0, longest_s * self.draw.uniform(0.5, 1.0))
        return pause_s if spent_s + pause_s < self.deadline_s else None


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """The header Retry-After in seconds, which may be a number or a date; None where it is neither."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())
