"""The proof: no bound lies below a true score, what cannot be proven escalates, broken products are noticed."""

import numpy as np
import pytest
import torch

from memory_store.mips import bounds as bounds_module
from memory_store.mips.bounds import QueryBounds, float32_error, round_down_float32
from memory_store.mips.calibrate import PRECISIONS, is_sound, measured_plan
from memory_store.mips.encode import GROUP_ROWS, encode
from memory_store.mips.maxima import by_bits, mostly_positive
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.registry import build_index
from memory_store.mips.rescore import NarrowQueries
from memory_store.mips.scan import BlockScan, CopyScan, StoredScan
from memory_store.mips.scratch import Scratch
from memory_store.mips.workers import Workers


def scan_of(precision, vectors) -> BlockScan:
    copy_ND, bounds = encode(vectors, PRECISIONS[precision].copy, Workers(1))
    return StoredScan(vectors, bounds) if copy_ND is None else CopyScan(precision, copy_ND, bounds)


def bounds_of(scan, queries_BD):
    """Upper bounds [G, B] in true units."""
    queries = scan.prepare(queries_BD.astype(np.float64))
    bounds_GB = torch.empty((scan.num_groups, len(queries_BD)))
    scan.scan(slice(0, scan.num_groups), queries, Scratch(), bounds_GB)
    return bounds_GB.numpy().astype(np.float64) * queries.bounds.unit_B


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("dim", [3, 64, 257])
def test_no_true_score_exceeds_the_bound_of_its_group(kinds, make_shard, precision, dim):
    for kind, make in kinds.items():
        rng = np.random.default_rng(11)
        rows_ND = make(rng, 40 * GROUP_ROWS, dim)
        queries_BD = np.concatenate([kinds["random"](rng, 15, dim), rows_ND[:1] + kinds["tiny"](rng, 1, dim)])
        true_NB = rows_ND.astype(np.float64) @ queries_BD.astype(np.float64).T
        true_GB = true_NB.reshape(-1, GROUP_ROWS, 16).max(axis=1)
        found_GB = bounds_of(scan_of(precision, make_shard(rng, rows_ND)), queries_BD)
        assert (found_GB >= true_GB).all(), kind


