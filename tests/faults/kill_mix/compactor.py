"""A process that compacts the memory on disk and sweeps what is superseded."""

import sys
from functools import partial

from kill_mix.child import Order, Report, serve

from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import GenerationConflict
from memory_store.storage import Storage
from memory_store.upkeep import sweep


def main() -> None:
    storage = Storage(sys.argv[1])
    serve(lambda: partial(_merge, storage))


def _merge(storage: Storage, order: Order) -> Report:
    try:
        policy = CompactionPolicy(most_dead_share=order["dead_share"])
        generation = compact(storage, policy=policy, part_rows=order["part_rows"]).generation
    except GenerationConflict:  # the parts were embedded anew meanwhile
        generation = None
    swept = sweep(storage, keep_last=order["keep_last"])
    return {"compacted": generation, "swept": len(swept.generations)}


if __name__ == "__main__":
    main()
