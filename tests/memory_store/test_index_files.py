"""Built indexes are saved by the main parts they are over, read again, refused when damaged, and swept with them."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from memory_store.compaction import compact
from memory_store.errors import StorageFailed
from memory_store.index_files import IndexedRows, index_path, open_index
from memory_store.index_names import main_name, main_of
from memory_store.manifest import read_manifest
from memory_store.mips.base import MipsIndex, RegisteredIndex, ShardVectors, parse_index
from memory_store.mips.registry import INDEXES
from memory_store.shard import Shard, ShardConfig
from memory_store.storage import Storage
from memory_store.upkeep import sweep
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

ROWS = IndexedRows(main="0123456789abcdef", slices=(("xxh3-128:00", 0, 400),))


@pytest.fixture
def vectors(rng: np.random.Generator) -> ShardVectors:
    return ShardVectors(np.arange(400), [rng.standard_normal((400, 8), dtype=np.float32)], 8)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every index that is built, not read, while a test runs."""
    built: list[str] = []

    def counting(registered: RegisteredIndex) -> RegisteredIndex:
        def build(vectors: ShardVectors, spec: object, threads: int) -> MipsIndex:
            built.append(registered.name)
            return registered.build(vectors, spec, threads)  # type: ignore[arg-type]

        fields = {name: getattr(registered, name) for name in registered.__dataclass_fields__}
        return RegisteredIndex(**{**fields, "build": build})

    counted = {name: counting(registered) for name, registered in INDEXES.items()}
    for module in ("memory_store.index_files", "memory_store.mips.registry"):
        monkeypatch.setattr(f"{module}.INDEXES", counted)
    return built


def answers(index: MipsIndex) -> NDArray[np.int64]:
    return index.search(np.random.default_rng(0).standard_normal((7, 8), dtype=np.float32), 10).fact_ids_BK


def test_an_index_is_built_once_and_then_read(storage, vectors, builds):
    first = open_index(storage, "ivf", vectors, 1, ROWS)
    second = open_index(storage, "ivf", vectors, 1, ROWS)
    assert builds == ["ivf"]
    np.testing.assert_array_equal(answers(first), answers(second))


def test_options_of_a_search_share_a_file_and_options_of_the_build_do_not(storage, vectors, builds):
    for text in ("ivf?nlist=8&nprobe=2", "ivf?nprobe=4&nlist=8", "ivf?nlist=8"):
        open_index(storage, text, vectors, 1, ROWS)
    assert builds == ["ivf"]
    open_index(storage, "ivf?nlist=9", vectors, 1, ROWS)
    assert builds == ["ivf", "ivf"]


def test_other_rows_or_other_main_parts_have_another_file():
    others = [
        IndexedRows(main="fedcba9876543210", slices=ROWS.slices),
        IndexedRows(main=ROWS.main, slices=(("xxh3-128:01", 0, 400),)),
        IndexedRows(main=ROWS.main, slices=(("xxh3-128:00", 0, 399),)),
    ]
    assert len({index_path("ivf", rows) for rows in (ROWS, *others)}) == 4


@pytest.mark.parametrize("text", ["ivf", "hnsw"])
def test_a_truncated_flipped_or_foreign_file_is_built_again_with_a_warning(storage, vectors, builds, caplog, text):
    expected = answers(open_index(storage, text, vectors, 1, ROWS))
    path = index_path(text, ROWS)
    whole = storage.read_bytes(path)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    for damaged in (whole[:-1], whole[:10], b"", flipped, b"PK" + bytes(500)):
        storage.write_atomic(path, damaged)
        storage.forget(path)
        builds.clear()
        with caplog.at_level(logging.WARNING, logger="memory_store"):
            found = open_index(storage, text, vectors, 1, ROWS)
        assert builds == [text]
        assert "is built again" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(answers(found), expected)
        assert len(storage.read_bytes(path)) == len(whole), "the damaged file is replaced"


def test_a_memory_that_cannot_be_written_serves_without_the_file(storage, vectors, monkeypatch, caplog):
    def refuse(path: str, _write: object) -> None:
        raise StorageFailed(f"cannot write {path}: read-only")

    monkeypatch.setattr(storage, "write_atomic", refuse)
    with caplog.at_level(logging.WARNING, logger="memory_store"):
        assert answers(open_index(storage, "ivf", vectors, 1, ROWS)).shape == (7, 10)
    assert "is not saved" in caplog.text


@pytest.mark.parametrize("scan", ["int8", "bfloat16", "float32"])
def test_a_large_exact_index_is_read_again_and_gives_the_same_answers(storage, vectors, builds, monkeypatch, scan):
    monkeypatch.setattr("memory_store.mips.exact._SAVED_VALUES", 1)
    first = open_index(storage, f"exact?scan={scan}", vectors, 1, ROWS)
    second = open_index(storage, f"exact?scan={scan}", vectors, 1, ROWS)
    assert builds == ["exact"]
    queries_BD = np.random.default_rng(1).standard_normal((7, 8), dtype=np.float32)
    for k in (1, 3):
        expected, found = first.search(queries_BD, k), second.search(queries_BD, k)
        np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
        np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
    assert second.counts.escalated == first.counts.escalated, "the proofs are those of the index that was saved"


