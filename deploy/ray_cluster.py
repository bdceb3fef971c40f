"""[ray] What runs in a Ray cluster: its nodes, and the shards of every memory that is open in it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from memory_store.actors import NAMESPACE, named_shards
from memory_store.code_version import code_version
from memory_store.draining import drained_nodes, note_drained, take_back
from memory_store.errors import ConfigError
from memory_store.opening import open_shared
from memory_store.progress import Progress, silent
from memory_store.ray_session import ensure_ray
from memory_store.shared import left_over_shards
from memory_store.storage import redact

__all__ = ["ClusterStatus", "Drained", "NodeLine", "ShardLine", "drain_node", "give_back_node", "read_cluster"]

ANSWER_S = 5.0  # in which shards say what they hold; one that loads or searches answers at once, on a thread of its own
LEFT_OVER = "left over"
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone


@dataclass(frozen=True, kw_only=True)
class NodeLine:
    """One node. memory_bytes: what Ray may give to actors and tasks there. drained: it gets no more shards."""

    node: str
    address: str
    head: bool
    alive: bool
    cpus: float
    gpus: float
    memory_bytes: int
    drained: bool


@dataclass(frozen=True, kw_only=True)
class ShardLine:
    """One shard actor. memory: the name it is shared under, "" if it belongs to one job.

    bytes: mapped vectors and index; resident_bytes: of its process; gpus: those that it has reserved, by Ray's numbers.
    state: "serving", or why it says nothing; then only its name is known. same_code: whether a job of this code could
    use it.
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
    gpus: str = ""
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
    drained = drained_nodes()
    nodes = sorted(
        (_node(raw, drained) for raw in known), key=lambda line: (not line.head, not line.alive, line.address)
    )
    code = code_version()
    shards = _shards(code, answer_s)
    return ClusterStatus(code=code, nodes=tuple(nodes), shards=tuple(shards))


def _node(raw: dict[str, Any], drained: Collection[str]) -> NodeLine:
    resources = raw["Resources"]
    return NodeLine(
        node=raw["NodeID"],
        address=raw["NodeManagerAddress"],
        head=HEAD in resources,
        alive=raw["Alive"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        drained=raw["NodeID"] in drained,
    )


@dataclass(frozen=True, kw_only=True)
class Drained:
    """A node without shards of shared memories. moved: each memory that had some there, and how many.

    left: shards that stay until their job ends or the node goes, because no other job may move them.
    """

    node: str
    moved: dict[str, int]
    left: int


def drain_node(wanted: str, progress: Progress = silent) -> Drained:
    """Move the shards of all shared memories off a node, while jobs use them, and have no job start others there.

    wanted: the node's address, or the beginning of its id. The new shards are built on the other nodes, as many as
    before, and verified; then all jobs go over to them in one step. A drain that failed halfway may be run again.
    Raises ConfigError for a node that is not there or that has no other beside it, RayUnavailable, VersionMismatch.
    """
    found = read_cluster()
    node = _one_node(found, wanted)
    others = [line for line in found.nodes if line.alive and line.cpus and not line.drained and line.node != node.node]
    if not others:
        raise ConfigError(f"expected another node with CPUs to take the shards of {node.node[:8]}, found none; add one")
    note_drained(node.node)  # first, so that none is started there meanwhile
    there = _shards_on(found, node)
    moved = {name: there.count(name) for name in sorted(set(there) - {""})}
    for done, name in enumerate(moved):
        progress("move shards", done, len(moved), unit="memories", note=name)
        with open_shared(name) as memory:
            memory.reindex(move=True)
    if moved:
        progress("move shards", len(moved), len(moved), unit="memories")
    return Drained(node=node.node, moved=moved, left=_shards_on(read_cluster(), node).count(""))


def give_back_node(wanted: str) -> str:
    """Undo a drain: shards may be started on the node again. Returns its id. Raises ConfigError."""
    node = _one_node(read_cluster(), wanted)
    if not take_back(node.node):
        raise ConfigError(f"expected a node that was drained, found {node.node[:8]}, which was not")
    return node.node


def _one_node(found: ClusterStatus, wanted: str) -> NodeLine:
    nodes = [line for line in found.nodes if line.alive and wanted]
    fitting = [line for line in nodes if line.address == wanted or line.node.startswith(wanted)]
    if len(fitting) != 1:
        known = ", ".join(f"{line.node[:8]} {line.address}" for line in nodes) or "none"
        raise ConfigError(
            f"expected the address of one node or the beginning of its id, found {wanted!r}, which fits "
            f"{len(fitting) or 'none'} of: {known}; see `hmn cluster status`"
        )
    return fitting[0]


def _shards_on(found: ClusterStatus, node: NodeLine) -> list[str]:
    """The name of the memory of each shard on a node, "" for those of single jobs; not those that serve nobody."""
    return [line.memory for line in found.shards if line.node == node.node and not line.is_left_over]


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
        gpus=found.get("gpus", ""),  # older code says nothing of them
        code=found["code"],
    )
