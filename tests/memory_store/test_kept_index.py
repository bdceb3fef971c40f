"""What is indexed serves on after small changes of the parts under it, the main index and the runs of what was written
since; every answer stays right."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import Memory, MemoryWriter, open_memory
from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import UnknownFact
from memory_store.history import rollback
from memory_store.keeping import MOST_BESIDE, MOST_GONE, Piece, gaps, pays, runs
from memory_store.manifest import Part, generations, read_manifest
from memory_store.mips.base import MipsIndex
from memory_store.mips.oracle import exhaustive_search
from memory_store.shard import Shard, ShardConfig
from memory_store.storage import Storage
from memory_store.topk import NO_FACT
from memory_store.upkeep import sweep, verify_memory
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

# N rows, D dimension, B queries, K slots

DIM = 8
ROWS = 1200
LATER_S = 1e12
LEAST_RECALL = {"ivf": 0.9, "hnsw": 0.9, "pca_tree": 0.9, "wta_hash": 0.6, "split": 0.9, "faiss:IVF16,Flat": 0.3}
"""Of 10, on such vectors, with default options; each index was seen to find at least this when built anew."""

some_pieces = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 8)), max_size=6)


def piece(part: int, start: int, rows: int) -> Piece:
    of = Part(path=f"facts/{part}.arrow", rows=20, bytes=1, checksum=f"xxh3-128:{part}")
    return Piece(facts=of, vectors=None, start=start, stop=start + rows)


@given(wanted=some_pieces, held=some_pieces)
def test_gaps_are_the_rows_that_are_not_held_each_once_and_in_order(wanted: list, held: list) -> None:
    found = gaps([piece(*one) for one in wanted], [piece(*one) for one in held])
    have = {(part, row) for part, start, rows in held for row in range(start, start + rows)}
    expected = [
        (number, row)
        for number, (part, start, rows) in enumerate(wanted)
        for row in range(start, start + rows)
        if (part, row) not in have
    ]
    assert [(number, row) for number, start, stop in found for row in range(start, stop)] == expected


def test_another_part_of_the_same_name_and_other_vectors_of_the_same_facts_are_other_rows() -> None:
    one = piece(0, 0, 10)
    other_bytes = Part(path=one.facts.path, rows=20, bytes=1, checksum="xxh3-128:9")
    for other in (
        Piece(facts=other_bytes, vectors=None, start=0, stop=10),
        Piece(facts=one.facts, vectors=other_bytes, start=0, stop=10),
    ):
        assert gaps([one], [other]) == [(0, 0, 10)]


@given(rows=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 50_000)), max_size=40))
def test_runs_hold_everything_in_order_and_each_is_longer_than_the_next_three(rows: list[int]) -> None:
    found = runs(rows)
    assert [number for first, end in found for number in range(first, end)] == list(range(len(rows)))
    held = [sum(rows[first:end]) for first, end in found]
    for before, after in pairwise(held):
        assert before + after > 8192
    for first, *others in zip(held, held[1:], held[2:], held[3:], strict=False):
        assert first > sum(others)


def test_four_writes_alike_become_one_run() -> None:
    lengths = [10_000] * 20
    assert runs(lengths[:3]) == [(0, 1), (1, 2), (2, 3)]
    assert runs(lengths[:4]) == [(0, 4)]
    assert runs(lengths[:9]) == [(0, 4), (4, 8), (8, 9)]
    assert runs([9000, 9000, 2_000_000, 9000]) == [(0, 3), (3, 4)]  # they join what is indexed in any case


@given(writes=st.lists(st.integers(1, 3000), min_size=1, max_size=300))
def test_a_row_is_indexed_again_as_seldom_as_runs_double(writes: list[int]) -> None:
    held: list[int] = []
    indexed = 0
    for rows in writes:
        spans = runs([*held, rows])
        merged = [sum([*held, rows][first:end]) for first, end in spans]
        indexed += sum(new for new, (first, end) in zip(merged, spans, strict=True) if end > first + 1)
        indexed += rows if spans[-1] == (len(held), len(held) + 1) else 0
        held = merged
    total = sum(writes)
    doublings = np.log2(max(total / 8192, 1)) + 3
    small = sum(min(8192, sum(writes[: n + 1])) for n in range(len(writes)))  # short runs are indexed whole each time
    assert indexed <= doublings * total + small
    assert len(held) <= 1.2 * doublings + 1


def test_an_index_is_kept_up_to_a_share_of_rows_beside_it_and_of_rows_that_are_gone() -> None:
    beside, gone = int(MOST_BESIDE * 1000), int(MOST_GONE * 1000)
    assert pays(1000, beside=beside, gone=gone)
    assert not pays(1000, beside=beside + 1, gone=0)
    assert not pays(1000, beside=0, gone=gone + 1)


def facts(ids: object) -> pa.Table:
    return pa.table({"fact_id": pa.array(np.asarray(ids, np.int64)), "subject": [f"s{n}" for n in np.asarray(ids)]})


def index_of(memory: Memory, shard: int = 0) -> MipsIndex | None:
    """The main index object of a shard of a local memory."""
    held: Shard = memory._engines.now.backend.handles[shard]._shard  # type: ignore[attr-defined]
    return held._snapshot(memory.generation).main.index


def runs_of(memory: Memory, shard: int = 0) -> list[tuple[int, MipsIndex | None]]:
    """Rows and index object of each run of what was written since the last compaction."""
    held: Shard = memory._engines.now.backend.handles[shard]._shard  # type: ignore[attr-defined]
    return [(run.rows.num_rows, run.index) for run in held._snapshot(memory.generation).runs]


class Model:
    """What the memory must hold."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rows: dict[int, np.ndarray] = {}

    def draw(self, rows: int) -> np.ndarray:
        return self.rng.integers(-9, 10, (rows, DIM)).astype(np.float32)

    def put(self, ids: object, vectors_ND: np.ndarray) -> None:
        self.rows |= dict(zip(np.asarray(ids).tolist(), vectors_ND, strict=True))

    def check(self, memory: Memory, ks: tuple[int, ...] = (1, 10, 70)) -> float:
        """Live facts with their true scores, never fewer than k, all of them found by id; returns recall@10."""
        ids_N = np.array(sorted(self.rows), dtype=np.int64)
        vectors_ND = np.array([self.rows[n] for n in ids_N.tolist()], np.float32).reshape(len(ids_N), DIM)
        queries_BD = np.concatenate([self.rng.standard_normal((6, DIM)), np.zeros((1, DIM))]).astype(np.float32)
        recall = 1.0
        for k in (*ks, len(ids_N) + 5):
            answer = memory.search(queries_BD, k)
            expected = exhaustive_search(ids_N, vectors_ND, queries_BD, k)
            held_BK = answer.fact_ids_BK != NO_FACT
            assert held_BK.sum(axis=1).tolist() == [min(k, len(ids_N))] * len(queries_BD)
            rank_BK = np.searchsorted(ids_N, answer.fact_ids_BK).clip(max=len(ids_N) - 1)
            assert (ids_N[rank_BK] == answer.fact_ids_BK)[held_BK].all()
            scores_BK = np.einsum("bkd,bd->bk", vectors_ND[rank_BK].astype(np.float64), queries_BD)
            np.testing.assert_array_equal(answer.scores_BK[held_BK], scores_BK.astype(np.float32)[held_BK])
            for found_K, held_K in zip(answer.fact_ids_BK, held_BK, strict=True):
                assert len(np.unique(found_K[held_K])) == held_K.sum()
            if memory.is_exact:
                np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
            if k == 10:
                right = [
                    len(np.intersect1d(*pair)) for pair in zip(answer.fact_ids_BK, expected.fact_ids_BK, strict=True)
                ]
                recall = float(np.mean(right)) / k
        assert len(memory) == len(ids_N) == sum(line.rows for line in memory.stats().shards)
        np.testing.assert_array_equal(memory.vectors(ids_N), vectors_ND)
        fetched = memory.fetch(ids_N, ["fact_id", "subject"])
        assert fetched["fact_id"].to_pylist() == ids_N.tolist()
        assert fetched["subject"].to_pylist() == [f"s{n}" for n in ids_N]
        asked = np.concatenate([ids_N, ids_N[-1:] + 1])
        places = locate_on_disk(Storage(memory.url), memory.manifest, asked)
        located = memory._locate(memory.manifest, asked)
        np.testing.assert_array_equal(located.part_C, places.part_C)
        np.testing.assert_array_equal(located.row_C[:-1], places.row_C[:-1])
        return recall


