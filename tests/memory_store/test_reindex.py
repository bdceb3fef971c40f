"""A re-index is made beside what serves and switched in one step; whatever ends it early leaves the old one serving."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import memory_store.memory
from memory_store import Memory, open_memory
from memory_store.errors import ConfigError, InvalidVectors, ReindexFailed, ReindexRunning, StorageFailed
from memory_store.manifest import Manifest, Part, read_manifest
from memory_store.mips.oracle import exhaustive_search
from memory_store.parts import open_part
from memory_store.reembed import reembed
from memory_store.reindex import ReindexPlan, State, plan_reindex, run_reindex
from memory_store.storage import Storage
from memory_store.trial import try_index
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writes import commit_change, delete_facts, locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]


def encode(facts: pa.Table) -> np.ndarray:
    """Two dimensions, as no fixture has them."""
    ids_N = facts["fact_id"].to_numpy()
    return np.stack([ids_N % 7, ids_N % 5], axis=1).astype(np.float32)


def check(memory: Memory, ids: list[int]) -> None:
    ids_N = np.array(sorted(ids))
    vectors_ND = encode(pa.table({"fact_id": ids_N}))
    queries_BD = np.array([[1, 2], [-1, 0.5], [0, 0]], np.float32)
    expected = exhaustive_search(ids_N, vectors_ND, queries_BD, 8)
    np.testing.assert_array_equal(memory.search(queries_BD, 8).fact_ids_BK, expected.fact_ids_BK)


@pytest.fixture
def thirty(storage: Storage, write_memory: WriteMemory) -> Storage:
    return write_memory(storage, range(30), part_rows=10)


@dataclass
class StepsDouble:
    """Notes what it is asked to do, and fails at one step."""

    fails_at: str = ""
    error: BaseException = field(default_factory=lambda: StorageFailed("the disk is full"))
    done: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def step(*_: object) -> None:
            self.done.append(name)
            if name == self.fails_at:
                raise self.error

        return step


PLAN = ReindexPlan(embed=True, rebuild=True, index="exact", shards=2)


def test_the_steps_are_taken_in_order() -> None:
    steps = StepsDouble()
    assert run_reindex(PLAN, steps) is State.DONE
    assert steps.done == ["build", "verify", "switch", "sweep"]
    assert run_reindex(ReindexPlan(embed=False, rebuild=False, index="exact", shards=1), steps) is State.DONE
    assert len(steps.done) == 4, "nothing to do, nothing done"


@pytest.mark.parametrize(("step", "doing"), [("build", "building"), ("verify", "verifying"), ("switch", "switching")])
def test_a_step_that_fails_ends_it_with_what_serves_and_says_why(step: str, doing: str) -> None:
    steps = StepsDouble(fails_at=step)
    with pytest.raises(ReindexFailed, match=f"while {doing}: the disk is full; what served before goes on serving"):
        run_reindex(PLAN, steps)
    assert steps.done[-1] == "abandon"
    interrupted = StepsDouble(fails_at=step, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_reindex(PLAN, interrupted)
    assert interrupted.done[-1] == "abandon"


def test_a_plan_changes_what_differs_and_no_more() -> None:
    plan = partial(plan_reindex, served=("exact", 2))
    assert plan(embed=False, index=None, shards=None).is_nothing
    assert plan(embed=False, index="exact", shards=2).is_nothing
    assert plan(embed=False, index=None, shards=None, move=True).rebuild, "the same again, elsewhere"
    assert plan(embed=False, index=None, shards=3) == ReindexPlan(embed=False, rebuild=True, index="exact", shards=3)
    assert plan(embed=True, index=None, shards=None) == ReindexPlan(embed=True, rebuild=False, index="exact", shards=2)


@pytest.mark.parametrize("shards", [None, 3])
def test_a_new_encoder_an_index_and_shards_are_switched_to_while_writes_go_on(
    thirty: Storage, shards: int | None
) -> None:
    with open_memory(thirty.url, shards=2) as memory:
        memory.delete([3])
        calls = 0

        def encode_while_others_write(facts: pa.Table) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == 2:
                memory.upsert(pa.table({"fact_id": [50, 1]}), np.ones((2, 4), np.float32))
                memory.delete([2])
            assert memory.search(np.ones((1, 4), np.float32), 3).generation == memory.generation
            return encode(facts)

        generation = memory.reindex(encode_while_others_write, "exact?scan=float32", shards, fingerprint="mod")
        assert generation == memory.generation == 5
        assert (memory.dim, memory.manifest.encoder, calls) == (2, "mod", 4), "every part is embedded once"
        assert len(memory.stats().shards) == (shards or 2)
        left = [n for n in [*range(30), 50] if n not in (2, 3)]
        check(memory, left)
        memory.upsert(pa.table({"fact_id": [60]}), encode(pa.table({"fact_id": [60]})))
        check(memory, [*left, 60])
        assert memory.reindex(encode, fingerprint="mod") == 6, "that encoder embedded it already"
    assert verify_memory(thirty).problems == ()
    sweep(thirty, now_s=1e12)
    assert inspect_memory(thirty).unnamed_files == 0
    assert thirty.list("staging") == []


def test_it_catches_up_with_a_writer_that_never_rests(thirty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer commits with every part that is embedded, later with every other; in a pause it commits on."""
    embedded = 0

    def upsert() -> None:
        facts = pa.table({"fact_id": [1]})
        upsert_facts(thirty, facts, np.ones((1, 4), np.float32), locate=partial(locate_on_disk, thirty))

    def encode_in_a_while(facts: pa.Table) -> np.ndarray:
        nonlocal embedded
        embedded += 1
        assert embedded < 60, "it stays behind"
        if embedded <= 12 or embedded % 2 == 0:
            upsert()
        return encode(facts)

    def pause(seconds: float) -> None:
        for _ in range(int(seconds / 0.02)):
            upsert()

    def commit(*arguments: Any, **options: Any) -> Manifest:
        return commit_change(*arguments, **({"sleep": pause} | options))

    monkeypatch.setattr("memory_store.reembed.commit_change", commit)
    opened: list[Part] = []

    def noting(storage: Storage, part: Part, *schema: pa.Schema) -> pa.Table:
        opened.append(part)
        return open_part(storage, part, *schema)

    monkeypatch.setattr("memory_store.reembed.open_part", noting)
    assert reembed(thirty, encode_in_a_while, fingerprint="mod").encoder == "mod"
    assert len(opened) == len(set(opened)), "each try embeds what is new, and opens nothing again"