@pytest.mark.parametrize(("precision", "looseness"), [("int8", 0.03), ("bfloat16", 0.015), ("float32", 1e-4)])
def test_bounds_lie_close_above_the_true_scores(kinds, make_shard, precision, looseness):
    rng = np.random.default_rng(5)
    rows_ND, queries_BD = kinds["random"](rng, 160, 128), kinds["random"](rng, 16, 128)
    true_GB = (rows_ND.astype(np.float64) @ queries_BD.T).reshape(-1, GROUP_ROWS, 16).max(axis=1)
    found_GB = bounds_of(scan_of(precision, make_shard(rng, rows_ND)), queries_BD)
    allowed = looseness * np.linalg.norm(rows_ND, axis=1).max() * np.linalg.norm(queries_BD, axis=1)
    assert (found_GB - true_GB <= allowed).all()


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_with_bounds_that_leave_the_margin_out_rows_would_be_lost(
    kinds, make_shard, assert_exact, monkeypatch, precision
):
    rng = np.random.default_rng(2)
    mean_1D = kinds["random"](rng, 1, 64)
    rows_ND = mean_1D + np.float32(1e-6) * kinds["random"](rng, 5000, 64)  # too close for any of the three
    vectors, queries_BD = make_shard(rng, rows_ND), mean_1D + kinds["random"](rng, 20, 64)
    assert_exact(build_index(f"exact?scan={precision}", vectors), vectors, queries_BD, 10)

    honest = QueryBounds.of.__func__

    def without_margin(cls, queries, held, *, kernel, unit_B):
        bounds = honest(cls, queries, held, kernel=kernel, unit_B=unit_B)
        zero_B = torch.zeros_like(bounds.norm_weight_B)
        return QueryBounds(unit_B=unit_B, residual_weight_B=zero_B, norm_weight_B=zero_B)

    monkeypatch.setattr(bounds_module.QueryBounds, "of", classmethod(without_margin))
    # The floor keeps a margin of its own, as wide as that of the scan in float32, and would make up for it.
    monkeypatch.setattr(NarrowQueries, "true_floor", lambda narrow, kth_B: kth_B.astype(np.float64) * narrow._unit_B)
    found = build_index(f"exact?scan={precision}", vectors).search(queries_BD, 10)
    expected = exhaustive_search(vectors.fact_ids_N, rows_ND, queries_BD, 10)
    assert not np.array_equal(found.fact_ids_BK, expected.fact_ids_BK)


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_queries_too_close_for_a_low_precision_are_settled_in_float32(kinds, make_shard, assert_exact, precision):
    rng = np.random.default_rng(2)
    mean_1D = kinds["random"](rng, 1, 64)
    vectors = make_shard(rng, mean_1D + np.float32(1e-3) * kinds["random"](rng, 6000, 64))
    index = build_index(f"exact?scan={precision}", vectors, 2)
    assert_exact(index, vectors, mean_1D + np.float32(0.1) * kinds["random"](rng, 9, 64), 10)
    assert index.counts.escalated == {precision: 9, "float32": 0}
    assert index.counts.queries == 9


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_queries_too_close_for_float32_are_settled_in_float64(kinds, make_shard, assert_exact, precision):
    rng = np.random.default_rng(2)
    vectors = make_shard(rng, kinds["differences beyond float32"](rng, 6000, 64))
    index = build_index(f"exact?scan={precision}", vectors, 2)
    queries_BD = np.abs(kinds["random"](rng, 9, 64))
    assert_exact(index, vectors, queries_BD, 10)
    assert index.counts.escalated == {precision: 9, "float32": 9}


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_rows_that_float32_puts_in_the_wrong_order_are_ranked_in_float64(kinds, make_shard, assert_exact, precision):
    rng = np.random.default_rng(2)
    rows_ND, queries_BD = kinds["random"](rng, 6000, 64), kinds["random"](rng, 8, 64)
    for number, query_D in enumerate(queries_BD):  # 25 rows each, closer to one another than float32 can tell
        rows_ND[25 * number : 25 * (number + 1)] = query_D + np.float32(1e-7) * kinds["random"](rng, 25, 64)
    vectors = make_shard(rng, rows_ND)
    index = build_index(f"exact?scan={precision}", vectors, 2)
    assert_exact(index, vectors, queries_BD, 10)
    assert set(index.counts.escalated.values()) == {0}


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_queries_whose_every_score_is_negative_are_settled_by_the_scan(kinds, make_shard, assert_exact, precision):
    rng = np.random.default_rng(2)
    vectors, queries_BD = make_shard(rng, np.abs(kinds["random"](rng, 6000, 64))), -np.abs(kinds["random"](rng, 9, 64))
    index = build_index(f"exact?scan={precision}", vectors, 2)
    assert_exact(index, vectors, queries_BD, 10)
    assert set(index.counts.escalated.values()) == {0}


def test_a_query_whose_every_score_is_negative_among_others_is_answered_right(kinds, make_shard, assert_exact):
    rng = np.random.default_rng(2)
    rows_ND = np.abs(kinds["random"](rng, 6000, 64))
    vectors, queries_BD = make_shard(rng, rows_ND), np.concatenate([rows_ND[:100], -rows_ND[:1]])
    assert_exact(build_index("exact?scan=bfloat16", vectors, 2), vectors, queries_BD, 10)


def test_where_most_groups_have_a_positive_product_the_bits_name_the_largest_or_what_counts_as_0():
    rng = np.random.default_rng(4)
    rows_ND = torch.from_numpy(rng.standard_normal((100 * GROUP_ROWS, 8))).to(torch.bfloat16)
    queries_DB = torch.from_numpy(rng.standard_normal((8, 16))).to(torch.bfloat16)
    assert mostly_positive(rows_ND, queries_DB)
    assert not mostly_positive(rows_ND.abs(), torch.cat([queries_DB, -queries_DB.abs()[:, :1]], dim=1))
    products_gNB = (rows_ND @ queries_DB).view(100, GROUP_ROWS, 16)
    products_gNB[0] = -products_gNB[0].abs()
    found_gB = by_bits(products_gNB).amax(dim=1).clamp_(min=0).view(torch.bfloat16)
    assert torch.equal(found_gB, products_gNB.amax(dim=1).clamp(min=0))


