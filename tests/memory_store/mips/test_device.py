"""The exact index on a device: the same answers to the bit, a proof that holds there, and what is done without room.

The steps that a GPU would take run on torch's CPU device everywhere, and on a GPU where torch can use one.
"""

import threading
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from memory_store import MemoryWriter, open_memory
from memory_store.errors import DeviceUnavailable, UnknownIndex
from memory_store.index_files import IndexedRows, open_index
from memory_store.mips import device as device_module
from memory_store.mips import exact as exact_module
from memory_store.mips.base import IndexSpec, parse_index
from memory_store.mips.bounds import bfloat16_error, float32_error
from memory_store.mips.device import gpu_bytes, gpu_share, is_sound_on
from memory_store.mips.device_scan import DeviceScan, device_bytes
from memory_store.mips.encode import GROUP_ROWS, encode
from memory_store.mips.registry import INDEXES, build_index
from memory_store.mips.workers import Workers
from memory_store.storage import Storage

COPIES = ("int8", "bfloat16", "float32")
HERE = torch.device("cpu")
DEVICES = [
    HERE,
    pytest.param(
        torch.device("cuda", 0),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's CPU device computes in the thread that asks; several that wait for each other suffer from other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=DEVICES, ids=str)
def device(request, monkeypatch) -> torch.device:
    """What `exact?device=cuda` scans on."""
    monkeypatch.setattr(device_module, "_cuda", lambda: request.param)
    return request.param


def scan_on(device, precision, vectors) -> DeviceScan:
    copy_ND, bounds = encode(vectors, precision, Workers(1))
    return DeviceScan(precision, copy_ND, bounds, device)


@pytest.mark.parametrize("scan", ["auto", *COPIES])
def test_a_device_equals_brute_force_on_every_kind_of_vectors(device, kinds, make_shard, assert_exact, scan):
    for make in kinds.values():
        rng = np.random.default_rng(7)
        rows_ND = make(rng, 1501, 64)
        vectors = make_shard(rng, rows_ND, cuts=(1000, 1017))
        index = build_index(f"exact?device=cuda&scan={scan}", vectors, threads=2)
        assert index.device == str(device)
        queries_BD = np.concatenate([kinds["random"](rng, 5, 64), rows_ND[:3], np.zeros((1, 64), np.float32)])
        for k in (1, 10):
            assert_exact(index, vectors, queries_BD, k)


@pytest.mark.parametrize("n", [640, 1023, 1024, 1025, 1041, 20_000])
def test_every_number_of_rows_around_a_band_and_a_block_equals_brute_force(device, kinds, make_shard, assert_exact, n):
    rng = np.random.default_rng(n)
    vectors = make_shard(rng, kinds["random"](rng, n, 24), cuts=(n // 2,), dtype="float16")
    for scan in COPIES:
        index = build_index(f"exact?device=cuda&scan={scan}", vectors, 2)
        for k in (1, 10, 100):
            assert_exact(index, vectors, kinds["random"](rng, 129, 24), k)


@pytest.mark.parametrize("dim", [1, 3, 128, 257])
@pytest.mark.parametrize("batch", [1, 2, 3, 128, 300])
def test_every_size_of_batch_equals_brute_force_on_a_device(device, kinds, make_shard, assert_exact, dim, batch):
    rng = np.random.default_rng(batch)
    vectors = make_shard(rng, kinds["random"](rng, 1500, dim))
    for scan in COPIES:
        index = build_index(f"exact?device=cuda&scan={scan}", vectors, 2)
        assert_exact(index, vectors, kinds["random"](rng, batch, dim), 10)


@pytest.mark.parametrize("precision", COPIES)
@pytest.mark.parametrize("dim", [3, 64, 257])
def test_no_true_score_exceeds_the_bound_of_its_group_on_a_device(device, kinds, make_shard, precision, dim):
    if not is_sound_on(precision, dim, device):
        pytest.skip(f"{device} has no {precision} products of {dim} values")
    for kind, make in kinds.items():
        rng = np.random.default_rng(11)
        rows_ND = make(rng, 70 * GROUP_ROWS, dim)
        queries_BD = np.concatenate([kinds["random"](rng, 15, dim), rows_ND[:1] + kinds["tiny"](rng, 1, dim)])
        true_NB = rows_ND.astype(np.float64) @ queries_BD.astype(np.float64).T
        true_GB = true_NB.reshape(-1, GROUP_ROWS, 16).max(axis=1)
        found = scan_on(device, precision, make_shard(rng, rows_ND)).upper_bounds(queries_BD.astype(np.float64))
        bounds_GB = found.bounds_SGb.cpu().double().numpy().reshape(-1, 16)
        assert (bounds_GB[:70] * found.unit_b >= true_GB).all(), kind
        assert (bounds_GB[70:] == -np.inf).all()


def test_queries_too_close_for_a_device_are_settled_in_higher_precision(device, kinds, make_shard, assert_exact):
    rng = np.random.default_rng(2)
    mean_1D = kinds["random"](rng, 1, 64)
    vectors = make_shard(rng, mean_1D + np.float32(1e-3) * kinds["random"](rng, 6000, 64))
    queries_BD = mean_1D + np.float32(0.1) * kinds["random"](rng, 9, 64)
    index = build_index("exact?device=cuda&scan=int8", vectors, 2)
    assert_exact(index, vectors, queries_BD, 10)
    assert index.counts.escalated == {"int8": 9, "float32": 0}
    alike = make_shard(rng, kinds["differences beyond float32"](rng, 6000, 64))
    index = build_index("exact?device=cuda&scan=float32", alike, 2)
    assert_exact(index, alike, np.abs(queries_BD), 10)
    assert index.counts.escalated == {"float32": 9}


def test_searches_from_many_threads_share_one_device(device, kinds, make_shard, assert_exact):
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 5000, 32))
    index = build_index("exact?device=cuda&scan=int8", vectors, 2)
    right: list[int] = []

    def search(size: int) -> None:
        for _ in range(5):
            assert_exact(index, vectors, kinds["random"](np.random.default_rng(size), size, 32), 10)
        right.append(size)

    threads = [threading.Thread(target=search, args=(size,)) for size in (1, 3, 17, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == [1, 3, 17, 40]


def test_a_device_takes_no_more_memory_than_planned(device, kinds, make_shard):
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 30_000, 128))
    for scan in COPIES:
        index = build_index(f"exact?device=cuda&scan={scan}", vectors)
        before = index.nbytes
        index.search(kinds["random"](rng, 200, 128), 10)
        grown = index.nbytes - before  # what the settling workers keep in main memory
        assert grown <= sum(scratch.nbytes for scratch in index._idle_workspace.of_worker)
        assert before <= device_bytes(30_000, 128, scan, device)


def rounded_to(bits):
    """A float32 product whose factors are rounded to so many bits, as TF32 rounds them to 11."""

    def product(rows, queries, *, out):
        short = [torch.from_numpy(_shortened(factors.numpy(), bits)) for factors in (rows, queries)]
        return out.copy_(short[0] @ short[1])

    return product


def _shortened(values, bits):
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * 2.0**bits) / 2.0**bits, exponent).astype(np.float32)


