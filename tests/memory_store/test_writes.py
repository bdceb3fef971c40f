"""Writers that race are serialised, nothing is lost, and only what changed is written or built."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import memory_store.index_files
import memory_store.snapshot
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.compaction import compact
from memory_store.errors import CommitUnknown, CorruptFile, DuplicateFact, GenerationConflict, NoVectors, UnknownFact
from memory_store.manifest import (
    Manifest,
    ParentGeneration,
    ReplaceFacts,
    ReplaceVectors,
    apply_change,
    commit,
    read_manifest,
)
from memory_store.mips.base import MipsIndex, ShardVectors
from memory_store.parts import TOMBSTONES_SCHEMA, dead_rows, scan_facts, scan_vectors, vectors_table, write_part
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writes import Located, delete_facts, locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]
FactsOf = Callable[..., pa.Table]
VectorsFor = Callable[..., np.ndarray]


@pytest.fixture
def nine(storage: Storage, write_memory: WriteMemory) -> Storage:
    """Facts 0 to 8 in parts of three."""
    return write_memory(storage, range(9))


def upsert(storage: Storage, ids: list[int], value: float = 1.0) -> Manifest:
    facts = pa.table({"fact_id": pa.array(ids, pa.int64())})
    vectors = np.full((len(ids), 4), value, np.float32)
    return upsert_facts(storage, facts, vectors, locate=partial(locate_on_disk, storage))


def delete(storage: Storage, ids: list[int]) -> Manifest:
    return delete_facts(storage, ids, locate=partial(locate_on_disk, storage))


def contents(storage: Storage, generation: int | None = None) -> dict[int, float]:
    """The first value of each fact's vector, by id."""
    manifest = read_manifest(storage, generation)
    tables = zip(scan_facts(storage, manifest, ["fact_id"]), scan_vectors(storage, manifest), strict=True)
    found = {}
    for facts, vectors in tables:
        assert facts["fact_id"].to_pylist() == vectors["fact_id"].to_pylist()
        found |= {row["fact_id"]: row["vector"][0] for row in vectors.to_pylist()}
    assert len(found) == manifest.fact_count
    return found


def test_the_history_says_what_was_done_when_and_by_whom(nine: Storage) -> None:
    upsert(nine, [2, 20])
    delete(nine, [0])
    made = [report.manifest for report in inspect_memory(nine).generations]
    assert [manifest.operation for manifest in made] == ["append", "upsert", "delete"]
    assert [manifest.note for manifest in made[1:]] == ["upsert of 2 facts", "delete of 1 facts"]
    assert all("@" in manifest.author and manifest.created_at for manifest in made)
    assert [manifest.fact_count for manifest in made] == [9, 10, 9]
    assert verify_memory(nine).problems == ()


def test_parts_that_were_there_are_not_written_again(nine: Storage) -> None:
    before = read_manifest(nine)
    after = upsert(nine, [2, 20])
    assert after.facts[:3] == before.facts
    assert after.vectors[:3] == before.vectors
    assert (after.delta_parts, len(after.facts), sum(part.rows for part in after.tombstones)) == (1, 4, 1)


def test_a_writer_that_was_overtaken_writes_after_the_other_and_loses_nothing(nine: Storage) -> None:
    pauses: list[float] = []
    others = iter([[2, 30], [2, 31], None])

    def locate_while_others_commit(manifest: Manifest, ids_C: np.ndarray) -> Located:
        places = locate_on_disk(nine, manifest, ids_C)
        other = next(others)
        if other is not None:
            upsert(nine, other, 5.0)
        return places

    new = upsert_facts(
        nine,
        pa.table({"fact_id": pa.array([2, 20], pa.int64())}),
        np.full((2, 4), 7.0, np.float32),
        locate=locate_while_others_commit,
        sleep=pauses.append,
    )
    assert (new.generation, len(pauses)) == (4, 2)
    found = contents(nine)
    assert (found[2], found[20], found[30], found[31], len(found)) == (7.0, 7.0, 5.0, 5.0, 12)
    assert verify_memory(nine).problems == ()
    assert inspect_memory(nine).unnamed_files == 0, "tombstones of attempts that failed are tidied up"


