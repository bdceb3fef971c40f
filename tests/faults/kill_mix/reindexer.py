"""A process that embeds the memory anew with another encoder, as `hmn reindex` does, and sweeps the vectors before."""

import sys
from functools import partial

from kill_mix.child import Order, Report, serve
from kill_mix.facts import encode, fingerprint

from memory_store.reembed import reembed
from memory_store.storage import Storage
from memory_store.upkeep import sweep


def main() -> None:
    storage = Storage(sys.argv[1])
    serve(lambda: partial(_embed, storage))


def _embed(storage: Storage, order: Order) -> Report:
    scale = order["scale"]
    new = reembed(storage, lambda facts: encode(facts, scale), fingerprint=fingerprint(scale))
    assert new.encoder == fingerprint(scale)
    sweep(storage, keep_last=order["keep_last"])
    return {"embedded": new.generation}


if __name__ == "__main__":
    main()