@pytest.mark.parametrize("dim", [8, 64, 1024])
def test_a_float32_product_in_fewer_bits_is_not_used_unless_it_was_allowed(monkeypatch, dim):
    assert is_sound_on.__wrapped__("float32", dim, HERE)
    monkeypatch.setattr(torch, "mm", rounded_to(11))
    assert not is_sound_on.__wrapped__("float32", dim, HERE)
    with float32_precision("high"):
        assert is_sound_on.__wrapped__("float32", dim, HERE)


def test_sums_that_are_split_and_rounded_need_the_wider_bound_of_cuda(monkeypatch):
    def split(rows, queries, *, out):
        exact = zip(rows.double().chunk(4, dim=1), queries.double().chunk(4), strict=True)
        total_nB = torch.zeros_like(out)
        for part_nD, part_DB in exact:
            total_nB = total_nB + (part_nD @ part_DB).to(torch.bfloat16)
        return out.copy_(total_nB)

    monkeypatch.setattr(torch, "mm", split)
    monkeypatch.setattr(DeviceScan, "_kernel_error", lambda scan: bfloat16_error(64, "cuda"))
    assert is_sound_on.__wrapped__("bfloat16", 64, HERE)
    monkeypatch.setattr(torch, "mm", lambda rows, queries, *, out: out.copy_((rows.double() @ queries.double()) * 0.97))
    assert not is_sound_on.__wrapped__("bfloat16", 64, HERE)


