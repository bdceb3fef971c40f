"""Which share of a GPU each shard of a memory reserves on Ray, and on which nodes; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memory_store.errors import DeviceUnavailable
from memory_store.mips.base import parse_index
from memory_store.mips.device import gpu_share
from memory_store.mips.registry import INDEXES

__all__ = ["NO_GPUS", "Reservation", "reserve_gpus"]


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """share: of a GPU, for each shard; 0 for none. nodes: that of each shard. if_free: the shards do without where
    others have reserved too much of these GPUs."""

    share: float
    nodes: Sequence[str]
    if_free: bool = False


NO_GPUS = Reservation(share=0.0, nodes=())


def reserve_gpus(index: str, shards: int, gpus: Mapping[str, float]) -> Reservation:
    """What the shards of an index reserve on nodes with so many GPUs each, in the order in which these take shards.

    Raises DeviceUnavailable where an index with device=cuda needs more than there are, UnknownIndex for an option that
    cannot be.
    """
    spec = parse_index(index, INDEXES)
    share = gpu_share(spec) if spec.name == "exact" else 0.0
    if not share:
        return NO_GPUS
    on_one = int(1 / share + 1e-9)  # a shard's share is of one GPU
    turns = [(turn, node) for node, count in gpus.items() for turn in range(min(int(count) * on_one, shards))]
    nodes = [node for _, node in sorted(turns, key=lambda each: each[0])][:shards]
    if_free = spec.options["device"] == "auto"
    if len(nodes) < shards and if_free:
        return NO_GPUS
    if len(nodes) < shards:
        raise DeviceUnavailable(
            f"expected room for {shards} shards with {share:g} GPU each, found {sum(gpus.values()):g} GPUs in this "
            "cluster; start nodes with GPUs (`ray start --num-gpus=N` where Ray does not see them), share them "
            f"({spec.name}?device=cuda&gpus=0.25), or use device=auto or device=cpu"
        )
    return Reservation(share=share, nodes=nodes, if_free=if_free)
