"""[ray] Memories that the jobs of a cluster share by name: joined, re-divided for all of them, found, stopped."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from memory_store.actors import NAMESPACE, check_name, edition_of, named_shards
from memory_store.backends import SharedAs
from memory_store.editions import Edition, Editions, Running
from memory_store.engine import Engine
from memory_store.engine_source import SharedEngines
from memory_store.errors import VersionMismatch
from memory_store.marks import Mark, marks
from memory_store.ray_session import ensure_ray

__all__ = ["MAKES", "RayBoard", "left_over_shards", "shared_engines", "shared_memories", "shared_names", "stop_named"]

_SPACE = "hmn-editions"
MAKES = "hmn-makes:"  # of the mark of a job that makes an edition, before its token


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
        editions=editions,
        asked=asked,
        start=start_edition,
        running=partial(_running, name),
        mark=lambda edition: Mark(f"{MAKES}{edition.token}"),
    )


def _running(name: str) -> list[Running]:
    """The shards of a shared memory, whatever their edition."""
    found: dict[str, Any] = {}
    for shard, memory in named_shards().items():
        if memory == name:
            with suppress(ValueError):  # it ended since it was listed
                found[shard] = ray.get_actor(shard, namespace=NAMESPACE)
    made = marks(MAKES)  # looked at later: a mark is there before its shards, and goes after they are noted
    return [
        Running(
            actor=shard,
            token=edition_of(shard),
            is_being_made=edition_of(shard) in made,
            end=partial(ray.kill, actor, no_restart=True),
        )
        for shard, actor in found.items()
    ]


def left_over_shards() -> set[str]:
    """The names of shard actors that a job left behind that was killed while it re-divided a shared memory.

    Whoever opens the memory ends them.
    """
    board, left = RayBoard(), set[str]()
    for memory in set(named_shards().values()) - {""}:
        with suppress(VersionMismatch):  # noted by other code: that is for those who run it to say
            left |= {shard.actor for shard in Editions(memory, board).left_over(_running(memory))}
    return left


def shared_names() -> set[str]:
    """What memories are shared by in the cluster, by code of whatever version."""
    return {name for name, _ in RayBoard().notes()}


def shared_memories() -> dict[str, Edition]:
    """Every memory that is shared in the cluster, by its name."""
    board = RayBoard()
    found = {name: Editions(name, board).now() for name in sorted(shared_names())}
    return {name: edition for name, edition in found.items() if edition is not None}


def stop_named(name: str) -> int:
    """Stop the shards of a named memory, whoever started it; returns how many there were."""
    mine = _running(name) if name else []
    Editions(name, RayBoard()).end()  # first, so that nobody who misses a shard starts it again
    for shard in mine:
        shard.end()
    return len(mine)