def test_a_copy_that_this_processor_would_not_choose_is_built_again(storage, vectors, builds, monkeypatch):
    monkeypatch.setattr("memory_store.mips.exact._SAVED_VALUES", 1)
    saved = open_index(storage, "exact?scan=int8", vectors, 1, ROWS)
    arrays = saved.saved_arrays
    with pytest.raises(ValueError, match="expected a copy in"):
        INDEXES["exact"].restore(vectors, parse_index("exact?scan=bfloat16", INDEXES), 1, arrays)
    with pytest.raises(ValueError, match="expected the copy of 383 rows"):
        INDEXES["exact"].restore(
            ShardVectors(np.arange(383), [np.ones((383, 8), dtype=np.float32)], 8),
            parse_index("exact?scan=int8", INDEXES),
            1,
            arrays,
        )


def test_a_small_exact_index_and_few_rows_leave_no_file(storage, vectors):
    open_index(storage, "exact", vectors, 1, ROWS)
    few = ShardVectors(np.arange(5), [np.ones((5, 8), dtype=np.float32)], 8)
    open_index(storage, "ivf", few, 1, ROWS)
    assert storage.list("indexes") == []


def test_a_restarted_shard_reads_its_index_and_sweep_removes_those_of_old_generations(
    tmp_path: Path, write_memory, builds
):
    storage = write_memory(Storage(str(tmp_path)), range(600), part_rows=250)
    write_memory(storage, range(600, 1200), part_rows=250)
    configs = [ShardConfig(url=storage.url, shard=shard, num_shards=2, index="ivf") for shard in range(2)]
    for config in configs:
        for generation in (1, 2):
            Shard(config).load(generation)
    assert builds == ["ivf"] * 4
    assert len(storage.list("indexes")) == 4
    Shard(configs[0]).load(2)
    assert len(builds) == 4
    swept = sweep(storage)
    assert swept.generations == (1,)
    assert len([path for path in swept.files if path.startswith("indexes/")]) == 2
    assert {main_of(path) for path in storage.list("indexes")} == {main_name(read_manifest(storage).vectors)}


def test_a_shard_that_starts_after_an_upsert_and_a_sweep_reads_the_index_that_was_saved_before_them(
    tmp_path: Path, write_memory, builds
):
    storage = write_memory(Storage(str(tmp_path)), range(600), part_rows=250)
    config = ShardConfig(url=storage.url, shard=0, num_shards=1, index="ivf")
    Shard(config).load(1)
    facts = pa.table({"fact_id": [3, 4, 700]})
    vectors_ND = np.ones((3, read_manifest(storage).dim), np.float32)
    upsert_facts(storage, facts, vectors_ND, locate=partial(locate_on_disk, storage))
    assert Shard(config).load(2) == 601
    sweep(storage)
    assert Shard(config).load(2) == 601
    assert builds.count("ivf") == 1
    assert len(storage.list("indexes")) == 1


def test_a_shard_that_starts_after_a_small_compaction_and_a_sweep_reads_the_index_that_serves_on(
    tmp_path: Path, write_memory, builds
):
    storage = write_memory(Storage(str(tmp_path)), range(900), part_rows=300)
    configs = [ShardConfig(url=storage.url, shard=shard, num_shards=2, index="ivf") for shard in range(2)]
    for config in configs:
        Shard(config).load(1)
    assert builds == ["ivf"] * 2
    for step, count in enumerate((1, 1, 3)):  # small parts are merged with those of the compaction before
        ids = range(900 + 10 * step, 900 + 10 * step + 10 * count)
        vectors_ND = np.ones((len(ids), read_manifest(storage).dim), np.float32)
        upsert_facts(storage, pa.table({"fact_id": ids}), vectors_ND, locate=partial(locate_on_disk, storage))
        delete_facts(storage, [step], locate=partial(locate_on_disk, storage))
        generation = compact(storage).generation
        sweep(storage, orphan_age_s=0.0, now_s=1e12)
        rows = [Shard(config).load(generation) for config in configs]
        assert (sum(rows), abs(rows[0] - rows[1]) <= 3) == (read_manifest(storage).fact_count, True)
    assert builds.count("ivf") == 2
    assert len(storage.list("indexes")) == 2
    ids = range(2000, 2080)
    vectors_ND = np.ones((len(ids), read_manifest(storage).dim), np.float32)
    upsert_facts(storage, pa.table({"fact_id": ids}), vectors_ND, locate=partial(locate_on_disk, storage))
    generation = compact(storage).generation
    for config in configs:
        Shard(config).load(generation)
    assert builds.count("ivf") == 4
    sweep(storage, orphan_age_s=0.0, now_s=1e12)
    assert {main_of(path) for path in storage.list("indexes")} == {main_name(read_manifest(storage).vectors)}
