"""Upserts and deletes keep one contract on every backend: durable, visible at once, exact, never an answer less."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import Memory, MemoryWriter, open_memory
from memory_store.errors import (
    ConfigError,
    DimensionMismatch,
    DuplicateFact,
    InputError,
    InvalidVectors,
    UnknownFact,
)
from memory_store.mips.oracle import exhaustive_search
from memory_store.upkeep import inspect_memory, verify_memory

DIM = 8
ROWS = 300


def facts(ids: np.ndarray, word: str = "thing") -> pa.Table:
    return pa.table({"fact_id": pa.array(ids, pa.int64()), "subject": [f"{word} {i}" for i in ids]})


class Model:
    """What the memory should hold: a dict, searched by brute force."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[np.ndarray, str]] = {}

    def put(self, ids: np.ndarray, vectors_ND: np.ndarray, word: str = "thing") -> None:
        self.rows |= {int(i): (vector_D, f"{word} {i}") for i, vector_D in zip(ids, vectors_ND, strict=True)}

    def check(self, memory: Memory, queries_BD: np.ndarray, ks: tuple[int, ...] = (1, 10, ROWS + 200)) -> None:
        ids = np.array(sorted(self.rows), dtype=np.int64)
        vectors_ND = np.array([self.rows[int(i)][0] for i in ids]).reshape(len(ids), DIM)
        for k in ks:
            answer = memory.search(queries_BD, k)
            expected = exhaustive_search(ids, vectors_ND, queries_BD, k)
            np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
            np.testing.assert_array_equal(answer.scores_BK, expected.scores_BK.astype(np.float32))
            assert (answer.coverage, answer.generation) == (1.0, memory.generation)
        assert len(memory) == len(ids) == sum(line.rows for line in memory.stats().shards)
        np.testing.assert_array_equal(memory.vectors(ids), vectors_ND)
        assert memory.fetch(ids, ["subject"])["subject"].to_pylist() == [self.rows[int(i)][1] for i in ids]