@pytest.mark.parametrize("compacts", [False, True])
def test_a_write_that_others_build_on_and_sweep_before_its_writer_looks_again_is_there_and_once(
    nine: Storage, monkeypatch: pytest.MonkeyPatch, compacts: bool
) -> None:
    create = Storage.create_exclusive

    def overtaken(self: Storage, path: str, data: bytes) -> None:
        create(self, path, data)
        monkeypatch.setattr(Storage, "create_exclusive", create)
        upsert(self, [7])
        upsert(self, [8])
        if compacts:
            compact(self)
        sweep(self)

    monkeypatch.setattr(Storage, "create_exclusive", overtaken)
    with pytest.raises(CommitUnknown) if compacts else nullcontext():
        upsert(nine, [2, 50])
    assert verify_memory(nine).problems == ()
    assert sorted(contents(nine)) == [*range(9), 50]


def test_what_another_writer_deletes_meanwhile_is_deleted(nine: Storage) -> None:
    others = iter([[3], None])

    def locate(manifest: Manifest, ids_C: np.ndarray) -> Located:
        places = locate_on_disk(nine, manifest, ids_C)
        if (other := next(others)) is not None:
            delete(nine, other)
        return places

    assert delete_facts(nine, [3, 4], locate=locate, sleep=lambda _: None).generation == 3
    assert contents(nine).keys() == {0, 1, 2, 5, 6, 7, 8}
    with pytest.raises(UnknownFact, match="generation 3"):
        delete(nine, [4])


def test_vectors_of_a_superseded_encoder_are_refused(nine: Storage) -> None:
    made_for = read_manifest(nine)
    tables = enumerate(scan_vectors(nine, made_for))
    parts = tuple(write_part(nine, f"vectors/again-{number}.arrow", table) for number, table in tables)
    change = ReplaceVectors(vectors=parts, dim=4, dtype="float32", encoder="newer", max_norm=made_for.max_norm)
    commit(nine, apply_change(made_for, change, commit_id="again"), requires=ParentGeneration(1))
    with pytest.raises(GenerationConflict, match=r"expected vectors made by newer.*made by None; refresh"):
        upsert_facts(
            nine,
            pa.table({"fact_id": [1]}),
            np.ones((1, 4), np.float32),
            locate=partial(locate_on_disk, nine),
            made_for=made_for,
        )
    assert read_manifest(nine).generation == 2
    assert inspect_memory(nine).unnamed_files == 0


def test_facts_without_vectors_can_be_deleted_but_not_upserted(storage: Storage, facts_of: FactsOf) -> None:
    parts = (write_part(storage, "facts/a.arrow", memory_store.writes.as_facts(facts_of(range(4)))),)
    change = ReplaceFacts(facts=parts, grouping="relation", features=None)
    commit(storage, apply_change(None, change, commit_id="facts"), requires=ParentGeneration(None))
    with pytest.raises(NoVectors, match="hmn embed"):
        upsert(storage, [9])
    delete(storage, [2])
    assert [table["fact_id"].to_pylist() for table in scan_facts(storage, read_manifest(storage))] == [[0, 1, 3]]


def test_new_vectors_keep_deleted_facts_deleted_and_leave_nothing_fresh(nine: Storage) -> None:
    upsert(nine, [2, 20])
    before = delete(nine, [0])
    parts = []
    for number, part in enumerate(before.vectors):
        ids_N = memory_store.writes.fact_ids_of(memory_store.writes.open_part(nine, part))
        parts.append(
            write_part(nine, f"vectors/b-{number}.arrow", vectors_table(ids_N, np.ones((len(ids_N), 4), "f4")))
        )
    change = ReplaceVectors(vectors=tuple(parts), dim=4, dtype="float32", encoder="b", max_norm=2.0)
    new = commit(nine, apply_change(before, change, commit_id="b"), requires=ParentGeneration(before.generation))
    assert (new.delta_parts, new.fact_count) == (0, 9)
    assert contents(nine).keys() == {1, 2, 3, 4, 5, 6, 7, 8, 20}
    with open_memory(nine.url, shards=2) as memory:
        answer = memory.search(np.ones((1, 4)), 12).fact_ids_BK[0].tolist()
        assert answer == [1, 2, 3, 4, 5, 6, 7, 8, 20, -1, -1, -1]
        assert memory.fetch([2]).num_rows == 1
    assert verify_memory(nine).problems == ()