def test_products_that_are_wrong_or_not_there_are_not_used(monkeypatch, kinds, make_shard, assert_exact):
    monkeypatch.setattr(device_module, "_cuda", lambda: HERE)

    def only_in_large_blocks(rows, queries, *, out):
        if len(rows) < 2048:
            raise RuntimeError("self.size(0) needs to be greater than 2048")
        return out.copy_(rows.int() @ queries.int())

    monkeypatch.setattr(torch, "_int_mm", only_in_large_blocks)
    assert not is_sound_on.__wrapped__("int8", 19, HERE)
    rng = np.random.default_rng(2)
    vectors = make_shard(rng, kinds["random"](rng, 2000, 19))  # a dimension no other test has asked about
    index = build_index("exact?device=cuda&scan=int8", vectors)
    assert index.plan.copy == "float32"
    assert_exact(index, vectors, kinds["random"](rng, 5, 19), 10)


@contextmanager
def float32_precision(setting):
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float32_on_cuda_knows_every_way_to_allow_tf32(monkeypatch):
    kept = float32_error(128, "cuda")
    assert kept < 1e-4
    with float32_precision("high"):
        assert float32_error(128, "cuda") > 2.0**-7
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert float32_error(128, "cuda") > 2.0**-7
    assert float32_error(128) < kept
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr("memory_store.mips.bounds._cuda_precision", lambda: "tf32")
    assert float32_error(128, "cuda") > 2.0**-7
    assert float32_error(128) < kept


def test_bfloat16_on_cuda_knows_whether_sums_may_be_rounded(monkeypatch):
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    try:
        settings.allow_bf16_reduced_precision_reduction = False
        kept = bfloat16_error(128, "cuda")
        settings.allow_bf16_reduced_precision_reduction = True
        assert bfloat16_error(128, "cuda") == kept + 2.0**-6
    finally:
        settings.allow_bf16_reduced_precision_reduction = before
    assert bfloat16_error(128) < kept


def test_without_a_gpu_cuda_is_refused_and_auto_searches_here(monkeypatch, caplog, kinds, make_shard, assert_exact):
    monkeypatch.setattr(device_module, "_cuda", lambda: None)
    monkeypatch.setattr(device_module, "_WORTH_A_DEVICE", 0)
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 1000, 16))
    with pytest.raises(DeviceUnavailable, match=r"expected a GPU .* found none; .*CUDA_VISIBLE_DEVICES.*device=cpu"):
        build_index("exact?device=cuda", vectors)
    index = build_index("exact?device=auto", vectors)
    assert index.device == "cpu"
    assert not caplog.records
    assert_exact(index, vectors, kinds["random"](rng, 5, 16), 10)


@pytest.mark.parametrize("runs_out", ["before", "while building"])
def test_without_room_cuda_is_refused_and_auto_searches_here(
    device, monkeypatch, caplog, kinds, make_shard, assert_exact, runs_out
):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 1000, 16))
    build_index("exact?device=cuda", vectors)  # probes what is probed once
    if runs_out == "before":
        monkeypatch.setattr(device_module, "_free_bytes", lambda device: 2**20)
    else:
        monkeypatch.setattr(DeviceScan, "_take", full)
    monkeypatch.setattr(device_module, "_WORTH_A_DEVICE", 0)
    expected = "GiB free on .* for 1,000 rows of 16 values" if runs_out == "before" else "CUDA out of memory"
    with pytest.raises(DeviceUnavailable, match=f"{expected}.*; use more shards on more GPUs, or exact.device=auto"):
        build_index("exact?device=cuda", vectors)
    index = build_index("exact?device=auto", vectors)
    assert index.device == "cpu"
    assert ["this processor searches in place of a GPU" in record.message for record in caplog.records] == [True]
    assert_exact(index, vectors, kinds["random"](rng, 5, 16), 10)


