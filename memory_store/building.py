"""[ray] Marks in the cluster that a job makes an edition of a shared memory; they go with the job, also if killed."""

from typing import Any

import ray

__all__ = ["being_made", "mark_as_made_here"]

_PREFIX = "hmn-makes:"  # before the token of the edition


@ray.remote
class _Mark:
    """Does nothing but be there: Ray ends an actor that is not detached with the process that created it.

    So nobody needs a clock, or to renew anything, to tell a job that takes long from one that died.
    """


def mark_as_made_here(token: str, namespace: str) -> object:
    """Say that this process makes the edition with this token, until the object that is returned is let go.

    Everybody sees it when this returns: Ray registers an actor that has a name before it goes on.
    """
    options: dict[str, Any] = {"name": f"{_PREFIX}{token}", "namespace": namespace, "num_cpus": 0, "max_restarts": -1}
    return _Mark.options(**options).remote()  # type: ignore[attr-defined]  # added by ray.remote


def being_made(namespace: str) -> set[str]:
    """The tokens of all editions that some job makes now."""
    names = [
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == namespace
    ]
    return {name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)}
