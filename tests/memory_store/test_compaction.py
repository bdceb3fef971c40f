"""A compaction keeps every fact, rewrites what changed and no more, and may be killed or overtaken at any instant."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memory_store.compaction
from memory_store import MemoryWriter, open_memory
from memory_store.compaction import Compaction, CompactionPolicy, compact, plan_compaction
from memory_store.errors import ConfigError, GenerationConflict
from memory_store.manifest import Manifest, Part, read_manifest
from memory_store.parts import scan_facts, scan_vectors
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]
LATER_S = 1e12


def upsert(storage: Storage, ids: list[int], value: float) -> Manifest:
    facts = pa.table({"fact_id": pa.array(ids, pa.int64())})
    vectors = np.full((len(ids), 4), value, np.float32)
    return upsert_facts(storage, facts, vectors, locate=partial(locate_on_disk, storage))


def delete(storage: Storage, ids: list[int]) -> Manifest:
    return delete_facts(storage, ids, locate=partial(locate_on_disk, storage))


def contents(storage: Storage, generation: int | None = None) -> Mapping[int, float]:
    """The first value of each fact's vector, by id."""
    manifest = read_manifest(storage, generation)
    tables = zip(scan_facts(storage, manifest, ["fact_id"]), scan_vectors(storage, manifest), strict=True)
    found: dict[int, float] = {}
    for facts, vectors in tables:
        assert facts["fact_id"].to_pylist() == vectors["fact_id"].to_pylist()
        found |= {row["fact_id"]: row["vector"][0] for row in vectors.to_pylist()}
    assert len(found) == manifest.fact_count
    return found


@pytest.fixture
def changed(storage: Storage, write_memory: WriteMemory) -> Storage:
    """Facts 0 to 29 in parts of ten, of which some were overwritten, deleted and added since. Generation 4."""
    write_memory(storage, range(30), part_rows=10)
    upsert(storage, [0, 1, 2, 40], 5.0)
    delete(storage, [3, 4, 12, 40])
    upsert(storage, [41, 4], 6.0)
    return storage


def test_a_compaction_keeps_every_fact_and_reuses_the_parts_that_hardly_changed(changed: Storage) -> None:
    before, facts = read_manifest(changed), contents(changed)
    summary = compact(changed, part_rows=10)
    after = read_manifest(changed)
    assert contents(changed) == facts
    assert (after.operation, after.delta_parts, summary.generation) == ("compact", 0, 5)
    assert after.facts[:2] == before.facts[1:3], "one dead row in ten is not worth a copy"
    assert [part.rows for part in after.tombstones] == [1]
    assert (summary.rows, summary.dropped_rows) == (10, 6)
    assert verify_memory(changed).problems == ()
    assert contents(changed, 4) == facts, "the generation before is as it was"
    sweep(changed, now_s=LATER_S)
    assert contents(changed) == facts
    assert changed.list("staging") == []


def test_a_share_of_nothing_drops_every_dead_row(changed: Storage) -> None:
    facts = contents(changed)
    compact(changed, policy=CompactionPolicy(most_dead_share=0.0))
    after = read_manifest(changed)
    assert contents(changed) == facts
    assert (after.tombstones, sum(part.rows for part in after.facts)) == ((), len(facts))
    assert not compact(changed).committed, "there is nothing left to do"


