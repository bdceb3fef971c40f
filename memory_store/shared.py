"""[ray] Memories that the jobs of a cluster share by name: joined, re-divided for all of them, found, stopped."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from memory_store.actors import NAMESPACE, check_name, named_shards
from memory_store.backends import SharedAs
from memory_store.editions import Edition, Editions
from memory_store.engine import Engine
from memory_store.engine_source import SharedEngines
from memory_store.ray_session import ensure_ray

__all__ = ["RayBoard", "shared_engines", "shared_memories", "stop_named"]

_SPACE = "hmn-editions"


class RayBoard:
    """The board of editions, in the key-value store of the cluster's head: it lives as long as detached actors do.

    An actor that keeps it would be one process more, and could die. A put that does not overwrite is atomic.
    """

    def __init__(self) -> None:
        ensure_ray()

    def notes(self) -> Sequence[tuple[str, int]]:
        keys = [key.decode().rpartition(":") for key in _internal_kv_list("", namespace=_SPACE)]
        return [(name, int(number)) for name, _, number in keys]

    def read(self, name: str, number: int) -> bytes | None:
        return _internal_kv_get(_key(name, number), namespace=_SPACE)

    def create(self, name: str, number: int, data: bytes) -> bool:
        there_already = _internal_kv_put(_key(name, number), data, overwrite=False, namespace=_SPACE)
        return not there_already

    def delete(self, name: str, number: int) -> None:
        _internal_kv_del(_key(name, number), namespace=_SPACE)


def _key(name: str, number: int) -> str:
    return f"{name}:{number}"


def shared_engines(
    name: str, start: Callable[[str, int, SharedAs | None, Edition | None], Engine], asked: Edition
) -> SharedEngines:
    """The shards of a shared memory. start: (index, shards, name and edition they are found by) -> the shards."""
    check_name(name)
    editions = Editions(name, RayBoard())

    def start_edition(edition: Edition) -> Engine:
        shared = SharedAs(name, edition.token, partial(editions.require, edition))
        return start(edition.index, edition.shards, shared, edition)

    return SharedEngines(
        editions=editions, asked=asked, start=start_edition, is_running=lambda: name in named_shards().values()
    )


def shared_memories() -> dict[str, Edition]:
    """Every memory that is shared in the cluster, by its name."""
    board = RayBoard()
    found = {name: Editions(name, board).now() for name in sorted({name for name, _ in board.notes()})}
    return {name: edition for name, edition in found.items() if edition is not None}


def stop_named(name: str) -> int:
    """Stop the shards of a named memory, whoever started it; returns how many there were."""
    mine = [shard for shard, memory in named_shards().items() if memory == name and name]
    Editions(name, RayBoard()).end()  # first, so that nobody who misses a shard starts it again
    for shard in mine:
        with suppress(ValueError):  # it ended since it was listed
            ray.kill(ray.get_actor(shard, namespace=NAMESPACE), no_restart=True)
    return len(mine)
