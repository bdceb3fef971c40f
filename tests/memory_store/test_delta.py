"""Dead rows are left out of every answer, and nobody gets fewer answers because of them, whatever the index."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.delta import search_live
from memory_store.mips.base import ShardVectors
from memory_store.mips.dense import search_dense
from memory_store.mips.live import LiveRows
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.workers import Workers
from memory_store.topk import NO_FACT, PartialTopK

# N rows, B queries, K slots


class ExactDouble:
    """Brute force that notes how many rows it was asked for."""

    nbytes = 0

    def __init__(self, ids_N: np.ndarray, vectors_ND: np.ndarray) -> None:
        self.ids_N, self.vectors_ND, self.asked = ids_N, vectors_ND, []

    def search(self, queries_BD: np.ndarray, k: int) -> PartialTopK:
        self.asked.append((len(queries_BD), k))
        return exhaustive_search(self.ids_N, self.vectors_ND, queries_BD, k)


class StingyDouble(ExactDouble):
    """An approximate index that looks at its first `seen` rows only."""

    def __init__(self, ids_N: np.ndarray, vectors_ND: np.ndarray, seen: int) -> None:
        super().__init__(ids_N[:seen], vectors_ND[:seen])


def never(_queries: np.ndarray, _k: int) -> PartialTopK:
    raise AssertionError("an exact index needs no second opinion")


def exhaustively(ids_N: np.ndarray, vectors_ND: np.ndarray, live_N: np.ndarray) -> Callable[..., PartialTopK]:
    vectors = ShardVectors(fact_ids_N=ids_N, chunks=[vectors_ND], dim=vectors_ND.shape[1])
    return lambda queries_BD, k: search_dense(vectors, queries_BD.astype(np.float64), k, Workers(1), LiveRows(live_N))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), k=st.integers(1, 70), share=st.floats(0, 1))
def test_the_answer_is_that_of_brute_force_over_the_live_rows(seed: int, rows: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    ids_N = rng.permutation(rows).astype(np.int64)
    vectors_ND = rng.integers(-2, 3, (rows, 3)).astype(np.float32)  # many ties
    queries_BD = rng.integers(-2, 3, (4, 3)).astype(np.float32)
    live_N = rng.random(rows) >= share
    index = ExactDouble(ids_N, vectors_ND)
    found = search_live(index, rows, np.sort(ids_N[~live_N]), queries_BD, k, never)
    expected = exhaustive_search(ids_N[live_N], vectors_ND[live_N], queries_BD, k)
    np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)


def test_a_few_scattered_dead_rows_cost_a_few_slots_and_one_search(rng: np.random.Generator) -> None:
    ids_N, vectors_ND = np.arange(5000), rng.standard_normal((5000, 4)).astype(np.float32)
    index = ExactDouble(ids_N, vectors_ND)
    search_live(index, 5000, np.sort(rng.choice(5000, 50, replace=False)), vectors_ND[:16], 10, never)
    assert index.asked[0] == (16, 14)
    assert sum(queries for queries, _ in index.asked[1:]) <= 2


def test_only_the_queries_that_many_dead_rows_came_near_are_asked_again(rng: np.random.Generator) -> None:
    vectors_ND = rng.standard_normal((2000, 4)).astype(np.float32)
    vectors_ND[:100] = [9, 0, 0, 0]
    index = ExactDouble(np.arange(2000), vectors_ND)
    queries_BD = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    found = search_live(index, 2000, np.arange(100), queries_BD, 5, never)
    expected = exhaustive_search(np.arange(100, 2000), vectors_ND[100:], queries_BD, 5)
    np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
    assert [queries for queries, _ in index.asked] == [3, 1, 1]
    assert index.asked[-1][1] <= 105


@pytest.mark.parametrize("k", [1, 4, 30])
def test_an_approximate_index_that_runs_out_over_dead_rows_is_helped_out(rng: np.random.Generator, k: int) -> None:
    ids_N, vectors_ND = np.arange(40), rng.standard_normal((40, 4)).astype(np.float32)
    live_N = np.ones(40, dtype=np.bool_)
    live_N[:10] = False
    found = search_live(
        StingyDouble(ids_N, vectors_ND, 10),
        40,
        ids_N[~live_N],
        vectors_ND[:3],
        k,
        exhaustively(ids_N, vectors_ND, live_N),
    )
    assert (found.fact_ids_BK != NO_FACT).sum(axis=1).tolist() == [k] * 3
    assert live_N[found.fact_ids_BK].all()


def test_an_approximate_index_that_runs_out_without_a_dead_row_is_taken_at_its_word(rng: np.random.Generator) -> None:
    ids_N, vectors_ND = np.arange(40), rng.standard_normal((40, 4)).astype(np.float32)
    found = search_live(StingyDouble(ids_N, vectors_ND, 10), 40, ids_N[30:], vectors_ND[:3], 20, never)
    assert (found.fact_ids_BK != NO_FACT).sum(axis=1).tolist() == [10] * 3
