"""Calls to shards: what a coordinator starts and waits for, and how one fails."""

from typing import Any, Protocol

from memory_store.policy import Failure

__all__ = ["Call", "CallFailed", "ShardHandle"]


class CallFailed(Exception):
    """A call got no answer because of the shard's process or the clock, not because of the question."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class Call(Protocol):
    """A call under way."""

    def result(self, timeout_s: float) -> Any:
        """The shard's answer; raises CallFailed when the shard gave none, and the shard's own error as it is."""
        ...


class ShardHandle(Protocol):
    """The coordinator's end of one shard; a local object, an actor, copies of a shard, or a double in a test."""

    def start(self, method: str, *args: Any) -> Call:
        """Begin a call without waiting for it."""
        ...

    def replace(self) -> None:
        """Start another shard in place of one that will not come back; does not wait until it is ready."""
        ...