@pytest.fixture
def start(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Memory, Model]]]:
    monkeypatch.setattr("memory_store.keeping._SHORT_RUN", 8)  # else all that is written here would be one run
    opened: list[Memory] = []

    def begin(index: str, shards: int, rows: int = ROWS, part_rows: int = 400, seed: int = 0) -> tuple[Memory, Model]:
        model = Model(np.random.default_rng(seed))
        ids, vectors_ND = np.arange(rows), model.draw(rows)
        with MemoryWriter(str(tmp_path / f"kb{len(opened)}"), dim=DIM, part_rows=part_rows) as writer:
            writer.append(facts(ids), vectors_ND)
        model.put(ids, vectors_ND)
        memory = open_memory(str(tmp_path / f"kb{len(opened)}"), shards, index=index)
        opened.append(memory)
        return memory, model

    yield begin
    for memory in opened:
        memory.close()


def change(memory: Memory, model: Model, upserted: object, deleted: object = ()) -> None:
    vectors_ND = model.draw(len(np.asarray(upserted)))
    memory.upsert(facts(upserted), vectors_ND)
    model.put(upserted, vectors_ND)
    if len(np.asarray(deleted)):
        memory.delete(deleted)
        for fact_id in np.asarray(deleted).tolist():
            del model.rows[fact_id]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("index", LEAST_RECALL)
