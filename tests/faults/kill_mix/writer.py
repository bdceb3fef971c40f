"""A process that upserts and deletes on disk, without shards; it reports a commit after it has returned."""

import sys
from functools import partial

from kill_mix.child import Order, Report, serve
from kill_mix.facts import encode, facts_table, scale_of

from memory_store.errors import GenerationConflict
from memory_store.manifest import Manifest, read_manifest
from memory_store.storage import Storage
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

__all__ = ["write"]


def main() -> None:
    storage = Storage(sys.argv[1])
    serve(lambda: partial(write, storage))


def write(storage: Storage, order: Order) -> Report:
    """Carry out one write; the generation is durable on return."""
    while True:
        try:
            return {"generation": _written(storage, order).generation}
        except GenerationConflict:
            continue  # embedded anew meanwhile, or others were faster again and again


def _written(storage: Storage, order: Order) -> Manifest:
    locate = partial(locate_on_disk, storage)
    if order["do"] == "delete":
        return delete_facts(storage, order["ids"], locate=locate)
    now, facts = read_manifest(storage), facts_table(order["ids"], order["stamp"])
    return upsert_facts(storage, facts, encode(facts, scale_of(now.encoder)), locate=locate, made_for=now)


if __name__ == "__main__":
    main()
