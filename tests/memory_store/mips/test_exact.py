"""The exact index equals float64 brute force, whatever it scans with and whatever it scans."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_store.errors import DimensionMismatch, InvalidVectors, UnknownIndex
from memory_store.mips.base import ShardVectors
from memory_store.mips.exact import build_exact
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.registry import INDEXES, build_index

SCANS = ("auto", "int8", "bfloat16", "float32", "float64")
DIMS = (1, 3, 64, 128, 257)
KIND_NAMES = (
    "random", "clustered", "duplicated", "all equal", "zero", "some zero", "sparse", "small whole numbers",
    "heavy tails", "norms from 1e-38 to 1e38", "denormal", "tiny", "huge", "one column", "common mean",
    "differences beyond float32",
)  # fmt: skip


def test_every_kind_of_vectors_is_walked(kinds):
    assert set(KIND_NAMES) == set(kinds)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_scan_equals_brute_force_on_every_kind_of_vectors(kinds, make_shard, assert_exact, kind, scan):
    rng = np.random.default_rng(7)
    rows_ND = kinds[kind](rng, 3001, 64)
    vectors = make_shard(rng, rows_ND, cuts=(1000, 1017))
    index = build_index(f"exact?scan={scan}", vectors, threads=2)
    queries_BD = np.concatenate(
        [kinds["random"](rng, 5, 64), rows_ND[:3], -rows_ND[3:4], np.zeros((1, 64), np.float32)]
    )
    for k in (1, 10, 40):
        assert_exact(index, vectors, queries_BD, k)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KIND_NAMES),
    query_kind=st.sampled_from(KIND_NAMES),
    scan=st.sampled_from(SCANS),
    n=st.one_of(st.integers(0, 40), st.integers(0, 2500)),
    dim=st.sampled_from(DIMS),
    batch=st.integers(0, 40),
    k=st.sampled_from((1, 2, 10, 30, 100)),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    dtype=st.sampled_from(("float32", "float16", "bfloat16")),
    threads=st.integers(1, 3),
)
def test_search_equals_brute_force(
    kinds, make_shard, assert_exact, seed, kind, query_kind, scan, n, dim, batch, k, cuts, dtype, threads
):
    rng = np.random.default_rng(seed)
    rows_ND = kinds[kind](rng, n, dim)
    if dtype == "float16":
        rows_ND = rows_ND.clip(-60_000, 60_000)
    vectors = make_shard(rng, rows_ND, cuts=[int(cut * n) for cut in cuts], dtype=dtype)
    queries_BD = kinds[query_kind](rng, batch, dim)
    assert_exact(build_index(f"exact?scan={scan}", vectors, threads), vectors, queries_BD, k)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("batch", [1, 2, 3, 128, 129, 512])
def test_every_size_of_batch_equals_brute_force(make_shard, assert_exact, kinds, dim, batch):
    rng = np.random.default_rng(batch)
    vectors = make_shard(rng, kinds["random"](rng, 1500, dim))
    for scan in ("int8", "bfloat16", "float32"):
        assert_exact(build_index(f"exact?scan={scan}", vectors, 2), vectors, kinds["random"](rng, batch, dim), 10)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 639, 640, 641, 1023, 1024, 1025, 9000])
def test_every_number_of_rows_around_a_group_a_band_and_a_block_equals_brute_force(make_shard, assert_exact, kinds, n):
    rng = np.random.default_rng(n)
    vectors = make_shard(rng, kinds["random"](rng, n, 24), cuts=(n // 2,))
    for scan in SCANS:
        index = build_index(f"exact?scan={scan}", vectors, 2)
        for k in (1, 10, 100, n + 1):
            assert_exact(index, vectors, kinds["random"](rng, 3, 24), k)


@pytest.mark.parametrize("kind", ["random", "all equal", "heavy tails"])
def test_a_hundred_thousand_rows_equal_brute_force(kinds, make_shard, assert_exact, kind):
    rng = np.random.default_rng(3)
    rows_ND = kinds[kind](rng, 100_000, 32)
    vectors = make_shard(rng, rows_ND, cuts=(30_000,))
    index = build_index("exact", vectors, 2)
    assert_exact(index, vectors, kinds["random"](rng, 20, 32), 10)


def test_of_equal_rows_the_smallest_ids_are_found_in_order(make_shard):
    rng = np.random.default_rng(0)
    vectors = make_shard(rng, np.ones((20_000, 16), dtype=np.float32))
    for scan in SCANS:
        found = build_index(f"exact?scan={scan}", vectors, 2).search(np.ones((3, 16), dtype=np.float32), 10)
        np.testing.assert_array_equal(found.fact_ids_BK, np.tile(np.sort(vectors.fact_ids_N)[:10], (3, 1)))
        np.testing.assert_array_equal(found.scores_BK, 16.0)


def test_searches_from_many_threads_at_once_do_not_disturb_each_other(kinds, make_shard):
    rng = np.random.default_rng(1)
    rows_ND = kinds["random"](rng, 5000, 32)
    vectors = make_shard(rng, rows_ND)
    index = build_index("exact?scan=int8", vectors, 2)
    batches = [kinds["random"](rng, size, 32) for size in (1, 3, 17, 40)]
    agreed: list[bool] = []

    def search(number: int) -> None:
        expected = exhaustive_search(vectors.fact_ids_N, rows_ND, batches[number], 10)
        found = [index.search(batches[number], 10) for _ in range(10)]
        agreed.append(all(np.array_equal(one.fact_ids_BK, expected.fact_ids_BK) for one in found))

    threads = [threading.Thread(target=search, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agreed == [True] * len(batches)


def test_an_int8_index_holds_a_quarter_of_the_rows_bytes_and_little_more(kinds, make_shard):
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 50_000, 128))
    rows_bytes = 50_000 * 128 * 4
    assert rows_bytes / 4 < build_index("exact?scan=int8", vectors).nbytes < rows_bytes / 4 * 1.05
    assert build_index("exact?scan=float32", vectors).nbytes < rows_bytes / 50


def test_bad_queries_are_refused(kinds, make_shard):
    index = build_index("exact", make_shard(np.random.default_rng(0), np.ones((5, 4), dtype=np.float32)))
    with pytest.raises(DimensionMismatch, match=r"expected queries of shape \[batch, 4\], found \[2, 3\]"):
        index.search(np.ones((2, 3), dtype=np.float32), 1)
    with pytest.raises(InvalidVectors, match="query 1 holds NaN or infinity"):
        index.search(np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], dtype=np.float32), 1)
    with pytest.raises(ValueError, match="expected k >= 1, found 0"):
        index.search(np.ones((2, 4), dtype=np.float32), 0)


def test_an_unknown_index_option_or_precision_is_refused_by_name():
    nothing = ShardVectors(np.zeros(0, dtype=np.int64), [], 4)
    with pytest.raises(UnknownIndex, match="did you mean 'exact'"):
        build_index("exakt", nothing)
    with pytest.raises(UnknownIndex, match="did you mean 'scan'"):
        build_index("exact?scam=int8", nothing)
    with pytest.raises(UnknownIndex, match=r"one of auto, int8, .*found 'int7'"):
        build_exact(nothing, {"scan": "int7"}, 1)
    assert INDEXES["exact"].exact