def test_small_compactions_keep_the_index_and_a_large_one_builds_it_anew(start, index: str, shards: int) -> None:
    memory, model = start(index, shards)
    first = [index_of(memory, shard) for shard in range(shards)]
    written: set[int] = set()
    for step in range(3):
        ids = [*range(10 * step, 10 * step + 10), *range(ROWS + 5 * step, ROWS + 5 * step + 5)]
        change(memory, model, ids, [500 + step, ids[0]])
        written |= set(ids)
        memory.compact()
        sweep(memory.url, now_s=LATER_S)
        assert memory.manifest.delta_parts == 0
        assert [index_of(memory, shard) for shard in range(shards)] == first
        assert sum(line.fresh_rows for line in memory.stats().shards) == len(written & set(model.rows))
        assert model.check(memory) > LEAST_RECALL[index]
        change(memory, model, [0, 3 * ROWS], [3 * ROWS])  # upserts and deletes go on with the index too
        written.add(0)
        assert [index_of(memory, shard) for shard in range(shards)] == first
        assert model.check(memory) > LEAST_RECALL[index]
    change(memory, model, np.arange(ROWS, ROWS + ROWS // 5))
    memory.compact()
    assert not {id(index_of(memory, shard)) for shard in range(shards)} & {id(one) for one in first}
    assert sum(line.fresh_rows for line in memory.stats().shards) == 0
    sweep(memory.url, now_s=LATER_S)
    assert model.check(memory) > LEAST_RECALL[index]
    assert verify_memory(memory.url).problems == ()


def test_an_exact_index_over_few_rows_covers_all_of_them_after_a_compaction(start) -> None:
    memory, model = start("exact", 2)
    change(memory, model, range(5), [7])
    memory.compact()
    assert sum(line.fresh_rows for line in memory.stats().shards) == 0
    model.check(memory)


def test_a_long_exact_index_is_kept_and_what_was_merged_is_indexed_once(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.snapshot._SLOW_TO_BUILD", ROWS)
    memory, model = start("exact", 1)
    first = index_of(memory)
    change(memory, model, range(ROWS, ROWS + 40), [7])
    memory.compact()
    assert index_of(memory) is first
    ((_, merged),) = runs_of(memory)
    change(memory, model, range(ROWS + 40, ROWS + 60))
    memory.compact()
    assert index_of(memory) is first
    assert runs_of(memory)[0][1] is merged
    model.check(memory)
    change(memory, model, range(ROWS + 60, ROWS + 130))
    memory.compact()
    assert index_of(memory) is not first
    assert runs_of(memory) == []
    model.check(memory)


@pytest.mark.parametrize("index", ["ivf", "pca_tree"])
def test_rows_of_a_part_that_was_rewritten_and_swept_are_neither_found_nor_read(start, index: str) -> None:
    memory, model = start(index, 1, part_rows=100)
    first = index_of(memory)
    model.check(memory)
    path = memory.manifest.facts[2].path
    change(memory, model, [205], np.arange(206, 240))  # a third of the third part: it is rewritten
    memory.compact(CompactionPolicy(most_dead_share=0.2))
    sweep(memory.url, now_s=LATER_S)
    assert path not in Storage(memory.url).list("facts")
    assert index_of(memory) is first
    model.check(memory)
    change(memory, model, np.arange(200, 250))  # they come back, some live in the swept part once
    model.check(memory)
    with pytest.raises(UnknownFact):
        memory.fetch([5 * ROWS])


def test_many_deletes_build_the_index_anew_at_a_compaction_and_not_before(start) -> None:
    memory, model = start("ivf", 1)
    first = index_of(memory)
    doomed = np.arange(0, ROWS, 3)
    change(memory, model, [1], doomed)
    assert index_of(memory) is first  # a delete never waits for an index
    model.check(memory)
    memory.compact()
    assert index_of(memory) is not first
    model.check(memory)


def test_new_vectors_for_all_facts_build_the_index_anew(start) -> None:
    memory, model = start("ivf", 1)
    first = index_of(memory)
    new = dict(zip(range(ROWS), model.draw(ROWS), strict=True))
    memory.reindex(lambda table: np.stack([new[n] for n in table["fact_id"].to_pylist()]), fingerprint="b")
    model.rows = dict(new)
    assert index_of(memory) is not first
    model.check(memory)


def test_a_shard_that_starts_anew_answers_from_an_index_of_its_own(start) -> None:
    memory, model = start("ivf", 2)
    change(memory, model, range(20), [30])
    memory.compact()
    sweep(memory.url, now_s=LATER_S)
    with open_memory(memory.url, shards=3, index="hnsw") as again:
        model.check(again)
        assert sum(line.fresh_rows for line in again.stats().shards) == 0
    older = Shard(ShardConfig(url=memory.url, shard=0, num_shards=2, index="ivf"))
    assert older.load(memory.generation) == memory.stats().shards[0].rows


def test_the_generations_that_share_an_index_each_see_their_own_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    model = Model(rng)
    vectors_ND = model.draw(ROWS)
    storage = Storage(str(tmp_path / "kb"))
    with MemoryWriter(storage, dim=DIM, part_rows=400) as writer:
        writer.append(facts(range(ROWS)), vectors_ND)
    model.put(range(ROWS), vectors_ND)
    past = {1: dict(model.rows)}
    locate = partial(locate_on_disk, storage)
    for step in range(3):
        ids = [7 * step, 7 * step + 1, ROWS + step]
        fresh_ND = model.draw(3)
        upsert_facts(storage, facts(ids), fresh_ND, locate=locate)
        model.put(ids, fresh_ND)
        past[read_manifest(storage).generation] = dict(model.rows)
        doomed = [100 + step]
        del model.rows[doomed[0]]
        past[delete_facts(storage, doomed, locate=locate).generation] = dict(model.rows)
        past[compact(storage).generation] = dict(model.rows)
    rollback(storage, 2)
    past[read_manifest(storage).generation] = past[2]
    shard = Shard(ShardConfig(url=storage.url, shard=0, num_shards=1, index="ivf", resident=len(past)))
    order = rng.permutation(sorted(past)).tolist()
    for generation in order:
        shard.load(generation)
    assert len({id(shard._snapshot(generation).main.index) for generation in order}) == 1
    queries_BD = rng.standard_normal((4, DIM)).astype(np.float32)
    for generation in order:
        rows = past[generation]
        ids_N = np.array(sorted(rows))
        held_ND = np.stack([rows[n] for n in ids_N.tolist()])
        answer = shard.search(generation, queries_BD, len(rows))
        np.testing.assert_array_equal(
            answer.fact_ids_BK, exhaustive_search(ids_N, held_ND, queries_BD, len(rows)).fact_ids_BK
        )
        found = shard.vectors(generation, ids_N)
        np.testing.assert_array_equal(found.vectors_FD, held_ND[found.positions_F])
        assert len(found.positions_F) == len(rows)


def test_a_write_indexes_what_it_writes_and_leaves_longer_runs_alone(start) -> None:
    memory, model = start("exact", 1)
    change(memory, model, range(ROWS, ROWS + 64))
    ((_, long_run),) = runs_of(memory)
    change(memory, model, [1, 2, 3, ROWS + 5])  # the last one is in the long run, and dead there now
    assert [rows for rows, _ in runs_of(memory)] == [64, 4]
    assert runs_of(memory)[0][1] is long_run
    model.check(memory)
    memory.delete([7, ROWS + 6])
    del model.rows[7], model.rows[ROWS + 6]
    assert runs_of(memory)[0][1] is long_run
    model.check(memory)
    change(memory, model, range(ROWS + 100, ROWS + 170))  # which a run of less than half joins
    assert [rows for rows, _ in runs_of(memory)] == [64, 4 + 70]
    assert runs_of(memory)[0][1] is long_run
    model.check(memory)
    change(memory, model, range(ROWS + 200, ROWS + 240))
    assert [rows for rows, _ in runs_of(memory)] == [64, 74, 40]
    change(memory, model, range(ROWS + 300, ROWS + 325))  # the last three are longer than the first: one run
    assert [rows for rows, _ in runs_of(memory)] == [64 - 2 + 74 + 40 + 25]
    model.check(memory)


def test_a_run_of_which_much_is_dead_is_indexed_without_it(start) -> None:
    memory, model = start("exact", 1)
    change(memory, model, range(ROWS, ROWS + 64))
    change(memory, model, [1, 2], range(ROWS, ROWS + 32))
    assert [rows for rows, _ in runs_of(memory)] == [64, 2]
    model.check(memory)
    change(memory, model, [3], range(ROWS + 32, ROWS + 33))
    assert [rows for rows, _ in runs_of(memory)] == [31, 3]
    model.check(memory)


def test_rows_that_a_run_left_out_are_found_again_after_a_rollback(start) -> None:
    memory, model = start("exact", 1)
    change(memory, model, range(ROWS, ROWS + 20))
    before, past = memory.generation, dict(model.rows)
    change(memory, model, range(ROWS + 20, ROWS + 60), range(ROWS, ROWS + 12))
    change(memory, model, range(ROWS + 5, ROWS + 90))
    model.check(memory)
    rollback(Storage(memory.url), before)
    memory.refresh()
    model.rows = past
    model.check(memory)
    memory.compact()
    model.check(memory)


def test_facts_that_are_all_overwritten_or_deleted_leave_runs_of_nothing(start) -> None:
    memory, model = start("exact", 2)
    for _ in range(4):
        change(memory, model, range(ROWS, ROWS + 12))
        model.check(memory)
    change(memory, model, [0], range(ROWS, ROWS + 12))
    model.check(memory)
    change(memory, model, range(ROWS, ROWS + 3))
    model.check(memory)


@pytest.mark.parametrize(
    ("index", "shards"),
    [
        ("ivf", 1),
        ("ivf", 3),
        ("hnsw", 2),
        ("pca_tree", 1),
        ("pca_tree", 3),
        ("wta_hash", 1),
        ("wta_hash", 2),
        ("exact", 1),
        ("exact", 3),
    ],
)
def test_whatever_is_done_in_whatever_order_no_answer_is_wrong(
    start, monkeypatch: pytest.MonkeyPatch, index: str, shards: int
) -> None:
    if shards == 3:
        monkeypatch.setattr("memory_store.snapshot._SLOW_TO_BUILD", 50)
    rng = np.random.default_rng(shards)
    memory, model = start(index, shards, part_rows=int(rng.integers(60, 500)), seed=shards)
    storage, past = Storage(memory.url), {1: dict(model.rows)}
    recalls: list[float] = []
    for _ in range(20):
        what = rng.choice(["upsert", "upsert", "delete", "compact", "compact", "sweep", "append", "roll back"])
        if what == "upsert":
            change(memory, model, rng.choice(2 * ROWS, int(rng.integers(1, 40)), replace=False))
        elif what == "delete":
            # in a row, so that a part is rewritten now and then
            first = int(rng.integers(len(model.rows) - 60))
            change(memory, model, [first], sorted(model.rows)[first : first + int(rng.integers(1, 60))])
        elif what == "compact":
            memory.compact(CompactionPolicy(most_dead_share=float(rng.choice([0.0, 0.05, 0.2]))))
        elif what == "sweep":
            sweep(storage, keep_last=2, now_s=LATER_S)
        elif what == "append":
            ids = 10_000 + rng.choice(10**6, int(rng.integers(1, 20)), replace=False)
            ids = ids[~np.isin(ids, list(model.rows))]
            vectors_ND = model.draw(len(ids))
            with MemoryWriter(storage, dim=DIM) as writer:
                writer.append(facts(ids), vectors_ND)
            model.put(ids, vectors_ND)
            memory.refresh()
        else:
            known = [number for number in generations(storage) if number in past]
            chosen = int(rng.choice(known)) if known else None
            if chosen is not None:
                rollback(storage, chosen)
                model.rows = dict(past[chosen])
                memory.refresh()
        past[memory.generation] = dict(model.rows)
        recalls.append(model.check(memory))
    assert np.mean(recalls) > LEAST_RECALL.get(index, 0.999)
    assert verify_memory(storage).problems == ()