@pytest.fixture(params=["local", "ray"])
def living(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator) -> Iterator[tuple[Memory, Model]]:
    """A memory of three parts on two shards, and the model of it; some rows are equal and some are zero."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    model = Model()
    ids = np.arange(ROWS) * 3
    vectors_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    vectors_ND[10:40] = vectors_ND[0]
    vectors_ND[40:50] = 0
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM, part_rows=110) as writer:
        writer.append(facts(ids), vectors_ND)
    model.put(ids, vectors_ND)
    with open_memory(str(tmp_path / "kb"), shards=2, backend=request.param) as memory:
        yield memory, model


def test_upserts_and_deletes_are_visible_at_once_and_exact(
    living: tuple[Memory, Model], rng: np.random.Generator
) -> None:
    memory, model = living
    assert memory.holds([3, 1, 3]).tolist() == [True, False, True]
    assert memory.holds([]).tolist() == []
    queries_BD = np.concatenate([rng.standard_normal((5, DIM)), np.zeros((1, DIM))]).astype(np.float32)
    model.check(memory, queries_BD)
    for step in range(4):
        ids = rng.choice(4 * ROWS, 60, replace=False)  # about a quarter of them overwrite a fact
        vectors_ND = rng.standard_normal((60, DIM)).astype(np.float32)
        generation = memory.upsert(facts(ids, f"step {step}"), vectors_ND)
        model.put(ids, vectors_ND, f"step {step}")
        assert generation == memory.generation == memory.newest_generation() == 2 * step + 2
        model.check(memory, queries_BD)
        doomed = rng.choice(sorted(model.rows), 40, replace=False)
        assert memory.delete(doomed) == generation + 1
        for fact_id in doomed.tolist():
            del model.rows[fact_id]
        model.check(memory, queries_BD)
        with pytest.raises(UnknownFact, match=str(doomed[0])):
            memory.fetch(doomed[:1])
    assert verify_memory(memory.url).problems == ()
    with open_memory(memory.url, shards=3) as again:
        model.check(again, queries_BD)


def test_the_best_answers_of_a_query_are_replaced_when_all_of_them_are_deleted(living: tuple[Memory, Model]) -> None:
    memory, model = living
    query_BD = np.full((1, DIM), 0.5, np.float32)
    doomed = memory.search(query_BD, 200).fact_ids_BK[0]
    memory.delete(doomed)
    for fact_id in doomed.tolist():
        del model.rows[fact_id]
    model.check(memory, query_BD, ks=(1, 10, 99, 100, 101))
    rest = np.array(sorted(model.rows))
    memory.delete(rest)
    answer = memory.search(query_BD, 3)
    assert answer.fact_ids_BK.tolist() == [[-1, -1, -1]]
    assert (len(memory), answer.coverage) == (0, 1.0)
    memory.upsert(facts(rest[:1]), np.ones((1, DIM), np.float32))
    assert memory.search(query_BD, 2).fact_ids_BK.tolist() == [[rest[0], -1]]


def test_an_older_generation_still_answers_as_it_did(living: tuple[Memory, Model], rng: np.random.Generator) -> None:
    memory, model = living
    memory.upsert(facts(np.arange(50)), rng.standard_normal((50, DIM)).astype(np.float32))
    memory.delete(np.arange(20, 40))
    queries_BD = rng.standard_normal((3, DIM)).astype(np.float32)
    with open_memory(memory.url, generation=1) as older:
        model.check(older, queries_BD)
        with pytest.raises(ConfigError, match="opened at generation 1"):
            older.delete([0])
    memory.refresh(generation=1)
    model.check(memory, queries_BD)
    memory.refresh()
    assert memory.generation == 3


def test_what_cannot_be_written_is_refused_and_changes_nothing(living: tuple[Memory, Model]) -> None:
    memory, model = living
    one = np.ones((1, DIM), np.float32)
    refused = [
        (facts(np.array([1, 1])), np.ones((2, DIM)), DuplicateFact, "fact id 1 is upserted twice"),
        (facts(np.array([-1])), one, InputError, "at least 0"),
        (facts(np.array([1])), np.ones((1, DIM + 1)), DimensionMismatch, f"dimension {DIM}"),
        (facts(np.array([1])), one * np.nan, InvalidVectors, "finite"),
        (facts(np.array([1, 2])), one, InvalidVectors, "one vector per fact"),
    ]
    for table, vectors, error, says in refused:
        with pytest.raises(error, match=says):
            memory.upsert(table, vectors)
    with pytest.raises(UnknownFact, match="found 1 that it does not hold: 1;"):
        memory.delete([0, 1])
    assert memory.upsert(facts(np.zeros(0, np.int64)), np.empty((0, DIM), np.float32)) == 1
    assert memory.delete([]) == 1
    model.check(memory, one)
    assert inspect_memory(memory.url).unnamed_files == 0


def test_a_re_index_embeds_anew_and_divides_the_rows_otherwise(living: tuple[Memory, Model]) -> None:
    memory, model = living
    memory.delete([0])
    memory.upsert(facts(np.array([1])), np.ones((1, DIM), np.float32))

    def encode_by_id(table: pa.Table) -> np.ndarray:
        ids_N = table["fact_id"].to_numpy()
        return np.stack([np.cos(ids_N * step) for step in range(DIM)], axis=1).astype(np.float32)

    assert memory.reindex(encode_by_id, shards=3, fingerprint="cosines") == memory.generation == 4
    ids = np.array(sorted({*model.rows, 1} - {0}))
    model.rows.clear()
    model.put(ids, encode_by_id(facts(ids)))
    assert memory.fetch(ids[:1]).num_rows == 1
    queries_BD = np.eye(DIM, dtype=np.float32)[:3]
    expected = exhaustive_search(ids, encode_by_id(facts(ids)), queries_BD, 10)
    np.testing.assert_array_equal(memory.search(queries_BD, 10).fact_ids_BK, expected.fact_ids_BK)
    assert len(memory.stats().shards) == 3


def test_several_memories_may_write_at_once_and_every_write_is_kept(living: tuple[Memory, Model]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    memory, model = living
    if "ray" in repr(memory):
        pytest.skip("the race is one of commits, and those are the same on every backend")
    with open_memory(memory.url) as other, ThreadPoolExecutor(3) as pool:

        def write(number: int) -> None:
            ids = np.arange(10_000 + 10 * number, 10_000 + 10 * number + 10)
            vectors_ND = np.full((10, DIM), number, np.float32)
            (memory, other)[number % 2].upsert(facts(ids), vectors_ND)
            model.put(ids, vectors_ND)

        list(pool.map(write, range(12)))
    assert memory.refresh() == 13
    model.check(memory, np.ones((1, DIM), np.float32))
