"""Few rows, multiplied as they lie, are searched as exactly as any others."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_store.errors import DimensionMismatch, InvalidVectors
from memory_store.mips import few_rows
from memory_store.mips.exact import ExactIndex
from memory_store.mips.few_rows import FEW_ROWS, FewRows, index_exactly
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.rescore import NarrowQueries

KIND_NAMES = (
    "random", "clustered", "duplicated", "all equal", "zero", "some zero", "sparse", "small whole numbers",
    "heavy tails", "norms from 1e-38 to 1e38", "denormal", "tiny", "huge", "one column", "common mean",
    "differences beyond float32",
)  # fmt: skip
SCALED = ("norms from 1e-38 to 1e38", "denormal", "tiny", "huge")  # float32 cannot multiply these as they are


def test_every_kind_of_vectors_is_walked(kinds):
    assert set(KIND_NAMES) == set(kinds)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_few_rows_of_every_kind_equal_brute_force(kinds, make_shard, assert_exact, kind):
    rng = np.random.default_rng(7)
    rows_ND = kinds[kind](rng, 3001, 64)
    queries_BD = np.concatenate(
        [kinds["random"](rng, 5, 64), rows_ND[:3], -rows_ND[3:4], np.zeros((1, 64), np.float32)]
    )
    for cuts in ((), (1000, 1017)):
        vectors = make_shard(rng, rows_ND, cuts=cuts)
        index = index_exactly(vectors, threads=2)
        assert isinstance(index, ExactIndex if kind in SCALED else FewRows)
        for k in (1, 10, 40, 3005):
            assert_exact(index, vectors, queries_BD, k)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KIND_NAMES),
    query_kind=st.sampled_from(KIND_NAMES),
    n=st.one_of(st.integers(1, 40), st.integers(1, 2500)),
    dim=st.sampled_from((1, 3, 64, 128, 257)),
    batch=st.integers(0, 140),
    k=st.sampled_from((1, 2, 10, 30, 100)),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    dtype=st.sampled_from(("float32", "float16", "bfloat16")),
)
def test_search_equals_brute_force(
    kinds, make_shard, assert_exact, seed, kind, query_kind, n, dim, batch, k, cuts, dtype
):
    rng = np.random.default_rng(seed)
    rows_ND = kinds[kind](rng, n, dim)
    if dtype == "float16":
        rows_ND = rows_ND.clip(-60_000, 60_000)
    vectors = make_shard(rng, rows_ND, cuts=[int(cut * n) for cut in cuts], dtype=dtype)
    assert_exact(index_exactly(vectors, 1), vectors, kinds[query_kind](rng, batch, dim), k)


def test_without_the_margin_of_float32_rows_would_be_lost(kinds, make_shard, assert_exact, monkeypatch):
    rng = np.random.default_rng(2)
    mean_1D = kinds["random"](rng, 1, 64)
    rows_ND = mean_1D + np.float32(1e-6) * kinds["random"](rng, 5000, 64)  # too close for float32 to order them
    vectors, queries_BD = make_shard(rng, rows_ND), mean_1D + kinds["random"](rng, 20, 64)
    index = index_exactly(vectors, 1)
    monkeypatch.setattr(few_rows, "_CROWD", 10**6)  # many rows come near here, and float64 would save us
    assert_exact(index, vectors, queries_BD, 10)
    monkeypatch.setattr(NarrowQueries, "near_limit", lambda narrow, kth_B: kth_B)
    found = index.search(queries_BD, 10)
    expected = exhaustive_search(vectors.fact_ids_N, rows_ND, queries_BD, 10)
    assert not np.array_equal(found.fact_ids_BK, expected.fact_ids_BK)


def test_nothing_is_held_of_rows_in_one_part_and_more_rows_get_the_index_exact(make_shard):
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((FEW_ROWS + 1, 4), dtype=np.float32)
    few = make_shard(rng, rows_ND[:-1])
    index = index_exactly(few, 2)
    assert isinstance(index, FewRows)
    assert index.nbytes == 0
    assert index_exactly(make_shard(rng, rows_ND[:-1], cuts=(5,)), 2).nbytes == rows_ND[:-1].nbytes
    assert isinstance(index_exactly(make_shard(rng, rows_ND), 2), ExactIndex)


def test_bad_queries_are_refused(make_shard):
    index = index_exactly(make_shard(np.random.default_rng(0), np.ones((5, 4), dtype=np.float32)), 1)
    with pytest.raises(DimensionMismatch, match=r"expected queries of shape \[batch, 4\], found \[2, 3\]"):
        index.search(np.ones((2, 3), dtype=np.float32), 1)
    with pytest.raises(InvalidVectors, match="query 1 holds NaN or infinity"):
        index.search(np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], dtype=np.float32), 1)
    with pytest.raises(ValueError, match="expected k >= 1, found 0"):
        index.search(np.ones((2, 4), dtype=np.float32), 0)
