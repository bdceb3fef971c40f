"""`hmn cluster`: what runs in a Ray cluster, an end to a memory that was left running there, and to a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console, size
from deploy.entry import main
from deploy.options import examples, json_option
from memory_store.errors import ConfigError

if TYPE_CHECKING:
    from deploy.ray_cluster import ClusterStatus, Drained, NodeLine, ShardLine

__all__ = ["command"]


@click.group(
    "cluster",
    short_help="What runs in a Ray cluster.",
    epilog=examples(
        "hmn cluster status",
        "RAY_ADDRESS=10.0.0.1:6379 hmn cluster status --json",
        "hmn cluster stop geonames",
        "hmn cluster drain 10.0.0.12",
    ),
)
def command() -> None:
    """Look at the Ray cluster of RAY_ADDRESS, or at the one that runs on this machine, and at the memories in it."""


@command.command("status", epilog=examples("hmn cluster status", "hmn cluster status --json"))
@json_option
@click.pass_obj
def status(console: Console) -> None:
    """Nodes, and the shards of every memory that is open in the cluster: generation, rows, memory, node, code.

    A shared memory that runs other code than yours cannot be used by your jobs; it is marked.
    """
    from deploy.ray_cluster import read_cluster

    found = read_cluster()
    console.result(found, lambda: _show(console, found))


@command.command("stop", epilog=examples("hmn cluster stop geonames"))
@click.argument("name")
@json_option
@click.pass_obj
def stop(console: Console, name: str) -> None:
    """End the shards of the memory that is shared under NAME, whoever started it; its files stay as they are.

    Jobs that still use it fail with one line. A job that opens it by this name again starts it afresh.
    """
    from memory_store.ray_session import ensure_ray
    from memory_store.shared import stop_named

    ensure_ray(join="auto")
    stopped = stop_named(name)
    if not stopped:
        raise ConfigError(f"expected the name of a memory that runs here, found {name!r}; see `hmn cluster status`")
    console.result(
        {"name": name, "shards": stopped}, lambda: console.write(f"Stopped {stopped} shards of the memory {name!r}.")
    )


@command.command("drain", epilog=examples("hmn cluster drain 10.0.0.12", "hmn cluster drain 9b7e44a0 --undo"))
@click.argument("node")
@click.option("--undo", is_flag=True, help="The node stays: shards may be started there again.")
@json_option
@click.pass_obj
def drain(console: Console, node: str, undo: bool) -> None:
    """Move the shards of all shared memories off NODE, before it is taken away.

    NODE is an address, or the beginning of an id, as `hmn cluster status` shows them. As many new shards are started on
    the other nodes beside those that serve, and verified; then every job goes on with them, in one step and without a
    failed search. No job starts a shard on NODE any more. Shards that belong to one job alone stay: they move when the
    node goes, and the job waits for them meanwhile.
    """
    from deploy.ray_cluster import drain_node, give_back_node

    if undo:
        given_back = give_back_node(node)
        console.result({"node": given_back, "drained": False}, lambda: console.write(f"{given_back[:8]} gets shards."))
        return
    found = drain_node(node, console.progress)
    console.result(found, lambda: _show_drained(console, found))


def _show_drained(console: Console, found: Drained) -> None:
    for name, shards in found.moved.items():
        console.write(f"{name}: moved {shards} shard{'s'[: shards > 1]} to other nodes")
    if found.left:
        console.write(f"{found.left} shard{'s'[: found.left > 1]} of single jobs stay until those end or the node goes")
    console.write(f"{found.node[:8]} gets no more shards" + ("." if found.left else "; it can be taken away."))


def _show(console: Console, found: ClusterStatus) -> None:
    alive = [line for line in found.nodes if line.alive]
    gone = len(found.nodes) - len(alive)
    held: dict[str, list[ShardLine]] = {line.node: [] for line in alive}
    for shard in found.shards:
        held.setdefault(shard.node, []).append(shard)
    console.table(
        ("node", "address", "CPUs", "GPUs", "memory for Ray", "shards", "their memory"),
        [_node(line, held[line.node]) for line in alive],
        notes=[f"{gone} node{'s'[: gone > 1]} gone"] if gone else [],
    )
    console.write()
    if not found.shards:
        console.write("No memory is open on Ray here.")
        return
    where = {line.node: line.address for line in found.nodes}
    console.table(
        ("memory", "shard", "state", "generation", "rows", "mapped", "process", "pid", "on"),
        [_shard(line, where) for line in found.shards],
    )
    for memory in sorted({line.memory for line in found.shards if line.is_left_over}):
        console.write(
            f"{memory}: shards of another division are left over, as where a job that re-divided it was killed; "
            "whoever opens it next ends them"
        )
    # What belongs to one job is used by that job alone, whatever code it runs.
    for memory in sorted({line.memory for line in found.shards if line.memory and line.code and not line.same_code}):
        console.write(f"{memory} runs other code than this ({found.code}); jobs of this code are refused")


def _node(line: NodeLine, shards: list[ShardLine]) -> tuple[object, ...]:
    resident = sum(shard.resident_bytes for shard in shards)
    return (
        f"{line.node[:8]}{' (head)' if line.head else ''}{' (drained)' if line.drained else ''}",
        line.address,
        int(line.cpus),
        int(line.gpus),
        size(line.memory_bytes),
        len(shards),
        size(resident),
    )


def _shard(line: ShardLine, where: dict[str, str]) -> tuple[object, ...]:
    name = line.memory or "(one job's)"
    if not line.num_shards:
        return (name, "-", line.state, None, None, "-", "-", None, "-")
    return (
        f"{name} {line.url}",
        f"{line.shard} of {line.num_shards}, {line.index}",
        line.state,
        line.generation,
        line.rows,
        size(line.bytes),
        size(line.resident_bytes),
        line.pid,
        f"{line.node[:8]} {where.get(line.node, '')}" + (f", GPU {line.gpus}" if line.gpus else ""),
    )


if __name__ == "__main__":
    main(command)
