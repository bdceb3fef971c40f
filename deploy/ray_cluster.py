"""[ray] What runs in a Ray cluster: its nodes, and the shards of every memory that is open in it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from memory_store.actors import NAMESPACE, named_shards
from memory_store.code_version import code_version
from memory_store.ray_session import ensure_ray
from memory_store.shared import left_over_shards
from memory_store.storage import redact

__all__ = ["ClusterStatus", "NodeLine", "ShardLine", "read_cluster"]

ANSWER_S = 5.0  # in which shards say what they hold; one that loads or searches answers at once, on a thread of its own
LEFT_OVER = "left over"
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone


@dataclass(frozen=True, kw_only=True)
class NodeLine:
    """One node. memory_bytes: what Ray may give to actors and tasks there."""

    node: str
    address: str
    head: bool
    alive: bool
    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShardLine:
    """One shard actor. memory: the name it is shared under, "" if it belongs to one job.

    bytes: mapped vectors and index; resident_bytes: of its process. state: "serving", or why it says nothing; then only
    its name is known. same_code: whether a job of this code could use it.
    """

    memory: str
    state: str
    url: str = ""
    shard: int = -1
    num_shards: int = 0
    index: str = ""
    generation: int | None = None
    generations_resident: tuple[int, ...] = ()
    rows: int = 0
    bytes: int = 0
    resident_bytes: int = 0
    pid: int = 0
    node: str = ""
    code: str = ""
    same_code: bool = False

    @property
    def is_left_over(self) -> bool:
        """Of a division that does not serve: the job that re-divided the memory was killed, or ends it right now."""
        return self.state == LEFT_OVER


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """Nodes, the head first, and shards by memory. code: the version of the code that asks."""

    code: str
    nodes: tuple[NodeLine, ...]
    shards: tuple[ShardLine, ...]


def read_cluster(answer_s: float = ANSWER_S) -> ClusterStatus:
    """Look at the cluster of RAY_ADDRESS, or at the one that runs on this machine; starts nothing.

    Raises RayUnavailable where there is none.
    """
    ensure_ray(join="auto")
    known = ray.nodes()  # type: ignore[no-untyped-call]  # ray leaves it untyped
    nodes = sorted((_node(raw) for raw in known), key=lambda line: (not line.head, not line.alive, line.address))
    code = code_version()
    shards = _shards(code, answer_s)
    return ClusterStatus(code=code, nodes=tuple(nodes), shards=tuple(shards))


def _node(raw: dict[str, Any]) -> NodeLine:
    resources = raw["Resources"]
    return NodeLine(
        node=raw["NodeID"],
        address=raw["NodeManagerAddress"],
        head=HEAD in resources,
        alive=raw["Alive"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
    )


def _shards(code: str, answer_s: float) -> Sequence[ShardLine]:
    lines: dict[str, ShardLine] = {}
    asked: list[tuple[str, str, Any]] = []
    for name, memory in named_shards().items():
        try:
            asked.append((name, memory, ray.get_actor(name, namespace=NAMESPACE).describe.remote()))
        except (ValueError, RayError):  # it ended since it was listed
            continue
    deadline = time.monotonic() + answer_s
    for name, memory, reference in asked:
        try:
            found = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            lines[name] = ShardLine(memory=memory, state=f"no answer within {answer_s:g} s")
        except RayError as error:
            lines[name] = ShardLine(memory=memory, state=f"away ({type(error).__name__})")
        else:
            lines[name] = _serving(memory, found, code)
    for name in left_over_shards() & lines.keys():
        lines[name] = replace(lines[name], state=LEFT_OVER)
    return sorted(lines.values(), key=lambda line: (line.memory, line.url, line.num_shards, line.shard))


def _serving(memory: str, found: dict[str, Any], code: str) -> ShardLine:
    return ShardLine(
        memory=memory,
        state="serving",
        url=redact(found["url"]),
        generations_resident=tuple(found["generations_resident"]),
        same_code=found["code"] == code,
        **{
            name: found[name]
            for name in ("shard", "num_shards", "index", "generation", "rows", "bytes", "resident_bytes", "pid", "node")
        },
        code=found["code"],
    )