def test_writes_during_a_compaction_are_carried_over(changed: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = memory_store.compaction.commit_change

    def overtaken(storage: Storage, change_for: Callable[..., object], **options: object) -> Manifest:
        upsert(storage, [1, 50], 9.0)  # 1 is being rewritten
        delete(storage, [0, 20, 41])  # in the rewritten part, in one that is kept, in a fresh one
        return real(storage, change_for, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_store.compaction, "commit_change", overtaken)
    expected = {**contents(changed), 1: 9.0, 50: 9.0}
    for fact_id in (0, 20, 41):
        del expected[fact_id]
    compact(changed, part_rows=7)
    after = read_manifest(changed)
    assert contents(changed) == expected
    assert (after.generation, after.delta_parts, after.parent) == (7, 1, 6)
    assert verify_memory(changed).problems == ()
    with open_memory(changed.url, shards=3) as memory:
        answer = memory.search(np.ones((1, 4), np.float32), 60)
        assert set(answer.fact_ids_BK[0].tolist()) == {*expected, -1}
        assert memory.vectors([1, 2]).tolist() == [[9.0] * 4, [5.0] * 4]


def test_a_compaction_whose_parts_were_replaced_gives_up_and_changes_nothing(
    changed: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory_store.compaction.commit_change

    def overtaken(storage: Storage, change_for: Callable[..., object], **options: object) -> Manifest:
        monkeypatch.setattr(memory_store.compaction, "commit_change", real)
        compact(storage, policy=CompactionPolicy(most_dead_share=0.0))
        return real(storage, change_for, **options)  # type: ignore[arg-type]

    facts = contents(changed)
    monkeypatch.setattr(memory_store.compaction, "commit_change", overtaken)
    with pytest.raises(GenerationConflict, match="another writer replaced them; run again"):
        compact(changed, part_rows=3)
    assert read_manifest(changed).generation == 5
    assert contents(changed) == facts
    assert not compact(changed).committed
    assert changed.list("staging") == [], "what the one that gave up had staged is removed"


@pytest.mark.parametrize("killed_at", range(1, 13))
def test_a_compaction_killed_at_any_file_goes_on_where_it_was_even_after_other_writes(
    changed: Storage, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    class Killed(BaseException):
        """No handler sees it to good effect."""

    left = killed_at

    def dying(self: Storage, path: str, write: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        real(self, path, write)  # type: ignore[arg-type]

    facts = contents(changed)
    real = Storage.write_atomic
    monkeypatch.setattr(Storage, "write_atomic", dying)
    with pytest.raises(Killed):
        compact(changed, part_rows=4)
    monkeypatch.setattr(Storage, "write_atomic", real)
    assert contents(changed) == facts
    upsert(changed, [2], 8.0)
    summary = compact(changed, part_rows=4)
    assert contents(changed) == {**facts, 2: 8.0}
    assert summary.committed
    assert (summary.resumed_parts > 0) == (killed_at > 5), "a lease, a plan, two parts of one output, its receipt"
    sweep(changed, now_s=LATER_S)
    assert inspect_memory(changed).unnamed_files == 0
    assert verify_memory(changed).problems == ()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", None])
@pytest.mark.parametrize("damaged", ["plan", "receipts", "all"])
def test_what_a_killed_compaction_left_and_nobody_can_read_is_dropped_and_made_anew(
    changed: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damaged: str,
    text: bytes | None,
) -> None:
    """None: the plan of another compaction under this one's name, receipts of other parts."""
    facts, real = contents(changed), memory_store.compaction.commit_change
    monkeypatch.setattr(memory_store.compaction, "commit_change", None)
    with pytest.raises(TypeError):
        compact(changed, part_rows=4)
    monkeypatch.setattr(memory_store.compaction, "commit_change", real)
    staged = changed.list("staging")
    plans = [path for path in staged if path.endswith(".plan.json")]
    assert (len(plans), len(staged)) == (1, 4)
    changed.write_atomic("staging/compact.plan.json", b"of somebody else")
    for path in {"plan": plans, "receipts": [path for path in staged if path not in plans], "all": staged}[damaged]:
        other = changed.read_bytes(path).replace(b'"path": "facts/', b'"path": "facts/../')
        changed.write_atomic(path, other if text is None else text)
    summary = compact(changed, part_rows=4)
    assert (summary.committed, summary.resumed_parts) == (True, 0)
    assert contents(changed) == facts
    named = staged if damaged == "receipts" else plans
    assert any(changed.where(named[0]) in line and "which cannot be read" in line for line in caplog.messages)
    assert changed.list("staging") == ["staging/compact.plan.json"]
    assert verify_memory(changed).problems == ()


@settings(max_examples=200)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    fresh=st.integers(0, 8),
    part_rows=st.integers(1, 30),
)
def test_a_plan_takes_every_live_row_of_its_parts_once_and_in_order(
    rows: list[int], seed: int, fresh: int, part_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = tuple(Part(path=f"facts/{n}.arrow", rows=r, bytes=1, checksum="x") for n, r in enumerate(rows))
    dead = {part.path: int(rng.integers(0, part.rows + 1)) for part in parts}
    manifest = Manifest(
        generation=1,
        parent=None,
        parent_commit=None,
        commit_id="c",
        created_at="",
        dim=0,
        dtype=None,
        encoder=None,
        max_norm=0.0,
        fact_count=sum(rows) - sum(dead.values()),
        tombstones=(),
        features=None,
        grouping=None,
        facts=parts,
        vectors=(),
        note="",
        delta_parts=min(fresh, len(parts)),
    )
    plan: Compaction | None = plan_compaction(manifest, dead, most_dead_share=0.3, part_rows=part_rows)
    if plan is None:
        return
    taken = [(source, row) for output in plan.outputs for source, a, b in output.sources for row in range(a, b)]
    live = [part.rows - dead[part.path] for part in plan.facts]
    assert taken == [(source, row) for source, count in enumerate(live) for row in range(count)]
    sizes = [sum(b - a for _, a, b in output.sources) for output in plan.outputs]
    assert all(size == part_rows for size in sizes[:-1])
    assert set(parts[len(parts) - manifest.delta_parts :]) <= set(plan.facts)


def test_small_changes_rewrite_small_parts_only(storage: Storage, write_memory: WriteMemory) -> None:
    """Rows are copied a logarithm of times: the large part is never touched by many small upserts."""
    write_memory(storage, range(1000), part_rows=1000)
    large = read_manifest(storage).facts[0]
    copied = 0
    for number in range(32):
        upsert(storage, [10_000 + number], 1.0)
        copied += compact(storage).rows
    after = read_manifest(storage)
    assert after.facts[0] == large
    assert len(after.facts) <= 7
    assert copied <= 32 * 6


def test_facts_that_are_not_embedded_are_compacted_too(changed: Storage) -> None:
    from memory_store.manifest import ParentGeneration, ReplaceFacts, apply_change, commit

    now = read_manifest(changed)
    change = ReplaceFacts(facts=now.facts[1:3], grouping=None, features=None)
    commit(changed, apply_change(now, change, commit_id="bare"), requires=ParentGeneration(4))
    delete(changed, list(range(10, 15)))
    assert compact(changed).dropped_rows == 5
    assert read_manifest(changed).fact_count == 15
    assert verify_memory(changed).problems == ()


def test_an_open_memory_compacts_in_the_background_when_its_policy_says_so(changed: Storage) -> None:
    policy = CompactionPolicy(most_delta_parts=3)
    with open_memory(changed.url, shards=2, compaction=policy) as memory:
        memory.upsert(pa.table({"fact_id": [60]}), np.ones((1, 4), np.float32))
        assert memory._background._thread is None, "three fresh parts are allowed"
        memory.upsert(pa.table({"fact_id": [61]}), np.ones((1, 4), np.float32))
    assert read_manifest(changed).operation == "compact"
    assert contents(changed).keys() >= {60, 61}


def test_an_open_memory_compacts_in_the_background_by_default_once_that_pays(tmp_path: Path) -> None:
    url = str(tmp_path / "kb")
    with MemoryWriter(url, dim=2) as writer:
        writer.append(pa.table({"fact_id": range(100)}), np.ones((100, 2), np.float32))
    few, many = np.arange(100, 200), np.arange(200, 9000)
    with open_memory(url) as memory:
        memory.upsert(pa.table({"fact_id": few}), np.ones((len(few), 2), np.float32))
        assert memory._background._thread is None, "a hundred rows are no burden, whatever share of the memory they are"
        memory.upsert(pa.table({"fact_id": many}), np.ones((len(many), 2), np.float32))
    assert [read_manifest(Storage(url), number).operation for number in (2, 3, 4)] == ["upsert", "upsert", "compact"]
    with open_memory(url, compaction=None) as memory:
        memory.upsert(pa.table({"fact_id": many}), np.ones((len(many), 2), np.float32))
        assert memory._background._thread is None


def test_a_compaction_beside_an_appending_writer_is_no_conflict(changed: Storage) -> None:
    with MemoryWriter(changed, dim=4) as writer:
        writer.append(pa.table({"fact_id": [70]}), np.ones((1, 4), np.float32))
        compacted = compact(changed)
    assert compacted.committed
    assert writer.manifest is not None
    assert writer.manifest.generation == compacted.generation + 1
    again = MemoryWriter(changed, dim=4)
    again.__enter__()
    again.append(pa.table({"fact_id": [71]}), np.ones((1, 4), np.float32))
    delete(changed, [70])
    compact(changed)
    with pytest.raises(GenerationConflict):
        again.__exit__(None, None, None)
    assert verify_memory(changed).problems == ()


def test_many_deletes_make_a_compaction_due_which_merges_their_tombstones(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "kb"))
    with MemoryWriter(storage, dim=2) as writer:
        writer.append(pa.table({"fact_id": range(100)}), np.ones((100, 2), np.float32))
    policy = CompactionPolicy(most_delta_parts=3)
    for fact_id in range(5):
        delete(storage, [fact_id])
    before = read_manifest(storage)
    assert policy.is_due(before)
    assert compact(storage, policy=policy, only_if_due=True).committed
    after = read_manifest(storage)
    assert (len(before.tombstones), len(after.tombstones)) == (5, 1)
    assert (after.facts, after.vectors, after.fact_count) == (before.facts, before.vectors, 95)
    assert contents(storage).keys() == set(range(5, 100))
    assert not compact(storage, policy=policy).committed, "one part of tombstones is none too many"
    assert verify_memory(storage).problems == ()


def test_a_memory_that_is_closed_right_after_a_write_is_compacted_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "kb")
    with MemoryWriter(url, dim=2) as writer:
        writer.append(pa.table({"fact_id": range(100)}), np.ones((100, 2), np.float32))
    for first in range(100, 500, 100):
        with open_memory(url, compaction=CompactionPolicy(least_rows=1)) as memory:
            memory.upsert(pa.table({"fact_id": range(first, first + 100)}), np.ones((100, 2), np.float32))
        assert read_manifest(Storage(url)).operation == "compact"
    assert caplog.messages == []


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1])
def test_a_program_that_ends_without_closing_ends_well(tmp_path: Path, seconds: float) -> None:
    program = f"""
import time, numpy as np, pyarrow as pa
from memory_store import MemoryWriter, open_memory
with MemoryWriter({str(tmp_path / "kb")!r}, dim=16) as writer:
    writer.append(pa.table({{"fact_id": range(100)}}), np.ones((100, 16), np.float32))
memory = open_memory({str(tmp_path / "kb")!r})
memory.upsert(pa.table({{"fact_id": range(100, 60_000)}}), np.ones((59_900, 16), np.float32))
time.sleep({seconds})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert verify_memory(Storage(str(tmp_path / "kb"))).problems == ()


def test_a_memory_that_is_forgotten_frees_its_rows_at_once(changed: Storage) -> None:
    gc.collect()
    gc.disable()
    try:
        memory = open_memory(changed.url)
        memory.search(np.eye(4, dtype=np.float32), 3)
        memory.close()
        gone = weakref.ref(memory)
        del memory
        assert gone() is None
    finally:
        gc.enable()


def test_a_compacted_memory_answers_as_before_and_then_from_its_main_index(changed: Storage) -> None:
    with open_memory(changed.url, shards=2) as memory:
        before = memory.search(np.eye(4, dtype=np.float32), 40)
        assert memory.compact() == memory.generation == 5
        after = memory.search(np.eye(4, dtype=np.float32), 40)
        np.testing.assert_array_equal(before.fact_ids_BK, after.fact_ids_BK)
        np.testing.assert_array_equal(before.scores_BK, after.scores_BK)
        assert sum(line.fresh_rows for line in memory.stats().shards) == 0
        assert memory.compact() == 5


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="most_delta_parts >= 1, found 0"):
        CompactionPolicy(most_delta_parts=0)
    with pytest.raises(ConfigError, match="least_rows >= 1, found -1"):
        CompactionPolicy(least_rows=-1)
    with pytest.raises(ConfigError, match="most_dead_share from 0 to 1, found 2"):
        CompactionPolicy(most_dead_share=2)
