"""[ray] Marks in the cluster that go with the process that set them, also if it is killed."""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from memory_store.actors import NAMESPACE

__all__ = ["Mark", "marks", "said_at"]


@ray.remote
class _Said:
    """Ray ends an actor that is not detached with the process that created it.

    So nobody needs a clock, or to renew anything, to tell a process that takes long from one that died.
    """

    def __init__(self, said: str) -> None:
        self._said = said

    def said(self) -> str:
        return self._said


class Mark:
    """A mark of this process, until `release`, the end of this object or that of the process.

    Everybody sees it once this is made: Ray registers an actor that has a name before it goes on.
    """

    def __init__(self, name: str, said: str = "") -> None:
        """said: what `said_at` tells others. Raises ValueError where another mark has the name."""
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
        self._actor = _Said.options(**options).remote(said)  # type: ignore[attr-defined]  # added by ray.remote

    def release(self) -> None:
        ray.kill(self._actor, no_restart=True)


def marks(prefix: str) -> set[str]:
    """What follows the prefix in the names of all marks that begin with it."""
    names = [
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE
    ]
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def said_at(name: str, *, timeout_s: float) -> str | None:
    """What the mark of this name says; None where it ends right now, or its process is too busy to say."""
    try:
        actor: Any = ray.get_actor(name, namespace=NAMESPACE)
        return str(ray.get(actor.said.remote(), timeout=timeout_s))
    except (ValueError, RayActorError, GetTimeoutError):
        return None
