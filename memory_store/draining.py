"""[ray] Nodes of a cluster that are to be taken away: noted in its head, so that no job starts a shard there."""

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list, _internal_kv_put

from memory_store.ray_session import ensure_ray

__all__ = ["drained_nodes", "note_drained", "take_back"]

_SPACE = "hmn-drained"  # beside the editions of shared memories: both live as long as the head does


def drained_nodes() -> frozenset[str]:
    """Ids of the nodes that get no more shards. A node that joins again has another id."""
    ensure_ray()
    return frozenset(key.decode() for key in _internal_kv_list("", namespace=_SPACE))


def note_drained(node: str) -> None:
    """From now on no shard is started on this node while there are others."""
    ensure_ray()
    _internal_kv_put(node, b"", namespace=_SPACE)


def take_back(node: str) -> bool:
    """The node gets shards again; False if it was not drained."""
    was = node in drained_nodes()
    _internal_kv_del(node, namespace=_SPACE)
    return was