def test_a_deleted_fact_may_be_appended_again_and_a_live_one_may_not(
    nine: Storage, facts_of: FactsOf, vectors_for: VectorsFor
) -> None:
    delete(nine, [4])
    upsert(nine, [5], 3.0)
    with MemoryWriter(nine, dim=4) as writer:
        writer.append(facts_of([4]), vectors_for([4]) + 5)
        with pytest.raises(DuplicateFact, match="fact id 5"):
            writer.append(facts_of([5]), vectors_for([5]))
    manifest = read_manifest(nine)
    assert manifest.delta_parts == 1, "what is appended goes into the main index"
    assert contents(nine)[4] == pytest.approx(np.sin(4.0) + 5)
    for shards in (1, 2, 5):
        with open_memory(nine.url, shards=shards) as memory:
            assert sorted(memory.search(np.ones((1, 4)), 9).fact_ids_BK[0]) == list(range(9))
            assert memory.vectors([4])[0, 0] == pytest.approx(np.sin(4.0) + 5)
            memory.delete([4])
            assert -1 in memory.search(np.zeros((1, 4)), 9).fact_ids_BK
            memory.upsert(facts_of([4]), vectors_for([4]) + 5)


def test_the_main_index_is_built_once_however_many_writes_follow(
    nine: Storage, facts_of: FactsOf, vectors_for: VectorsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    beside: list[int] = []
    of_main, of_runs = memory_store.index_files.build_index, memory_store.snapshot.index_exactly

    def counting(name: str, vectors: ShardVectors, threads: int) -> MipsIndex:
        built.append(vectors.num_rows)
        return of_main(name, vectors, threads)

    def counting_beside(vectors: ShardVectors, threads: int) -> MipsIndex:
        beside.append(vectors.num_rows)
        return of_runs(vectors, threads)

    monkeypatch.setattr(memory_store.index_files, "build_index", counting)
    monkeypatch.setattr(memory_store.snapshot, "index_exactly", counting_beside)
    with open_memory(nine.url) as memory:
        for number in range(5):
            memory.upsert(facts_of([2, 100 + number]), vectors_for([2, 100 + number]))
            memory.delete([number + 3])
    assert built == [9]
    assert max(beside) == 6


def test_sweep_keeps_the_tombstones_that_are_in_force_and_deletes_the_others(nine: Storage) -> None:
    upsert(nine, [2])
    delete(nine, [3])
    assert len(nine.list("tombstones")) == 2
    sweep(nine)
    assert len(nine.list("tombstones")) == 2
    assert verify_memory(nine).problems == ()


@pytest.mark.parametrize(
    ("part", "rows", "says"),
    [
        (0, [1, 1], "expected every row of"),
        (0, [1, 7], "expected the rows and ids of"),
        (1, [1, 2], "expected the rows and ids of"),
    ],
)
def test_tombstones_that_cannot_be_are_reported(nine: Storage, part: int, rows: list[int], says: str) -> None:
    manifest = delete(nine, [1, 2])
    path = manifest.facts[part].path
    named = pa.array([path] * 2, pa.string()).dictionary_encode()
    table = pa.table([pa.array([1, rows[1] if rows[1] != 7 else 2]), named, pa.array(rows)], schema=TOMBSTONES_SCHEMA)
    forged = write_part(nine, "tombstones/forged.arrow", table)
    bad = dataclasses.replace(manifest, tombstones=(forged,), generation=3, parent=2, parent_commit=manifest.commit_id)
    commit(nine, bad, requires=ParentGeneration(2))
    assert any(says in problem for problem in verify_memory(nine).problems)
    if 7 in rows:
        with pytest.raises(CorruptFile, match="expected rows of"):
            dead_rows(nine, bad.facts, bad.tombstones)


def test_memories_on_a_remote_storage_are_written_too(nine: Storage, tmp_path: Path, facts_of: FactsOf) -> None:
    memory: Memory
    with open_memory(nine.url, shards=2) as memory:
        memory.upsert(facts_of([50]), np.full((1, 4), 9, np.float32))
        assert memory.search(np.ones((1, 4)), 1).fact_ids_BK.tolist() == [[50]]
