"""Exact indexes of which some rows are dead: the best live rows, whatever scans them and whatever is dead."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_store.mips.exact import ExactIndex
from memory_store.mips.few_rows import FewRows, index_exactly
from memory_store.mips.live import LiveRows
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.registry import build_index
from memory_store.mips.scan import BlockScan

INDEXES = ("few", "exact", "exact?scan=int8", "exact?scan=bfloat16", "exact?scan=float32", "exact?scan=float64")
KINDS = ("random", "clustered", "duplicated", "all equal", "some zero", "small whole numbers", "heavy tails", "huge")


def dead_rows(rng, vectors, rows_ND, queries_BD, which):
    """Numbers of the rows that are dead."""
    n = len(rows_ND)
    if which == "near":  # all that the queries would have found
        best = exhaustive_search(np.arange(n), rows_ND, queries_BD, min(60, n))
        return np.unique(best.fact_ids_BK[best.fact_ids_BK >= 0])
    if which == "groups":
        return np.flatnonzero(np.arange(n) // 16 % 3 == 0)
    share = {"none": 0.0, "some": 0.2, "most": 0.99, "all": 1.1}[which]
    return np.flatnonzero(rng.random(n) < share)


def assert_best_live(index, vectors, rows_ND, queries_BD, k, dead_M):
    found = index.search(queries_BD, k, LiveRows.all_but(dead_M, len(rows_ND)))
    live_N = np.setdiff1d(np.arange(len(rows_ND)), dead_M)
    expected = exhaustive_search(vectors.fact_ids_N[live_N], rows_ND[live_N], queries_BD, k)
    np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)


def built(text, vectors, threads=2):
    return index_exactly(vectors, threads) if text == "few" else build_index(text, vectors, threads)


@pytest.mark.parametrize("which", ["none", "some", "near", "groups", "most", "all"])
@pytest.mark.parametrize("text", INDEXES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_that_of_brute_force_over_the_live_rows(kinds, make_shard, kind, text, which):
    rng = np.random.default_rng(11)
    rows_ND = kinds[kind](rng, 3001, 32)
    vectors = make_shard(rng, rows_ND, cuts=(1000, 1017))
    queries_BD = np.concatenate([kinds["random"](rng, 5, 32), rows_ND[:3], np.zeros((1, 32), np.float32)])
    dead_M = dead_rows(rng, vectors, rows_ND, queries_BD, which)
    index = built(text, vectors)
    assert isinstance(index, FewRows | ExactIndex)
    for k in (1, 10, 40):
        assert_best_live(index, vectors, rows_ND, queries_BD, k, dead_M)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    text=st.sampled_from(INDEXES),
    n=st.one_of(st.integers(1, 40), st.integers(1, 5000)),
    dim=st.sampled_from((1, 3, 64)),
    batch=st.integers(0, 40),
    k=st.sampled_from((1, 2, 10, 30, 100)),
    share=st.floats(0, 1),
    near=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_share_of_dead_rows(kinds, make_shard, seed, kind, text, n, dim, batch, k, share, near, threads):
    rng = np.random.default_rng(seed)
    rows_ND = kinds[kind](rng, n, dim)
    vectors = make_shard(rng, rows_ND, cuts=(n // 3,))
    queries_BD = kinds["random"](rng, batch, dim)
    dead_M = np.flatnonzero(rng.random(n) < share)
    if near and batch:
        dead_M = np.union1d(dead_M, dead_rows(rng, vectors, rows_ND, queries_BD, "near"))
    assert_best_live(built(text, vectors, threads), vectors, rows_ND, queries_BD, k, dead_M)


def test_dead_rows_around_a_query_cost_no_second_scan(kinds, make_shard, monkeypatch):
    rng = np.random.default_rng(5)
    rows_ND = kinds["random"](rng, 200_000, 16)
    vectors = make_shard(rng, rows_ND)
    queries_BD = kinds["random"](rng, 8, 16)
    index = built("exact?scan=bfloat16", vectors)
    assert isinstance(index, ExactIndex)
    dead_M = dead_rows(rng, vectors, rows_ND, queries_BD, "near")  # the 60 best of each
    scanned: list[str] = []
    for scan in BlockScan.__subclasses__():
        prepare = scan.prepare
        monkeypatch.setattr(
            scan, "prepare", lambda self, queries, prepare=prepare: scanned.append("") or prepare(self, queries)
        )
    assert_best_live(index, vectors, rows_ND, queries_BD, 10, dead_M)
    assert len(scanned) == 1
    assert index.counts.escalated == {"bfloat16": 0, "float32": 0}
