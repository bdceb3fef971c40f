"""Certified staleness against brute force: what is called proven is the true top k, whatever moved within the bound."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from memory_store.certified import certified_search, most_moved
from memory_store.errors import ConfigError
from memory_store.manifest import read_manifest
from memory_store.mips.oracle import exhaustive_search
from memory_store.storage import Storage
from memory_store.topk import TopK
from memory_store.writes import locate_on_disk, upsert_facts

ROWS, DIM, K = 600, 6, 5


@dataclass
class OldVectors:
    """A memory by brute force over the vectors that were indexed. leaves_out: facts that its index does not find."""

    old_ND: np.ndarray
    is_exact: bool = True
    leaves_out: int = 0
    generation: int = 3
    asked: int = 0
    switches_at: int = -1

    def __len__(self) -> int:
        return len(self.old_ND)

    def search(self, queries, k: int = 10) -> TopK:
        self.asked += 1
        if self.asked == self.switches_at:
            self.generation += 1
        ids_N = np.arange(self.leaves_out, len(self.old_ND))
        found = exhaustive_search(ids_N, self.old_ND[self.leaves_out :], np.asarray(queries), k)
        return TopK(
            fact_ids_BK=found.fact_ids_BK,
            scores_BK=found.scores_BK.astype(np.float32),
            generation=self.generation,
        )


def moved_by(rng: np.random.Generator, old_ND: np.ndarray, distance: float) -> tuple[np.ndarray, float]:
    """(current vectors, the largest distance of all)"""
    steps_ND = rng.standard_normal(old_ND.shape)
    steps_ND *= distance * rng.random((len(old_ND), 1)) / np.linalg.norm(steps_ND, axis=1, keepdims=True)
    new_ND = (old_ND + steps_ND).astype(np.float32)
    return new_ND, float(np.linalg.norm(new_ND.astype(np.float64) - old_ND, axis=1).max())


@pytest.mark.parametrize("distance", [0.0, 1e-3, 0.05, 0.3, 2.0])
def test_what_is_proven_is_the_true_top_k(rng: np.random.Generator, distance: float) -> None:
    old_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    old_ND[50:60] = old_ND[0]  # ties
    new_ND, moved = moved_by(rng, old_ND, distance)
    queries_BD = np.concatenate([rng.standard_normal((30, DIM)), np.zeros((1, DIM)), old_ND[:1]]).astype(np.float32)
    found = certified_search(OldVectors(old_ND), queries_BD, K, vectors=lambda ids: new_ND[ids], moved=moved)
    expected = exhaustive_search(np.arange(ROWS), new_ND, queries_BD, K)
    assert found.proven_B.all(), "600 rows may be retrieved, and are if need be"
    np.testing.assert_array_equal(found.answer.fact_ids_BK, expected.fact_ids_BK)
    np.testing.assert_allclose(found.answer.scores_BK, expected.scores_BK, rtol=1e-5, atol=1e-6)
    if distance <= 1e-3:
        assert (found.retrieved_B[:30] <= 10 * K).mean() > 0.9, "a small bound costs few rows"
    limited = certified_search(
        OldVectors(old_ND), queries_BD, K, vectors=lambda ids: new_ND[ids], moved=moved, most_rows=40
    )
    assert limited.retrieved_B.max() <= 40
    proven_B = limited.proven_B
    np.testing.assert_array_equal(limited.answer.fact_ids_BK[proven_B], expected.fact_ids_BK[proven_B])
    assert proven_B[:30].any() == (distance < 2.0)


def test_a_fact_that_moved_as_far_as_the_bound_allows_is_not_missed() -> None:
    old_ND = np.array([[1.0], [0.9], [0.8], [0.1]], np.float32)
    new_ND = np.array([[1.0], [0.9], [0.8], [1.1]], np.float32)
    query = np.ones((1, 1), np.float32)
    found = certified_search(OldVectors(old_ND), query, 1, vectors=lambda ids: new_ND[ids], moved=1.0, most_rows=2)
    assert (found.proven_B.tolist(), found.answer.fact_ids_BK.tolist()) == ([False], [[0]])
    found = certified_search(OldVectors(old_ND), query, 1, vectors=lambda ids: new_ND[ids], moved=1.0)
    assert (found.proven_B.tolist(), found.answer.fact_ids_BK.tolist()) == ([True], [[3]])


def test_an_approximate_index_proves_nothing(rng: np.random.Generator) -> None:
    old_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    memory = OldVectors(old_ND, is_exact=False, leaves_out=1)
    found = certified_search(memory, old_ND[:4], K, vectors=lambda ids: old_ND[ids], moved=0.0)
    assert not found.proven_B.any()
    found = certified_search(memory, old_ND[:4], K, vectors=lambda ids: old_ND[ids], moved=0.0, most_rows=ROWS)
    assert not found.proven_B.any()


def test_an_answer_never_mixes_generations_and_few_facts_are_padded(rng: np.random.Generator) -> None:
    old_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    memory = OldVectors(old_ND, switches_at=3)
    found = certified_search(memory, old_ND[:4], K, vectors=lambda ids: old_ND[ids], moved=1.0)
    assert found.answer.generation == 4
    assert found.proven_B.all()
    few = certified_search(OldVectors(old_ND[:3]), old_ND[:2], K, vectors=lambda ids: old_ND[ids], moved=9.0)
    assert few.proven_B.all()
    assert (few.answer.fact_ids_BK >= 0).sum(axis=1).tolist() == [3, 3]
    none = certified_search(OldVectors(old_ND), old_ND[:0], K, vectors=lambda ids: old_ND[ids], moved=0.0)
    assert none.answer.fact_ids_BK.shape == (0, K)
    with pytest.raises(ConfigError, match="moved >= 0, found nan"):
        certified_search(memory, old_ND[:1], K, vectors=lambda ids: old_ND[ids], moved=float("nan"))


def test_most_moved_is_the_largest_distance_between_two_generations(
    storage: Storage, write_memory, facts_of, vectors_for
) -> None:
    write_memory(storage, range(7))
    changed_ND = vectors_for([2, 5, 9]) + np.array([[3, 4, 0, 0], [0, 0, 1, 0], [100, 0, 0, 0]], np.float32)
    upsert_facts(storage, facts_of([2, 5, 9]), changed_ND, locate=partial(locate_on_disk, storage))
    first, second = read_manifest(storage, 1), read_manifest(storage, 2)
    assert most_moved(storage, first, first) == 0.0
    assert most_moved(storage, first, second) == pytest.approx(5.0, rel=1e-6)