def test_the_same_encoder_may_store_its_vectors_in_another_dtype(thirty: Storage) -> None:
    with open_memory(thirty.url, shards=2) as memory:
        memory.reindex(encode, fingerprint="mod")
        assert memory.reindex(encode, fingerprint="mod", dtype="bfloat16") == 3
        assert (memory.manifest.dtype, memory.manifest.encoder) == ("bfloat16", "mod")
        check(memory, list(range(30)))
        assert memory.reindex(encode, fingerprint="mod", dtype="bfloat16") == 3, "they are there already"
        with pytest.raises(ConfigError, match="expected encode with dtype='float32', found none"):
            memory.reindex(dtype="float32")


def test_searches_never_stop_and_never_mix_while_shards_are_replaced(thirty: Storage) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []
    with open_memory(thirty.url, shards=2) as memory:
        expected = memory.search(np.eye(4, dtype=np.float32), 5)

        def searches() -> None:
            try:
                while not stop.is_set():
                    found = memory.search(np.eye(4, dtype=np.float32), 5)
                    np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
            except BaseException as error:  # noqa: BLE001 - whatever it was, the test must hear of it
                failures.append(error)

        threads = [threading.Thread(target=searches) for _ in range(2)]
        for thread in threads:
            thread.start()
        for shards in (1, 3, 2, 1):
            memory.reindex(shards=shards)
            assert len(memory.stats().shards) == shards
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_an_index_that_finds_too_little_never_serves(thirty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.engine.recall_of", lambda *_: 0.25)
    with open_memory(thirty.url, shards=2) as memory:
        with pytest.raises(
            ReindexFailed, match=r"while verifying: expected a recall@10 of at least 0\.9 .* found 0\.250"
        ):
            memory.reindex(shards=3, least_recall=0.9)
        assert len(memory.stats().shards) == 2
        assert memory.search(np.ones((1, 4)), 1).generation == 1
    with pytest.raises(ReindexFailed, match=r"found 0\.250"):
        try_index(thirty.url, index="exact", shards=1, least_recall=0.5)


def test_an_encoder_that_fails_leaves_everything_as_it_was(thirty: Storage) -> None:
    with open_memory(thirty.url) as memory:
        with pytest.raises(ReindexFailed, match=r"while building: expected one vector for each of 10 facts"):
            memory.reindex(lambda facts: np.ones((3, 2), np.float32))
        with pytest.raises(ReindexFailed, match=r"expected finite float32 values, found nan"):
            memory.reindex(lambda facts: np.full((len(facts), 2), np.nan, np.float32))
        with pytest.raises(ZeroDivisionError):
            memory.reindex(lambda facts: 1 / 0)
        assert (memory.generation, memory.dim) == (1, 4)
        with pytest.raises(ConfigError, match="shards >= 1"):
            memory.reindex(shards=0)
        assert memory.reindex(encode) == 2, "nothing is left that would refuse the next one"
    assert str(read_manifest(thirty).encoder).startswith("unnamed-")


def test_a_second_re_index_is_refused_by_name_and_a_dead_one_is_gone_on_with(
    thirty: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """No handler sees it to good effect."""

    def dies_at_the_third_part(facts: pa.Table) -> np.ndarray:
        if 20 in facts["fact_id"].to_pylist():
            with pytest.raises(ReindexRunning, match=rf"with mod by process {os.getpid()} on"):
                reembed(thirty, encode, fingerprint="another")
            raise Killed
        return encode(facts)

    with pytest.raises(Killed):
        reembed(thirty, dies_at_the_third_part, fingerprint="mod")
    assert read_manifest(thirty).generation == 1
    upsert_facts(
        thirty, pa.table({"fact_id": [5]}), np.ones((1, 4), np.float32), locate=partial(locate_on_disk, thirty)
    )
    delete_facts(thirty, [7], locate=partial(locate_on_disk, thirty))
    lock = json.loads(thirty.read_bytes("staging/reindex.json"))
    thirty.write_atomic("staging/reindex.json", json.dumps(lock | {"pid": 2**22 + 1}).encode())  # nobody's number
    embedded: list[list[int]] = []

    def noting(facts: pa.Table) -> np.ndarray:
        embedded.append(facts["fact_id"].to_pylist())
        return encode(facts)

    assert reembed(thirty, noting, fingerprint="mod").generation == 4
    assert embedded == [list(range(20, 30)), [5]], "what the dead one had embedded is used"
    with open_memory(thirty.url) as memory:
        check(memory, [n for n in range(30) if n != 7])
    assert thirty.list("staging") == []


def test_two_in_one_process_are_refused_by_name(thirty: Storage) -> None:
    with open_memory(thirty.url) as memory:

        def again(facts: pa.Table) -> np.ndarray:
            with pytest.raises(ReindexRunning, match="under way in this process"):
                memory.reindex(shards=2)
            return encode(facts)

        memory.reindex(again)


def test_a_trial_reports_the_recall_of_an_index(thirty: Storage) -> None:
    trial = try_index(thirty.url, index="exact", shards=2)
    assert (trial.recall, trial.generation, trial.index, trial.shards) == (1.0, 1, "exact", 2)


def test_invalid_vectors_are_named(thirty: Storage) -> None:
    with pytest.raises(InvalidVectors, match="found shape"):
        reembed(thirty, lambda facts: np.ones(len(facts)))
    assert memory_store.memory.read_manifest(thirty).generation == 1
