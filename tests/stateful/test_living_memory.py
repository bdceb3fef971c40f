"""A memory that lives, against a dict and brute force: whatever is done to it in whatever order, no answer is wrong.

`HMN_CHAOS_STEPS` (make chaos) sets how many steps in all; the default keeps `make test` short. `HMN_CHAOS_LOG` names a
file to which every run appends what it did; `chaos_log.py` sums it up.
"""

import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import memory_store.compaction
import memory_store.keeping
import memory_store.snapshot
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.compaction import CompactionPolicy, compact
from memory_store.history import diff_generations, rollback
from memory_store.keeping import pays, runs
from memory_store.manifest import generations, read_manifest
from memory_store.mips.oracle import exhaustive_search
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, pin, pins, sweep, unpin, verify_memory
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

DIM = 3
LATER_S = 1e12
STEPS = int(os.environ.get("HMN_CHAOS_STEPS", "0"))
STEPS_PER_RUN = 60 if STEPS else 20
STEPS_ON_RAY = min(600, STEPS // 50)  # starting an actor takes as long as a hundred steps without
SLOW_TO_BUILD, SHORT_RUN = memory_store.snapshot._SLOW_TO_BUILD, memory_store.keeping._SHORT_RUN
LOG = os.environ.get("HMN_CHAOS_LOG")

Facts = dict[int, tuple[float, ...]]

some_ids = st.sets(st.integers(0, 40), min_size=1, max_size=12).map(sorted)
values = st.integers(-3, 3)  # few, so that scores tie
seeds = st.integers(0, 2**32 - 1)
indexes = st.sampled_from(["exact", "ivf", "hnsw", "pca_tree"])  # over so few rows every one of them is exact


class Killed(BaseException):
    """The process is gone: no handler sees it to good effect."""


class LivingMemory(RuleBasedStateMachine):
    """`current` is what the memory must hold, `past` what every generation that was not swept must still hold."""

    backend: Literal["local", "ray"] = "local"

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()
        self.folder = Path(tempfile.mkdtemp(prefix="hmn-stateful-"))
        self.storage = Storage(self.folder / "memory")
        self.memory: Memory | None = None
        self.current: Facts = {}
        self.past: dict[int, Facts] = {}
        self.written = 0  # writes of vectors that no encoder made
        self.encoder: str | None = None

    def teardown(self) -> None:
        memory_store.snapshot.pays = pays
        memory_store.snapshot.runs = runs
        memory_store.snapshot._SLOW_TO_BUILD = SLOW_TO_BUILD
        memory_store.keeping._SHORT_RUN = SHORT_RUN
        if self.memory is not None:
            self.memory.close()
        if self.past:
            assert verify_memory(self.storage).problems == ()
        if LOG:
            with Path(LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"backend": self.backend, **self.done}) + "\n")
        shutil.rmtree(self.folder)

    def opened(self, shards: int, index: str, replicas: int) -> Memory:
        """Nothing is compacted but by a rule, so that a run can be repeated."""
        url, backend = self.storage.url, self.backend
        return open_memory(url, shards, index=index, backend=backend, replicas=replicas, compaction=None)

    # What can be done

    @initialize(
        seed=seeds,
        rows=st.integers(1, 30),
        part_rows=st.integers(1, 12),
        shards=st.integers(1, 3),
        replicas=st.integers(1, 2),
        index=indexes,
        most_beside=st.sampled_from([0.1, 1.0, 10.0]),
        short_run=st.sampled_from([0, 4, SHORT_RUN]),
    )
    def begin(
        self,
        seed: int,
        rows: int,
        part_rows: int,
        shards: int,
        replicas: int,
        index: str,
        most_beside: float,
        short_run: int,
    ) -> None:
        def counted(rows: int, *, beside: int, gone: int) -> bool:
            kept = pays(rows, beside=beside, gone=gone) or (most_beside > 0.1 and beside <= most_beside * rows)
            self.done["main indexes kept" if kept else "main indexes given up"] += 1
            return kept

        def counted_runs(rows: Sequence[int]) -> list[tuple[int, int]]:
            found = runs(rows)
            self.done["rows beside an index in several runs"] += len(found) > 1
            return found

        # Rows are so few that the real limits would hardly ever keep an index, or have more than one run.
        memory_store.snapshot.pays = counted
        memory_store.snapshot.runs = counted_runs
        memory_store.snapshot._SLOW_TO_BUILD = 1 if most_beside > 0.1 else SLOW_TO_BUILD
        memory_store.keeping._SHORT_RUN = short_run
        ids = list(range(rows))
        vectors_ND = self.draw_vectors(seed, rows)
        with MemoryWriter(self.storage, dim=DIM, part_rows=part_rows) as writer:
            writer.append(pa.table({"fact_id": pa.array(ids, pa.int64())}), vectors_ND)
        self.put(ids, vectors_ND)
        self.note_generation(1)
        self.memory = self.opened(shards, index, replicas)

    @rule(ids=some_ids, seed=seeds, elsewhere=st.booleans())
    def upsert(self, ids: list[int], seed: int, elsewhere: bool) -> None:
        facts, vectors_ND = pa.table({"fact_id": pa.array(ids, pa.int64())}), self.draw_vectors(seed, len(ids))
        if elsewhere:  # by a process that has no shards
            locate = partial(locate_on_disk, self.storage)
            generation = upsert_facts(self.storage, facts, vectors_ND, locate=locate).generation
            self.open.refresh()
        else:
            generation = self.open.upsert(facts, vectors_ND)
        self.put(ids, vectors_ND)
        self.written += 1
        self.note_generation(generation)

    @precondition(lambda self: self.current)
    @rule(data=st.data(), elsewhere=st.booleans())
    def delete(self, data: st.DataObject, elsewhere: bool) -> None:
        doomed = data.draw(st.sets(st.sampled_from(sorted(self.current)), min_size=1).map(sorted))
        if elsewhere:
            locate = partial(locate_on_disk, self.storage)
            generation = delete_facts(self.storage, doomed, locate=locate).generation
            self.open.refresh()
        else:
            generation = self.open.delete(doomed)
        for fact_id in doomed:
            del self.current[fact_id]
        self.note_generation(generation)

    @rule(ids=some_ids, seed=seeds)
    def append(self, ids: list[int], seed: int) -> None:
        fresh = [fact_id for fact_id in ids if fact_id not in self.current]
        vectors_ND = self.draw_vectors(seed, len(fresh))
        with MemoryWriter(self.storage, dim=DIM) as writer:
            writer.append(pa.table({"fact_id": pa.array(fresh, pa.int64())}), vectors_ND)
        self.put(fresh, vectors_ND)
        self.written += 1
        self.note_generation(self.open.refresh())

    @rule(share=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    def compact(self, share: float) -> None:
        self.note_generation(self.open.compact(CompactionPolicy(most_dead_share=share)))

    @rule(ids=some_ids, seed=seeds, part_rows=st.integers(1, 12))
    def compact_while_others_write(self, ids: list[int], seed: int, part_rows: int) -> None:
        real = memory_store.compaction.commit_change

        def overtaken(*args: object, **options: object) -> object:
            memory_store.compaction.commit_change = real
            self.upsert(ids, seed, elsewhere=False)
            return real(*args, **options)  # type: ignore[arg-type]

        memory_store.compaction.commit_change = overtaken  # type: ignore[assignment]
        try:
            summary = compact(self.storage, part_rows=part_rows)
        finally:
            memory_store.compaction.commit_change = real
        self.open.refresh()
        self.note_generation(summary.generation)
        self.done["compactions overtaken"] += 1

    @rule(at_file=st.integers(1, 8), part_rows=st.integers(1, 12))
    def compact_and_be_killed(self, at_file: int, part_rows: int) -> None:
        left, real = at_file, Storage.write_atomic

        def dying(storage: Storage, path: str, write: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            real(storage, path, write)  # type: ignore[arg-type]

        Storage.write_atomic = dying  # type: ignore[method-assign,assignment]
        try:
            compact(self.storage, part_rows=part_rows)
        except Killed:
            self.done["compactions killed"] += 1
        finally:
            Storage.write_atomic = real  # type: ignore[method-assign]
        self.note_generation(self.open.refresh())

    @rule(seed=seeds, name=st.sampled_from(["a", "b"]), shards=st.sampled_from([None, 1, 2, 3]))
    def reindex(self, seed: int, name: str, shards: int | None) -> None:
        def encode(facts: pa.Table) -> np.ndarray:
            ids_N = facts["fact_id"].to_numpy()
            return np.stack([(ids_N * step + seed) % 5 - 2 for step in (1, 2, 3)], axis=1).astype(np.float32)

        if self.current:
            # Its vectors follow from the facts, so it has another name once others were written under it.
            fingerprint = f"{name}-{seed % 5}-{self.written}"
            held = read_manifest(self.storage).encoder == fingerprint
            generation = self.open.reindex(encode, shards=shards, fingerprint=fingerprint)
            if not held:
                ids = sorted(self.current)
                self.put(ids, encode(pa.table({"fact_id": ids})))
            self.note_generation(generation)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        generation = data.draw(st.sampled_from(sorted(self.past)))
        new = rollback(self.storage, generation)
        self.current = dict(self.past[generation])
        self.open.refresh()
        self.note_generation(new.generation)

    @rule(data=st.data(), keep_last=st.integers(1, 3))
    def tag_and_sweep(self, data: st.DataObject, keep_last: int) -> None:
        tagged = data.draw(st.sampled_from(sorted(self.past)))
        pin(self.storage, "tag=kept", tagged)
        sweep(self.storage, keep_last=keep_last, now_s=LATER_S)
        assert tagged in generations(self.storage)
        self.past = {number: self.past[number] for number in generations(self.storage)}
        unpin(self.storage, "tag=kept")
        assert pins(self.storage) == {}
        assert inspect_memory(self.storage).unnamed_files == 0

    @rule(shards=st.integers(1, 4), replicas=st.integers(1, 2), index=indexes)
    def reopen(self, shards: int, replicas: int, index: str) -> None:
        self.open.close()
        self.memory = self.opened(shards, index, replicas)
        self.done["reopened"] += 1

    # What must hold

    @rule(seed=seeds, k=st.integers(1, 50), data=st.data())
    def an_older_generation_answers_as_it_did(self, seed: int, k: int, data: st.DataObject) -> None:
        generation = data.draw(st.sampled_from(sorted(self.past)))
        with open_memory(self.storage.url, shards=2, generation=generation) as memory:
            self.check(memory, self.past[generation], seed, k)

    @rule(data=st.data())
    def a_diff_is_that_of_the_dicts(self, data: st.DataObject) -> None:
        before, after = (data.draw(st.sampled_from(sorted(self.past))) for _ in range(2))
        found = diff_generations(self.storage, before, after)
        old, new = self.past[before], self.past[after]
        assert found.added.tolist() == sorted(new.keys() - old.keys())
        assert found.removed.tolist() == sorted(old.keys() - new.keys())
        if not found.embedded_anew:
            assert found.changed.tolist() == sorted(n for n in old.keys() & new.keys() if old[n] != new[n])

    @invariant()
    def every_answer_is_that_of_brute_force(self) -> None:
        if self.memory is not None:
            self.done["steps"] += 1
            self.check(self.memory, self.current, len(self.past), 7)
            self.check(self.memory, self.current, len(self.past), 60)

    def check(self, memory: Memory, facts: Facts, seed: int, k: int) -> None:
        ids_N = np.array(sorted(facts), dtype=np.int64)
        vectors_ND = np.array([facts[n] for n in sorted(facts)], np.float32).reshape(len(ids_N), DIM)
        queries_BD = np.concatenate([self.draw_vectors(seed, 3), np.zeros((1, DIM), np.float32)])
        answer = memory.search(queries_BD, k)
        expected = exhaustive_search(ids_N, vectors_ND, queries_BD, k)
        np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
        np.testing.assert_array_equal(answer.scores_BK, expected.scores_BK.astype(np.float32))
        assert (len(memory), answer.generation, answer.coverage) == (len(facts), memory.generation, 1.0)
        np.testing.assert_array_equal(memory.vectors(ids_N), vectors_ND)
        assert memory.fetch(ids_N, ["fact_id"])["fact_id"].to_pylist() == ids_N.tolist()
        self.done["answers checked"] += 3

    @property
    def open(self) -> Memory:
        assert self.memory is not None
        return self.memory

    def put(self, ids: list[int], vectors_ND: np.ndarray) -> None:
        self.current |= {n: tuple(vector_D.tolist()) for n, vector_D in zip(ids, vectors_ND, strict=True)}

    def note_generation(self, generation: int) -> None:
        assert generation == read_manifest(self.storage).generation
        self.past[generation] = dict(self.current)
        self.done["generations checked"] += 1

    @staticmethod
    def draw_vectors(seed: int, rows: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(-3, 4, (rows, DIM)).astype(np.float32)


class LivingMemoryOnRay(LivingMemory):
    """The same, with shards that are actors, and killed."""

    backend = "ray"

    @rule(data=st.data())
    def kill_a_shard(self, data: st.DataObject) -> None:
        lines = self.open.stats().shards
        pids = [copy.pid for line in lines for copy in line.copies if copy.pid] or [line.pid for line in lines]
        victim = data.draw(st.sampled_from(pids))
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        self.done["shards killed"] += 1


TestLivingMemory = LivingMemory.TestCase
TestLivingMemory.settings = settings(
    max_examples=max(1, STEPS // STEPS_PER_RUN) if STEPS else 12,
    stateful_step_count=STEPS_PER_RUN,
    suppress_health_check=list(HealthCheck),
)

TestLivingMemoryOnRay = pytest.mark.usefixtures("ray_cluster")(LivingMemoryOnRay.TestCase)
TestLivingMemoryOnRay.settings = settings(
    max_examples=max(1, STEPS_ON_RAY // STEPS_PER_RUN),
    stateful_step_count=STEPS_PER_RUN if STEPS else 10,
    suppress_health_check=list(HealthCheck),
)
