"""[ray] One `hmn serve` in a cluster: a mark that Ray takes away with its process; an end to what a killed one left."""

import os
import socket
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from deploy.serve.settings import SHARED_PREFIX
from memory_store.actors import NAMESPACE
from memory_store.errors import HmnError
from memory_store.opening import stop_memory
from memory_store.shared import shared_names

__all__ = ["Claim", "ServiceRunning", "end_left_over"]

_NAME = "hmn-serves"
ANSWER_S = 10.0  # in which the one that serves says what; who it is matters less than that it is there


class ServiceRunning(HmnError):
    """Another service answers in this cluster."""


@ray.remote
class _Mark:
    """Says who serves. Ray ends an actor that is not detached with the process that created it, killed or not."""

    def __init__(self, said: str) -> None:
        self._said = said

    def said(self) -> str:
        return self._said


class Claim:
    """That this process serves in the cluster, until `release` or its end; Ray gives the name to one process alone."""

    def __init__(self, run_dir: str) -> None:
        """Raises ServiceRunning, which names the run that is served already."""
        options: dict[str, Any] = {"name": _NAME, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
        said = f"{run_dir} (process {os.getpid()} on {socket.gethostname()})"
        try:
            self._mark = _Mark.options(**options).remote(said)  # type: ignore[attr-defined]  # added by ray.remote
        except ValueError:  # the name is taken
            raise ServiceRunning(
                f"expected no other service in this Ray cluster, found one of {_served()}; end that first, or serve "
                "from another cluster: one listens for all of its nodes"
            ) from None

    def release(self) -> None:
        ray.kill(self._mark, no_restart=True)


def _served() -> str:
    try:
        mark: Any = ray.get_actor(_NAME, namespace=NAMESPACE)
        return str(ray.get(mark.said.remote(), timeout=ANSWER_S))
    except (ValueError, RayActorError, GetTimeoutError):  # it ends right now, or is busy
        return "another run"


def end_left_over(mine: str | None) -> None:
    """End the shards of services that were killed; the caller holds the claim, and shares its own under `mine`."""
    for name in shared_names():
        if name.startswith(SHARED_PREFIX) and name != mine:
            stop_memory(name)
