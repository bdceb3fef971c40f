"""[ray] One `hmn serve` in a cluster: a mark that Ray takes away with its process; an end to what a killed one left."""

import os
import socket

from deploy.serve.settings import SHARED_PREFIX
from deploy.serve.source import belongs_to
from memory_store.errors import HmnError
from memory_store.marks import Mark, said_at
from memory_store.opening import stop_memory
from memory_store.shared import shared_names

__all__ = ["Claim", "ServiceRunning", "end_left_over", "end_shared"]

_NAME = "hmn-serves"
ANSWER_S = 10.0  # in which the one that serves says what; who it is matters less than that it is there


class ServiceRunning(HmnError):
    """Another service answers in this cluster."""


class Claim:
    """That this process serves in the cluster, until `release` or its end; Ray gives the name to one process alone."""

    def __init__(self, run_dir: str) -> None:
        """Raises ServiceRunning, which names the run that is served already."""
        try:
            self._mark = Mark(_NAME, f"{run_dir} (process {os.getpid()} on {socket.gethostname()})")
        except ValueError:  # the name is taken
            served = said_at(_NAME, timeout_s=ANSWER_S) or "another run"
            raise ServiceRunning(
                f"expected no other service in this Ray cluster, found one of {served}; end that first, or serve "
                "from another cluster: one listens for all of its nodes"
            ) from None

    def release(self) -> None:
        self._mark.release()


def end_left_over(mine: str | None) -> None:
    """End the shards of services that were killed; the caller holds the claim, and shares its own under `mine`."""
    for name in shared_names():
        if name.startswith(SHARED_PREFIX) and not belongs_to(name, mine):
            stop_memory(name)


def end_shared(mine: str | None) -> None:
    """End the shards that the replicas of this service share, of every memory that was rolled out."""
    for name in shared_names():
        if belongs_to(name, mine):
            stop_memory(name)