def test_a_search_that_finds_the_memory_gone_goes_on_here(device, monkeypatch, kinds, make_shard, assert_exact):
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 5000, 16))
    index = build_index("exact?device=cuda&scan=int8", vectors)
    honest, calls = DeviceScan.upper_bounds, []

    def sometimes_full(scan, queries_BD):
        calls.append(len(queries_BD))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return honest(scan, queries_BD)

    monkeypatch.setattr(DeviceScan, "upper_bounds", sometimes_full)
    assert_exact(index, vectors, kinds["random"](rng, 200, 16), 10)
    assert index.counts.escalated == {"int8": 128, "float32": 0}
    assert_exact(index, vectors, kinds["random"](rng, 20, 16), 10)
    assert index.counts.escalated == {"int8": 128, "float32": 0}


def test_auto_wakes_no_device_for_few_rows(device, kinds, make_shard):
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 1000, 16))
    assert build_index("exact?device=auto", vectors).device == "cpu"
    assert build_index("exact", vectors).device == "cpu"
    assert build_index("exact?device=cuda&scan=float64", vectors).device == "cpu"


def test_a_copy_is_saved_from_a_device_and_read_to_it(device, monkeypatch, tmp_path, kinds, make_shard, assert_exact):
    monkeypatch.setattr(exact_module, "_SAVED_VALUES", 0)
    rng = np.random.default_rng(1)
    vectors = make_shard(rng, kinds["random"](rng, 3000, 32))
    rows = IndexedRows(main="main", slices=(("checksum", 0, 3000),))
    storage, text = Storage(str(tmp_path)), "exact?device=cuda&scan=int8"
    built = open_index(storage, text, vectors, 2, rows)
    monkeypatch.setattr(exact_module, "encode", None)  # not called again
    read = open_index(storage, f"{text}&gpus=0.5", vectors, 2, rows)
    assert read is not built
    assert read.device == str(device)
    assert_exact(read, vectors, kinds["random"](rng, 20, 32), 10)


def test_a_memory_on_a_device_answers_as_any_other_while_it_changes(device, tmp_path, rng):
    url, queries_BD = str(tmp_path / "kb"), rng.standard_normal((20, 16)).astype(np.float32)

    def facts(ids):
        return pa.table({"fact_id": ids}), rng.standard_normal((len(ids), 16)).astype(np.float32)

    with MemoryWriter(url, dim=16) as writer:
        writer.append(*facts(np.arange(3000)))
    with open_memory(url, 2, "exact?device=cuda", threads=1) as there, open_memory(url, threads=1) as here:

        def agree():
            here.refresh()
            found, expected = there.search(queries_BD, 10), here.search(queries_BD, 10)
            np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
            np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)

        agree()
        there.upsert(*facts(np.arange(2900, 3100)))
        agree()
        there.delete(there.search(queries_BD, 3).fact_ids_BK.ravel()[:9])
        agree()
        there.reindex(index="exact?device=cuda&scan=float32")
        agree()
        assert {line.device for line in there.stats().shards} == {str(device)}


def test_a_share_of_a_gpu_is_above_zero_and_at_most_one():
    def share(text):
        return gpu_share(parse_index(text, INDEXES))

    assert [share(text) for text in ("exact", "exact?device=cpu", "exact?device=cuda", "exact?device=auto")] == [
        0,
        0,
        1,
        1,
    ]
    assert share("exact?device=cuda&gpus=0.25") == 0.25
    for wrong in (
        "device=cuda&gpus=0",
        "device=cuda&gpus=2",
        "device=cuda&gpus=nan",
        "device=auto&gpus=half",
        "gpus=1",
    ):
        with pytest.raises(UnknownIndex, match="gpus= above 0 and at most 1, with device=cuda or device=auto"):
            share(f"exact?{wrong}")
    with pytest.raises(UnknownIndex, match="device= to be one of cpu, cuda, auto, found 'gpu'"):
        share("exact?device=gpu")


def test_what_a_gpu_must_hold_is_known_before():
    million = [
        gpu_bytes(IndexSpec("exact", {"device": "cuda", "scan": scan}), 10**6, 128)
        for scan in ("int8", "auto", "float32")
    ]
    assert [later - earlier for earlier, later in pairwise(million)] == [
        128 * 1_000_448,
        2 * 128 * 1_000_448,
    ]
    assert million[0] < 2**30
    assert gpu_bytes(IndexSpec("exact", {}), 10**6, 128) == 0
