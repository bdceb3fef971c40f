"""`split`: what it takes to be shared, what it finds by that, and what it does where nothing is."""

import numpy as np
import pytest
from numpy.typing import NDArray

from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import ShardVectors
from memory_store.mips.ivf import IvfSource
from memory_store.mips.live import LiveRows
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.registry import build_index
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.shared import shared_columns, values_of
from memory_store.mips.split import SplitSource

# N rows, D dimension, B queries, K slots

ROWS, RELATIONS, SUBJECTS, BATCH = 6000, 60, 2500, 64
SUBJECT_DIM, RELATION_DIM = 24, 16


def facts_and_questions(
    rng: np.random.Generator, order_D: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors as an encoder makes them: a subject's part beside a relation's; questions near some fact's."""
    subjects = rng.standard_normal((SUBJECTS, SUBJECT_DIM), dtype=np.float32)
    relations = 1.5 * rng.standard_normal((RELATIONS, RELATION_DIM), dtype=np.float32)
    subject_N, relation_N = rng.integers(SUBJECTS, size=ROWS), rng.zipf(1.3, size=ROWS) % RELATIONS
    rows_ND = np.concatenate([subjects[subject_N], relations[relation_N]], axis=1)
    asked_B = rng.choice(ROWS, BATCH)
    noise_BD = rng.standard_normal((BATCH, rows_ND.shape[1]), dtype=np.float32)
    queries_BD = 8 * (rows_ND[asked_B] + 0.6 * noise_BD)
    order_D = np.arange(rows_ND.shape[1]) if order_D is None else order_D
    return np.ascontiguousarray(rows_ND[:, order_D]), np.ascontiguousarray(queries_BD[:, order_D])


def recall(index: ApproximateIndex, rows_ND: NDArray[np.float32], queries_BD: NDArray[np.float32]) -> float:
    exact = exhaustive_search(np.arange(len(rows_ND)), rows_ND, queries_BD, 10)
    return float((index.search(queries_BD, 10).scores_BK >= exact.scores_BK[:, -1:]).mean())


@pytest.mark.parametrize("layout", ["relation last", "two members"])
def test_the_relations_columns_are_found_wherever_they_stand(layout: str) -> None:
    rng = np.random.default_rng(0)
    dim = SUBJECT_DIM + RELATION_DIM
    order_D = {
        "relation last": np.arange(dim),
        "two members": np.r_[0:12, 24:32, 12:24, 32:40],
    }[layout]
    rows_ND, _ = facts_and_questions(rng, order_D)
    rows = ScaledRows(ShardVectors(np.arange(ROWS), [rows_ND], dim))
    shared_D = shared_columns(rows)
    assert shared_D is not None
    np.testing.assert_array_equal(shared_D, order_D >= SUBJECT_DIM)
    values = values_of(rows, np.flatnonzero(order_D >= SUBJECT_DIM))
    parts = rows_ND[:, order_D >= SUBJECT_DIM]
    np.testing.assert_array_equal(parts[values.first_V][values.value_N], parts)
    assert values.count == len(np.unique(parts, axis=0))


def test_the_best_facts_are_found_by_their_relation_or_by_their_subject() -> None:
    rows_ND, queries_BD = facts_and_questions(np.random.default_rng(1))
    vectors = ShardVectors(np.arange(ROWS), [rows_ND], rows_ND.shape[1])
    index = build_index("split?values=8", vectors, threads=2)
    assert isinstance(index, ApproximateIndex)
    assert isinstance(index.source, SplitSource)
    assert recall(index, rows_ND, queries_BD) > 0.95
    few = index.source.candidates(queries_BD / np.float32(64), 10, 1, None)
    for row_C in few:
        held_C = row_C[row_C >= 0]
        assert len(np.unique(held_C)) == len(held_C)
    index.effort = 10**9
    assert index.effort == RELATIONS
    assert recall(index, rows_ND, queries_BD) > 0.97


def test_rows_that_are_not_live_are_never_found_and_crowd_out_no_other() -> None:
    rows_ND, queries_BD = facts_and_questions(np.random.default_rng(2))
    vectors = ShardVectors(np.arange(ROWS), [rows_ND], rows_ND.shape[1])
    best = exhaustive_search(vectors.fact_ids_N, rows_ND, queries_BD, 20)
    mask_N = np.ones(ROWS, dtype=np.bool_)
    mask_N[best.fact_ids_BK.ravel()] = False
    index = build_index("split", vectors, threads=2)
    assert isinstance(index, ApproximateIndex)
    found = index.search(queries_BD, 10, live=LiveRows(mask_N))
    assert mask_N[found.fact_ids_BK].all()
    exact = exhaustive_search(np.flatnonzero(mask_N), rows_ND[mask_N], queries_BD, 10)
    assert float((found.scores_BK >= exact.scores_BK[:, -1:]).mean()) > 0.9


def test_a_restored_index_gives_the_same_answers() -> None:
    from memory_store.mips.base import parse_index
    from memory_store.mips.registry import INDEXES

    rows_ND, queries_BD = facts_and_questions(np.random.default_rng(3))
    vectors = ShardVectors(np.arange(ROWS), [rows_ND], rows_ND.shape[1])
    index = build_index("split", vectors)
    assert isinstance(index, ApproximateIndex)
    assert index.saved_arrays is not None
    restore = INDEXES["split"].restore
    assert restore is not None
    restored = restore(vectors, parse_index("split", INDEXES), 1, index.saved_arrays)
    for k in (1, 10, 50):
        one, other = index.search(queries_BD, k), restored.search(queries_BD, k)
        np.testing.assert_array_equal(one.fact_ids_BK, other.fact_ids_BK)
        np.testing.assert_array_equal(one.scores_BK, other.scores_BK)
    assert restored.nbytes == index.nbytes <= INDEXES["split"].bytes_needed(parse_index("split", INDEXES), ROWS, 40)


@pytest.mark.parametrize("kind", ["nothing shared", "all shared", "few rows"])
def test_rows_that_share_nothing_or_everything_get_clusters(kind: str) -> None:
    rng = np.random.default_rng(4)
    rows_ND, _ = facts_and_questions(rng)
    if kind == "nothing shared":
        rows_ND = rng.standard_normal(rows_ND.shape, dtype=np.float32)
    elif kind == "all shared":
        rows_ND = rows_ND[rng.integers(50, size=ROWS)]
    else:
        rows_ND = rows_ND[:1000]
    index = build_index("split", ShardVectors(np.arange(len(rows_ND)), [rows_ND], rows_ND.shape[1]))
    assert isinstance(index, ApproximateIndex)
    assert isinstance(index.source, IvfSource)
