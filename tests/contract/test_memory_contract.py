"""One suite for every backend: the in-process memory and the memory on Ray keep the same contract."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import Memory, MemoryWriter, open_memory
from memory_store.errors import (
    ConfigError,
    DimensionMismatch,
    GenerationNotFound,
    InvalidVectors,
    MemoryNotFound,
    UnknownFact,
    UnknownIndex,
)
from memory_store.mips.oracle import exhaustive_search

DIM = 16
ROWS = 500


def facts(ids: np.ndarray) -> pa.Table:
    return pa.table({"fact_id": ids, "subject": [f"thing {i}" for i in ids], "relation": ["is"] * len(ids)})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray, np.ndarray]:
    """(url, ids [N], vectors [N, D]) of a memory of three parts with duplicated and zero rows and ids in no order."""
    rng = np.random.default_rng(7)
    ids_N = rng.choice(10**15, ROWS, replace=False).astype(np.int64)
    vectors_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    vectors_ND[100:150] = vectors_ND[0]
    vectors_ND[150:160] = 0.0
    url = str(tmp_path_factory.mktemp("memory") / "kb")
    for start, stop in ((0, 200), (200, 207), (207, ROWS)):
        with MemoryWriter(url, dim=DIM) as writer:
            writer.append(facts(ids_N[start:stop]), vectors_ND[start:stop])
    return url, ids_N, vectors_ND


Opener = Callable[..., Memory]


@pytest.fixture(scope="module", params=["local", "ray"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


@pytest.fixture
def opener(backend: str) -> Iterator[Opener]:
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(open_memory(url, backend=backend, **options))


@pytest.fixture(scope="module")
def served(backend: str, stored) -> Iterator[Memory]:
    """The stored memory on three shards, for tests that only read: starting actors takes longer than reading."""
    with open_memory(stored[0], backend=backend, shards=3) as memory:
        yield memory


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_search_equals_brute_force(opener: Opener, stored, shards: int) -> None:
    url, ids_N, vectors_ND = stored
    queries_BD = np.concatenate([vectors_ND[:20], np.zeros((1, DIM), np.float32)])
    with opener(url, shards=shards) as memory:
        for k in (1, 10, 100, ROWS + 5):
            answer = memory.search(queries_BD, k)
            expected = exhaustive_search(ids_N, vectors_ND, queries_BD, k)
            np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
            np.testing.assert_array_equal(answer.scores_BK, expected.scores_BK.astype(np.float32))
            assert (answer.generation, answer.coverage) == (3, 1.0)
        assert (answer.fact_ids_BK[:, ROWS:] == -1).all()
        assert np.isneginf(answer.scores_BK[:, ROWS:]).all()


@pytest.mark.parametrize(
    "index", ["ivf?nlist=16&nprobe=12", "split", "pca_tree", "wta_hash", "hnsw", "faiss:IVF4,Flat?search=nprobe=4"]
)
def test_every_approximate_index_gives_true_scores_and_a_file_to_restart_from(
    opener: Opener, stored, tmp_path: Path, index: str
) -> None:
    rng = np.random.default_rng(3)
    ids_N = rng.choice(10**9, 700, replace=False).astype(np.int64)
    vectors_ND = rng.standard_normal((700, DIM)).astype(np.float32)
    with MemoryWriter(str(tmp_path), dim=DIM) as writer:
        writer.append(facts(ids_N), vectors_ND)
    queries_BD = rng.standard_normal((16, DIM)).astype(np.float32)
    expected = exhaustive_search(ids_N, vectors_ND, queries_BD, 10)
    answers = []
    for _ in range(2):
        with opener(str(tmp_path), shards=2, index=index) as memory:
            answers.append(memory.search(queries_BD, 10))
        assert len(list((tmp_path / "indexes").iterdir())) == 2, "one file per shard, read by the second memory"
    built, read = answers
    true_BK = np.einsum("bkd,bd->bk", vectors_ND[_rows_of(ids_N, built.fact_ids_BK)], queries_BD)
    np.testing.assert_allclose(built.scores_BK, true_BK, rtol=1e-4, atol=1e-5)
    assert (built.scores_BK >= expected.scores_BK[:, -1:] - 1e-5).mean() > 0.8
    np.testing.assert_array_equal(built.fact_ids_BK, read.fact_ids_BK)


def _rows_of(ids_N: np.ndarray, fact_ids_BK: np.ndarray) -> np.ndarray:
    order_N = np.argsort(ids_N)
    return order_N[np.searchsorted(ids_N, fact_ids_BK, sorter=order_N)]


def test_a_memory_smaller_than_its_shards_still_answers(opener: Opener, tmp_path: Path) -> None:
    with MemoryWriter(str(tmp_path), dim=2) as writer:
        writer.append(facts(np.array([5])), np.array([[3.0, 4.0]], dtype=np.float32))
    with opener(str(tmp_path), shards=3) as memory:
        answer = memory.search([[1.0, 1.0]], k=2)
        assert answer.fact_ids_BK.tolist() == [[5, -1]]
        assert answer.scores_BK.tolist() == [[7.0, -np.inf]]


def test_fetch_and_vectors_keep_the_order_asked(served: Memory, stored) -> None:
    _, ids_N, vectors_ND = stored
    rows = [499, 0, 250, 0, 203]
    table = served.fetch(ids_N[rows], columns=["subject", "fact_id"])
    assert table.column_names == ["subject", "fact_id"]
    assert table["fact_id"].to_pylist() == ids_N[rows].tolist()
    assert table["subject"].to_pylist() == [f"thing {i}" for i in ids_N[rows]]
    np.testing.assert_array_equal(served.vectors(ids_N[rows]), vectors_ND[rows])
    assert len(served.fetch([])) == 0
    assert served.vectors(np.array([], dtype=np.int64)).shape == (0, DIM)


def test_an_empty_batch_gets_an_empty_answer(served: Memory) -> None:
    assert served.search(np.zeros((0, DIM)), k=4).fact_ids_BK.shape == (0, 4)


def test_unknown_ids_and_columns_are_refused_by_name(served: Memory, stored) -> None:
    _, ids_N, _ = stored
    missing = int(ids_N.max()) + 1
    with pytest.raises(UnknownFact, match=f"generation 3, found 1 that it does not hold: {missing}"):
        served.fetch([int(ids_N[0]), missing])
    with pytest.raises(UnknownFact, match=str(missing)):
        served.vectors([missing])
    with pytest.raises(ConfigError, match="'colour'"):
        served.fetch(ids_N[:1], columns=["colour"])


@pytest.mark.parametrize(
    ("queries", "k", "error", "says"),
    [
        (np.zeros((1, DIM + 1)), 1, DimensionMismatch, f"dimension {DIM}, found {DIM + 1}"),
        (np.zeros(DIM), 1, InvalidVectors, r"\[16\]"),
        (np.full((2, DIM), [[0.0], [np.nan]]), 1, InvalidVectors, "query 1"),
        (np.full((1, DIM), 1e300), 1, InvalidVectors, "query 0"),
        (np.array([["x"] * DIM]), 1, InvalidVectors, "floats"),
        (np.zeros((1, DIM)), 0, ConfigError, "k >= 1, found 0"),
        (np.zeros((1, DIM)), 2.5, ConfigError, "k as a whole number, found 2.5"),
    ],
)
def test_bad_queries_are_refused(served: Memory, queries, k, error, says) -> None:
    with pytest.raises(error, match=says):
        served.search(queries, k)


def test_an_older_generation_can_be_opened_and_an_unknown_one_is_refused(opener: Opener, stored) -> None:
    url, ids_N, _ = stored
    with opener(url, generation=1, shards=2) as memory:
        assert (memory.generation, len(memory)) == (1, 200)
        assert set(memory.search(np.zeros((1, DIM)), k=300).fact_ids_BK[0]) == {-1, *ids_N[:200].tolist()}
    with pytest.raises(GenerationNotFound, match="99"):
        opener(url, generation=99)


def test_refresh_switches_to_what_was_committed_meanwhile(opener: Opener, tmp_path: Path) -> None:
    url = str(tmp_path)
    with MemoryWriter(url, dim=2) as writer:
        writer.append(facts(np.array([1])), np.array([[1.0, 0.0]], dtype=np.float32))
    with opener(url, shards=2) as memory:
        with MemoryWriter(url, dim=2) as writer:
            writer.append(facts(np.array([2])), np.array([[2.0, 0.0]], dtype=np.float32))
        before = memory.search([[1.0, 0.0]], k=2)
        assert (before.fact_ids_BK.tolist(), before.generation) == ([[1, -1]], 1)
        assert memory.newest_generation() == 2
        with pytest.raises(GenerationNotFound):
            memory.prepare(9)
        memory.prepare(2)
        assert {line.generations_resident for line in memory.stats().shards} == {(1, 2)}
        assert memory.search([[1.0, 0.0]], k=2).generation == 1, "loaded beside the one that is served"
        assert memory.refresh() == 2
        after = memory.search([[1.0, 0.0]], k=2)
        assert (after.fact_ids_BK.tolist(), after.generation) == ([[2, 1]], 2)
        memory.release_others()
        assert memory.refresh(generation=1) == 1, "an older generation is loaded again when it is asked for"
        assert memory.search([[1.0, 0.0]], k=2).fact_ids_BK.tolist() == [[1, -1]]


def test_stats_name_every_shard(served: Memory) -> None:
    stats = served.stats()
    assert [line.shard for line in stats.shards] == [0, 1, 2]
    assert sum(line.rows for line in stats.shards) == stats.facts == ROWS
    assert {line.generation for line in stats.shards} == {stats.generation} == {3}
    assert all(line.bytes >= line.rows * DIM * 4 and line.restarts == 0 for line in stats.shards)
    assert stats.recall == 1.0


def test_a_memory_with_replicas_keeps_the_contract_and_names_its_copies(opener: Opener, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    ids_N, vectors_ND = np.arange(60), rng.standard_normal((60, 2)).astype(np.float32)
    with MemoryWriter(str(tmp_path), dim=2) as writer:
        writer.append(facts(ids_N), vectors_ND)
    with opener(str(tmp_path), shards=2, replicas=2) as memory:
        memory.upsert(facts(ids_N[:5]), -vectors_ND[:5])
        memory.delete(ids_N[5:8])
        vectors_ND[:5] *= -1
        queries_BD, live = vectors_ND[10:14], np.r_[0:5, 8:60]
        expected = exhaustive_search(ids_N[live], vectors_ND[live], queries_BD, 9)
        for _ in range(4):  # by different copies
            answer = memory.search(queries_BD, 9)
            np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
            assert (answer.generation, answer.coverage) == (3, 1.0)
            np.testing.assert_array_equal(memory.vectors(live), vectors_ND[live])
            assert memory.fetch([50, 2], ["fact_id"])["fact_id"].to_pylist() == [50, 2]
        with pytest.raises(UnknownFact, match="6"):
            memory.fetch([6])
        memory.release_others()
        stats = memory.stats()
        assert stats.facts == sum(line.rows for line in stats.shards) == 57
        assert [[(copy.replica, copy.serving) for copy in line.copies] for line in stats.shards] == [
            [(0, True), (1, True)]
        ] * 2
        assert memory.reindex(shards=1) == 3
        assert len(memory.stats().shards) == 1
        np.testing.assert_array_equal(memory.search(queries_BD, 9).fact_ids_BK, expected.fact_ids_BK)


def test_a_closed_memory_says_so_and_closes_twice(opener: Opener, stored) -> None:
    memory = opener(stored[0])
    memory.close()
    memory.close()
    with pytest.raises(ConfigError, match="is closed; open it again"):
        memory.search(np.zeros((1, DIM)))
    assert "closed" in repr(memory)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"shards": 0}, ConfigError, "shards >= 1, found 0"),
        ({"replicas": 0}, ConfigError, "replicas >= 1, found 0"),
        ({"index": "exct"}, UnknownIndex, "did you mean 'exact'"),
        ({"partial": "maybe"}, ConfigError, "'maybe'"),
        ({"threads": 0}, ConfigError, "threads >= 1"),
        ({"deadline_s": 0}, ConfigError, "deadline_s > 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(opener: Opener, stored, options, error, says) -> None:
    with pytest.raises(error, match=says):
        opener(stored[0], **options)


def test_a_url_without_a_memory_is_refused(opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound, match="nothing-here"):
        opener(str(tmp_path / "nothing-here"))


def test_threads_may_search_while_the_memory_refreshes(opener: Opener, tmp_path: Path) -> None:
    """Every answer is wholly of one generation: each generation's only score is its own number."""
    from concurrent.futures import ThreadPoolExecutor

    url, generations = str(tmp_path), 6
    for number in range(1, generations + 1):
        with MemoryWriter(url, dim=1) as writer:
            writer.append(facts(np.arange(number * 10, number * 10 + 4)), np.full((4, 1), number, dtype=np.float32))
    with opener(url, shards=2, generation=1) as memory, ThreadPoolExecutor(3) as pool:

        def searches(_: int) -> list[tuple[int, list[float]]]:
            answers = [memory.search([[1.0]], k=4) for _ in range(25)]
            return [(answer.generation, answer.scores_BK[0].tolist()) for answer in answers]

        running = [pool.submit(searches, worker) for worker in range(3)]
        for number in range(2, generations + 1):
            memory.refresh(number)
        seen = [answer for future in running for answer in future.result()]
    assert all(scores == [float(generation)] * 4 for generation, scores in seen)
