"""Which share of a GPU each shard of a memory reserves on Ray, and on which nodes; pure."""

from collections.abc import Mapping, Sequence

from memory_store.errors import DeviceUnavailable
from memory_store.mips.base import parse_index
from memory_store.mips.device import gpu_share
from memory_store.mips.registry import INDEXES

__all__ = ["reserve_gpus"]


def reserve_gpus(index: str, shards: int, gpus: Mapping[str, float], free: float) -> tuple[float, Sequence[str]]:
    """(the share of a GPU that each of so many shards reserves, the node of each); (0, ()) where they reserve none.

    gpus: how many each node has, the nodes in the order in which they take shards; free: how many of all these nobody
    has reserved. An index with device=auto reserves only where the free ones are enough for all its shards. Raises
    DeviceUnavailable where one with device=cuda needs more than there are, UnknownIndex for an option that cannot be.
    """
    spec = parse_index(index, INDEXES)
    share = gpu_share(spec) if spec.name == "exact" else 0.0
    if not share:
        return 0.0, ()
    on_one = int(1 / share + 1e-9)  # a shard's share is of one GPU
    turns = [(turn, node) for node, count in gpus.items() for turn in range(min(int(count) * on_one, shards))]
    nodes = [node for _, node in sorted(turns, key=lambda each: each[0])][:shards]
    if spec.options["device"] == "auto" and (len(nodes) < shards or free < shards * share):
        return 0.0, ()
    if len(nodes) < shards:
        raise DeviceUnavailable(
            f"expected room for {shards} shards with {share:g} GPU each, found {sum(gpus.values()):g} GPUs in this "
            "cluster; start nodes with GPUs (`ray start --num-gpus=N` where Ray does not see them), share them "
            f"({spec.name}?device=cuda&gpus=0.25), or use device=auto or device=cpu"
        )
    return share, nodes