def test_only_the_queries_that_need_it_escalate(kinds, make_shard, assert_exact):
    rng = np.random.default_rng(2)
    rows_ND = kinds["random"](rng, 6000, 64)
    rows_ND[:, 0] = 0
    rows_ND[:3000] = np.eye(1, 64, dtype=np.float32) + np.float32(1e-3) * kinds["random"](rng, 3000, 64)
    queries_BD = np.concatenate([np.eye(1, 64, dtype=np.float32) * 100, kinds["random"](rng, 7, 64)])
    queries_BD[1:, 0] = 0
    vectors = make_shard(rng, rows_ND)
    index = build_index("exact?scan=int8", vectors, 2)
    assert_exact(index, vectors, queries_BD, 10)
    assert index.counts.escalated == {"int8": 1, "float32": 0}


def test_easy_queries_are_settled_with_few_true_scores(kinds, make_shard):
    rng = np.random.default_rng(2)
    index = build_index("exact?scan=int8", make_shard(rng, kinds["random"](rng, 50_000, 64)), 2)
    index.search(kinds["random"](rng, 50, 64), 10)
    assert index.counts.escalated == {"int8": 0, "float32": 0}
    assert index.counts.looked_at_rows < 50 * 1000


def test_a_product_that_saturates_is_not_used(monkeypatch):
    def saturating(rows, queries, *, out):
        pairs = rows.int().unsqueeze(2) * queries.int().unsqueeze(0)  # [n, D, B]
        return out.copy_((pairs[:, 0::2] + pairs[:, 1::2]).clamp(-(2**14), 2**14 - 1).sum(dim=1))

    assert is_sound.__wrapped__("int8", 64)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not is_sound.__wrapped__("int8", 64)


def test_a_product_whose_sums_overflow_is_not_used(monkeypatch):
    def overflowing(rows, queries, *, out):
        exact_nB = rows.long() @ queries.long()
        return out.copy_((exact_nB + 2**19) % 2**20 - 2**19)

    monkeypatch.setattr(torch, "_int_mm", overflowing)
    assert is_sound.__wrapped__("int8", 16)  # 16 times 127 * 127 fits into 20 bits
    assert not is_sound.__wrapped__("int8", 48)


def test_a_bfloat16_sum_kept_in_bfloat16_is_not_used(monkeypatch):
    def forgetful(rows, queries, *, out):
        sum_nB = torch.zeros_like(out)
        for d in range(rows.shape[1]):
            sum_nB = sum_nB + torch.outer(rows[:, d], queries[d])
        return out.copy_(sum_nB)

    assert is_sound.__wrapped__("bfloat16", 64)
    monkeypatch.setattr(torch, "mm", forgetful)
    assert not is_sound.__wrapped__("bfloat16", 64)


def test_without_an_int8_product_the_index_scans_in_float32(kinds, make_shard, assert_exact, monkeypatch):
    monkeypatch.delattr(torch, "_int_mm")
    rng = np.random.default_rng(2)
    vectors = make_shard(rng, kinds["random"](rng, 2000, 19))  # a dimension no other test has asked about
    index = build_index("exact?scan=int8", vectors)
    assert index.plan.copy is None
    assert_exact(index, vectors, kinds["random"](rng, 5, 19), 10)


def test_small_indexes_keep_no_copy_and_measure_nothing():
    assert measured_plan(8192, 123_456) == PRECISIONS["float32"]


def test_a_measured_plan_scans_small_and_large_batches_from_one_copy():
    plan = measured_plan(100_000, 32)
    assert {plan.few, plan.many} <= {plan.copy, "float32"}
    assert measured_plan(200_000, 32) is plan


def test_float32_products_that_torch_may_shorten_get_a_wider_bound():
    before = float32_error(128)
    torch.set_float32_matmul_precision("medium")
    try:
        assert float32_error(128) > 2.0**-7
    finally:
        torch.set_float32_matmul_precision("highest")
    assert float32_error(128) == before < 1e-4


def test_rounding_down_gives_the_nearest_float32_that_is_not_above():
    values = np.array([1.0, 1 + 1e-12, -1 - 1e-12, 1e-60, -1e-60, 0.0, 16777217.0, 1e300, -1e300, -np.inf])
    rounded = round_down_float32(values)
    assert (rounded.astype(np.float64) <= values).all()
    assert (np.nextafter(rounded[:7], np.float32(np.inf)).astype(np.float64) > values[:7]).all()
    assert rounded[7:].tolist() == [float(np.finfo(np.float32).max), -np.inf, -np.inf]
