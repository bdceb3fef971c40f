"""[ray] A process that gives the memory that drivers share on Ray another index and other shards."""

import sys
from functools import partial

from kill_mix.child import Order, Report, serve

from memory_store.actors import RayShardHandle
from memory_store.opening import open_shared
from memory_store.shared import RayBoard

_CALLS = [(RayShardHandle, "start"), (RayShardHandle, "stop"), (RayBoard, "create"), (RayBoard, "delete")]


def main() -> None:
    name = sys.argv[2]
    serve(lambda: partial(_divide, name), _CALLS)


def _divide(name: str, order: Order) -> Report:
    with open_shared(name) as memory:
        generation = memory.reindex(index=order["index"], shards=order["shards"], move=True)
        return {"divided": generation, "shards": len(memory.stats().shards)}


if __name__ == "__main__":
    main()
