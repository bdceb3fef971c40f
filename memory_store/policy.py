"""What to do when a shard fails a call: reports in, decisions out; nothing here acts or counts."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Decision", "Failure", "Partial", "ShardPolicy", "ShardReport"]


class Failure(Enum):
    """How a call to a shard failed."""

    RESTARTING = "restarting"  # its process died; it comes back by itself
    GONE = "gone"  # it will not come back by itself
    TIMED_OUT = "timed out"  # no reply in time; it may be alive


class Decision(Enum):
    """What the coordinator does next about one shard."""

    RETRY = "retry"  # wait `pause_s`, then ask the same shard again
    REPLACE = "replace"  # start another shard in its place, then ask that one
    SKIP = "skip"  # answer without it; the answer's coverage says so
    SKIP_AND_REPLACE = "skip and replace"  # answer without it now, and start another for the next call
    FAIL = "fail"  # give up: the whole call fails


class Partial(Enum):
    """Whether an answer may leave out the rows of shards that failed."""

    REFUSE = "refuse"
    ALLOW = "allow"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What is known of one shard within one call. `remaining_s`: seconds left until the call's deadline."""

    shard: int
    failures: int
    failure: Failure
    remaining_s: float


@dataclass(frozen=True, kw_only=True)
class ShardPolicy:
    """Wait and retry until the deadline; where partial answers are allowed, do not wait at all.

    pause_s, longest_pause_s: the pause before a retry doubles from the first to the second. most_replacements: how
    often one call may start a new shard, so that a shard that dies at once does not loop until the deadline.
    """

    pause_s: float = 0.05
    longest_pause_s: float = 0.2
    most_replacements: int = 3

    def decide(self, report: ShardReport, partial: Partial) -> Decision:
        if partial is Partial.ALLOW:
            return Decision.SKIP_AND_REPLACE if report.failure is Failure.GONE else Decision.SKIP
        if report.failure is Failure.TIMED_OUT or report.remaining_s <= 0:
            return Decision.FAIL
        if report.failure is Failure.GONE:
            return Decision.REPLACE if report.failures <= self.most_replacements else Decision.FAIL
        return Decision.RETRY

    def pause_before_retry_s(self, report: ShardReport) -> float:
        """Seconds to wait before the next attempt, never past the deadline."""
        doubled_s = self.pause_s * 2.0 ** min(report.failures - 1, 30)
        return max(0.0, min(doubled_s, self.longest_pause_s, report.remaining_s))
