"""The steps of a re-index as a Memory takes them: build beside what serves, verify, switch, sweep."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory_store.engine import LOAD_DEADLINE_S, Engine, check_engine, load
from memory_store.errors import CorruptFile, GenerationNotFound
from memory_store.leases import leased
from memory_store.manifest import Manifest, generations, read_manifest
from memory_store.reembed import Reembedding
from memory_store.reindex import ReindexPlan

if TYPE_CHECKING:
    from memory_store.memory import Memory

__all__ = ["MemoryReindex"]


@dataclass(eq=False)
class MemoryReindex:
    """See reindex.ReindexSteps."""

    memory: "Memory"
    embedding: Reembedding | None
    least_recall: float
    proposed: Manifest | None = None
    built: Engine | None = None
    replaced: Engine | None = None

    def build(self, plan: ReindexPlan) -> None:
        memory = self.memory
        if self.embedding is not None:
            self.proposed = self.embedding.embed()
        if plan.rebuild:
            self.built = memory._source.beside(memory._engines.now, plan.index, plan.shards)

    def verify(self, plan: ReindexPlan) -> None:
        memory = self.memory
        engine = self.built or memory._engines.now
        with leased(memory._storage, current_only=True) as (generation,):  # a sweep meanwhile would look like damage
            manifest = self.proposed or read_manifest(memory._storage, generation)
            check_engine(
                memory._storage,
                engine,
                manifest,
                load(engine, manifest),
                least_recall=self.least_recall,
                deadline_s=LOAD_DEADLINE_S,
            )

    def switch(self, plan: ReindexPlan) -> None:
        memory = self.memory
        if self.embedding is not None:
            self.embedding.commit()
        others = self._read_by_others()
        # no write of this process between the load and the switch
        with memory._write_lock, memory._refresh_lock, memory._reading() as manifest:
            if self.built is None:
                memory._serve(manifest)
                return
            for generation in others:
                self._load_for_others(generation, self.built)
            loaded = load(self.built, manifest)
            memory._source.publish(self.built)
            self.replaced = memory._engines.show((self.built, manifest, loaded))

    def _read_by_others(self) -> list[int]:
        """Generations that other jobs may read on the shards of a shared memory, and go on with on these."""
        if self.built is None or self.built.edition is None:
            return []
        there = set(generations(self.memory._storage))
        held = {held for line in self.memory.stats().shards for held in line.generations_resident}
        return sorted(held & there)

    def _load_for_others(self, generation: int, built: Engine) -> None:
        try:
            built.coordinator.load(generation, deadline_s=LOAD_DEADLINE_S)
        except (CorruptFile, GenerationNotFound, FileNotFoundError):
            if generation in generations(self.memory._storage):
                raise  # else it was swept since it was seen: nobody reads it any more

    def sweep(self, plan: ReindexPlan) -> None:
        if self.replaced is not None:
            self.memory._engines.retire(self.replaced, stop=True)

    def abandon(self) -> None:
        if self.embedding is not None:
            self.embedding.close()
        if self.proposed is not None and self.built is None:
            self.memory.release_others()  # the shards that serve had loaded it
        if self.built is not None and self.replaced is None:
            self.memory._source.discard(self.built)
