"""A shard that hangs holds a write up for as long as the memory's deadline, and no longer; nothing is committed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_store import open_memory
from memory_store.calls import CallFailed
from memory_store.engine import LOAD_DEADLINE_S
from memory_store.errors import ShardUnavailable
from memory_store.policy import Failure
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory
from memory_store.writes import delete_facts, locate_on_disk

WriteMemory = Callable[..., Storage]


@dataclass
class HungShard:
    """Never answers; notes how long each call was waited for."""

    waited_s: dict[str, float] = field(default_factory=dict)

    def start(self, method: str, *args: Any) -> "_Hangs":
        return _Hangs(self, method)

    def replace(self) -> None:
        raise AssertionError("a shard that hangs may be alive: nobody starts another one")


@dataclass
class _Hangs:
    shard: HungShard
    method: str

    def result(self, timeout_s: float) -> Any:
        self.shard.waited_s[self.method] = timeout_s
        raise CallFailed(Failure.TIMED_OUT, f"no reply within {timeout_s:.3g} s")


@pytest.mark.parametrize("write", ["delete", "upsert", "holds"])
def test_a_write_fails_at_the_deadline_where_a_shard_hangs_and_commits_nothing(
    storage: Storage, write_memory: WriteMemory, write: str
) -> None:
    write_memory(storage, range(9))
    with open_memory(storage.url, shards=2, deadline_s=4.0) as memory:
        coordinator = memory._engines.now.coordinator
        hung = HungShard()
        coordinator.shards = [coordinator.shards[0], hung]
        arguments = (pa.table({"fact_id": [1]}), np.ones((1, 4))) if write == "upsert" else ([1],)
        with pytest.raises(ShardUnavailable, match=r"shard 1 of 2 .* `locate` .*; retry, or raise the deadline$"):
            getattr(memory, write)(*arguments)
        assert list(hung.waited_s) == ["locate"], "what is served is loaded"
        assert hung.waited_s["locate"] <= 4.0
        assert memory.newest_generation() == 1
    assert inspect_memory(storage).unnamed_files == 0


def test_the_load_of_a_generation_that_is_not_served_may_take_longer(
    storage: Storage, write_memory: WriteMemory
) -> None:
    write_memory(storage, range(9))
    with open_memory(storage.url, shards=2, deadline_s=4.0) as memory:
        delete_facts(storage, [0], locate=lambda manifest, ids_C: locate_on_disk(storage, manifest, ids_C))
        coordinator = memory._engines.now.coordinator
        hung = HungShard()
        coordinator.shards = [coordinator.shards[0], hung]
        with pytest.raises(ShardUnavailable, match="did not answer `load`"):
            memory.delete([1])
        assert LOAD_DEADLINE_S - 60 < hung.waited_s["load"] <= LOAD_DEADLINE_S
