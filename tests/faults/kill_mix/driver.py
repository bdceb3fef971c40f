"""[ray] A driver: it shares the memory on Ray, searches, fetches and writes, and checks every answer by brute force.

The coordinator of a memory is no process of its own: it is an object in the driver that opened it. So whoever kills a
driver kills a coordinator, with its calls under way, and leaves the shards, which are actors that outlive their jobs.
"""

import sys

import numpy as np
from kill_mix.child import Order, Report, serve
from kill_mix.facts import draw_queries, encode, facts_table, scale_of
from kill_mix.rows import Rows, read_rows

from memory_store import Memory, open_memory
from memory_store.actors import RayShardHandle
from memory_store.errors import GenerationConflict
from memory_store.storage import Storage

# B queries, K facts found, C facts fetched, D dimension

SHARDS = 2


class Driver:
    """A memory that is shared, and its generation as it lies on disk."""

    def __init__(self, url: str, name: str) -> None:
        self.memory: Memory = open_memory(url, shards=SHARDS, backend="ray", name=name)
        self.storage = Storage(url)
        self.rows: Rows | None = None

    def do(self, order: Order) -> Report:
        if order["do"] == "search":
            return {"checked": self._check(order["seed"])}
        generation = self._write(order)
        self._check_visible(order)
        return {"checked": self._check(order["stamp"]) + 1, "generation": generation}

    def _write(self, order: Order) -> int:
        while True:
            try:
                if order["do"] == "delete":
                    return self.memory.delete(order["ids"])
                facts = facts_table(order["ids"], order["stamp"])
                return self.memory.upsert(facts, encode(facts, scale_of(self.memory.manifest.encoder)))
            except GenerationConflict:
                self.memory.refresh()  # embedded anew meanwhile, or others were faster again and again

    def _check_visible(self, order: Order) -> None:
        """What this driver wrote is what it reads; nobody else writes these facts."""
        if order["do"] == "delete":
            assert not self.memory.holds(order["ids"]).any()
        else:
            found = self.memory.fetch(order["ids"], ["subject"])["subject"].to_pylist()
            assert found == [str(order["stamp"])] * len(order["ids"]), f"fetched {found} for {order}"

    def _check(self, seed: int) -> int:
        """The number of answers checked, all of the generation that is the newest when this begins."""
        self.memory.refresh()
        draw = np.random.default_rng(seed)
        queries_BD, k = draw_queries(draw, 4), int(draw.integers(1, 60))
        answer = self.memory.search(queries_BD, k)
        rows = self._rows(answer.generation)
        expected = rows.search(queries_BD, k)
        assert answer.coverage == 1.0
        np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
        np.testing.assert_array_equal(answer.scores_BK, expected.scores_BK.astype(np.float32))
        place_C = draw.integers(0, len(rows.stamps), 20)
        ids_C = np.array(list(rows.stamps), np.int64)[place_C]
        facts = self.memory.fetch(ids_C, ["fact_id", "subject"])
        assert facts["fact_id"].to_pylist() == ids_C.tolist()
        assert facts["subject"].to_pylist() == [str(rows.stamps[fact_id]) for fact_id in ids_C.tolist()]
        np.testing.assert_array_equal(self.memory.vectors(ids_C), rows.vectors_ND[place_C])
        assert (self.memory.generation, len(self.memory)) == (answer.generation, len(rows.stamps))
        return 3

    def _rows(self, generation: int) -> Rows:
        if self.rows is None or self.rows.generation != generation:
            self.rows = read_rows(self.storage, generation)
        return self.rows


def main() -> None:
    serve(lambda: Driver(*sys.argv[1:]).do, [(RayShardHandle, "start")])


if __name__ == "__main__":
    main()
