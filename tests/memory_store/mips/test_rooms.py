"""The small rooms of the index: gathering, true scores, copies, duplicates, worker threads."""

import os
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store.mips.dense import first_copies
from memory_store.mips.encode import copy_rows, encode, padded
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.rescore import score_pairs
from memory_store.mips.workers import Workers, builders


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 9, 64, 128, 129, 257, 1000, 8191, 8192, 8193, 20_001])
def test_identical_rows_score_the_same_to_the_bit_wherever_they_lie(make_shard, rng, dim):
    row_D, query_D = rng.standard_normal((2, dim), dtype=np.float32)
    copies = 50 if dim > 1000 else 3000
    vectors = make_shard(rng, np.tile(row_D, (copies, 1)), cuts=(7, copies // 2))
    rows_P, query_P = rng.permutation(copies), np.zeros(copies, dtype=np.int64)
    scores_P = score_pairs(vectors, rows_P, query_D.astype(np.float64)[None], query_P)
    assert len(np.unique(scores_P)) == 1
    alone = score_pairs(vectors, rows_P[:1], query_D.astype(np.float64)[None], query_P[:1])
    assert alone[0] == scores_P[0]
    assert scores_P[0] == pytest.approx(float(np.dot(row_D.astype(np.float64), query_D)), rel=1e-9, abs=1e-9)


def test_brute_force_sorts_ties_by_the_smaller_id_and_pads_with_minus_one():
    answer = exhaustive_search(
        np.array([7, 3, 5]), np.array([[1.0], [1.0], [2.0]], dtype=np.float32), np.array([[1.0], [-1.0]]), 4
    )
    assert answer.fact_ids_BK.tolist() == [[5, 3, 7, -1], [3, 7, 5, -1]]
    assert answer.scores_BK.tolist() == [[2.0, 1.0, 1.0, -np.inf], [-1.0, -1.0, -2.0, -np.inf]]


@given(n=st.integers(1, 60), cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 99))
def test_rows_are_gathered_and_copied_across_chunks_as_from_one_array(make_shard, n, cuts, seed):
    rng = np.random.default_rng(seed)
    rows_ND = rng.standard_normal((n, 3), dtype=np.float32)
    vectors = make_shard(rng, rows_ND, cuts=[min(cut, n) for cut in cuts])
    wanted = rng.integers(n, size=20)
    np.testing.assert_array_equal(vectors.gather(wanted), rows_ND[wanted])
    groups = np.sort(rng.integers(-(-n // 4), size=9))
    out_nD = np.empty((36, 3), dtype=np.float32)
    vectors.gather_groups(groups, 4, out_nD)
    np.testing.assert_array_equal(out_nD, rows_ND[(groups[:, None] * 4 + np.arange(4)).ravel().clip(max=n - 1)])
    start = int(rng.integers(n))
    out_nD = np.empty((17, 3), dtype=np.float32)
    copy_rows(vectors, start, 2.0, out_nD)
    np.testing.assert_array_equal(out_nD, 2 * rows_ND[np.arange(start, start + 17).clip(max=n - 1)])


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_copy_differs_from_its_rows_by_no_more_than_its_bounds_say(make_shard, kinds, precision):
    for kind, make in kinds.items():
        rng = np.random.default_rng(4)
        rows_ND = make(rng, 100, 64)
        copy_ND, bounds = encode(make_shard(rng, rows_ND), precision, Workers(2))
        assert copy_ND.shape == (padded(100), 64) == (112, 64)
        group_N = np.arange(100) // 16
        held_ND = copy_ND[:100].double().numpy() * bounds.scale_G[group_N, None]
        wide_ND = rows_ND.astype(np.float64)
        assert (np.linalg.norm(wide_ND - held_ND, axis=1) <= bounds.residual_G[group_N]).all(), kind
        assert (np.linalg.norm(wide_ND, axis=1) <= bounds.norm_G[group_N]).all(), kind
        assert (np.linalg.norm(held_ND, axis=1) <= bounds.norm_G[group_N]).all(), kind


@given(values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0]), min_size=1, max_size=40), k=st.integers(1, 5))
def test_only_rows_that_k_equal_rows_of_smaller_id_precede_are_surplus(values, k):
    rows_nD = np.array(values, dtype=np.float32)[:, None].repeat(3, axis=1)
    ids_n = np.random.default_rng(len(values)).permutation(len(values))
    smaller_n = [((rows_nD[:, 0] == row[0]) & (ids_n < own)).sum() for row, own in zip(rows_nD, ids_n, strict=True)]
    np.testing.assert_array_equal(first_copies(rows_nD, ids_n, k), np.array(smaller_n) < k)


def test_workers_compute_on_one_core_each_and_leave_the_callers_threads_alone():
    before = torch.get_num_threads()
    workers = Workers(3)
    seen: list[tuple[str, int]] = []
    together = threading.Barrier(3)

    def task(_worker: int) -> None:
        together.wait(timeout=10)  # all three run at once
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    workers.run(task)
    assert {count for _, count in seen} == {1}
    assert len({name for name, _ in seen}) == 3
    assert torch.get_num_threads() == before
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


def test_an_error_in_a_worker_reaches_the_caller_after_all_have_stopped():
    stopped = []

    def task(worker: int) -> None:
        if worker == 0:
            raise ZeroDivisionError("worker 0")
        stopped.append(worker)

    with pytest.raises(ZeroDivisionError, match="worker 0"):
        Workers(3).run(task)
    assert sorted(stopped) == [1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_builders_give_way_and_nobody_else_does():
    def niceness(_worker: int) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    seen: list[int] = []
    own = os.getpriority(os.PRIO_PROCESS, 0)
    builders(2).run(niceness)
    Workers(2).run(niceness)
    niceness(0)
    assert seen == [min(own + 10, 19)] * 2 + [own] * 3


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="expected at least one thread, found 0"):
        Workers(0)
