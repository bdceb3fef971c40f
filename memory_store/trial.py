"""An index or a number of shards tried out on a memory, before anybody serves with it."""

import time
from dataclasses import dataclass

from memory_store.engine import check_engine
from memory_store.memory import LOAD_DEADLINE_S
from memory_store.opening import open_memory
from memory_store.storage import Storage

__all__ = ["Trial", "try_index"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found. recall: recall@10 on sampled vectors against brute force; bytes: of the index and its rows."""

    generation: int
    index: str
    shards: int
    recall: float
    bytes: int
    build_s: float


def try_index(url: str, *, index: str, shards: int, least_recall: float = 0.0, generation: int | None = None) -> Trial:
    """Build an index over a memory in this process and verify it. Raises ReindexFailed for too little recall.

    generation: the current one by default; it may be one that is proposed.
    """
    started_s = time.monotonic()
    with open_memory(url, shards, index, generation=generation) as memory:
        build_s = time.monotonic() - started_s
        with memory._engines.call() as (engine, manifest, served):
            recall = check_engine(
                Storage(url), engine, manifest, served, least_recall=least_recall, deadline_s=LOAD_DEADLINE_S
            )
        stats = memory.stats()
    return Trial(
        generation=stats.generation,
        index=index,
        shards=shards,
        recall=recall,
        bytes=sum(line.bytes for line in stats.shards),
        build_s=build_s,
    )
