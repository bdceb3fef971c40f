"""An open memory holds on to what it reads: sweeps of others leave it, until it is closed or has died."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import memory_store.compaction
import memory_store.memory
from memory_store import open_memory
from memory_store.compaction import compact
from memory_store.coordinator import Served
from memory_store.engine import Engine, load
from memory_store.errors import CorruptFile, GenerationConflict, GenerationNotFound, StorageFailed
from memory_store.leases import LEASE_S, SKEW_S, Lease, ReadLease, leases
from memory_store.manifest import Manifest, current_generation, generations, manifest_path, read_manifest
from memory_store.parts import fact_ids_of, scan_facts
from memory_store.reindex_steps import MemoryReindex
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, pin, sweep
from memory_store.writes import locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]
NOW_S = 1_700_000_000.0
GONE_S = LEASE_S + SKEW_S


@pytest.fixture
def history(storage: Storage, write_memory: WriteMemory) -> Storage:
    """Three generations of 3, 6 and 9 facts, at every kind of URL."""
    for first in (0, 3, 6):
        write_memory(storage, range(first, first + 3))
    return storage


def test_what_an_open_memory_reads_is_not_swept_and_both_reports_say_who_reads_it(history: Storage) -> None:
    with open_memory(history.url, generation=1) as reader:
        report = sweep(history)
        assert report.generations == (2,)
        assert list(report.read) == [1]
        assert ", process " in report.read[1][0]
        assert generations(history) == [1, 3]
        assert [len(found.readers) for found in inspect_memory(history).generations] == [1, 0]
        assert reader.search(np.ones((1, reader.dim)), 5).generation == 1
        assert reader.fetch([2])["fact_id"].to_pylist() == [2], "of files that were not opened before the sweep"
    assert sweep(history).generations == (1,)
    assert leases(history) == ()


def test_a_refresh_moves_the_lease_and_so_does_a_write_before_long(history: Storage, write_memory: WriteMemory) -> None:
    with open_memory(history.url, generation=1) as reader:
        assert reader.refresh() == 3
        assert [lease.generations for lease in leases(history)] == [(3,)]
        assert sweep(history).generations == (1, 2)
        assert reader.delete([0]) == 4
        deadline = time.monotonic() + 60
        while [lease.generations for lease in leases(history)] != [(4,)]:
            assert time.monotonic() < deadline, "the lease stays at the generation before"
            time.sleep(0.01)


def test_a_generation_that_is_being_loaded_is_held_beside_the_one_that_serves(
    history: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    with open_memory(history.url, generation=1) as reader:
        serve = reader._serve

        def spied(wanted: object) -> None:
            held.extend(lease.generations for lease in leases(history))
            serve(wanted)  # type: ignore[arg-type]

        monkeypatch.setattr(reader, "_serve", spied)
        reader.refresh()
    assert held == [(1, 3)]


class Overtaken(ReadLease):
    """A sweep runs right before the lease is there for it to see."""

    def renew(self) -> None:
        sweep(self._storage)
        super().renew()


def test_a_sweep_that_could_not_see_the_lease_yet_fails_the_open_and_nothing_stays_behind(
    history: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_store.memory.ReadLease", Overtaken)
    with pytest.raises(GenerationNotFound):
        open_memory(history.url, generation=1)
    assert leases(history) == ()


class OvertakenByAWriter(ReadLease):
    """Another process writes, compacts and sweeps right before the first two leases are there for it to see."""

    left = 2

    def renew(self) -> None:
        if OvertakenByAWriter.left:
            OvertakenByAWriter.left -= 1
            replace_all_parts(self._storage)
        super().renew()


def replace_all_parts(storage: Storage) -> None:
    """What another process may do at any moment: of the generations before, no part is left but what is leased."""
    write = partial(upsert_facts, storage, locate=partial(locate_on_disk, storage))
    held_ids = np.concatenate([fact_ids_of(table) for table in scan_facts(storage, read_manifest(storage))])
    write(pa.table({"fact_id": held_ids}), np.ones((len(held_ids), 4)))
    compact(storage)
    sweep(storage)


def test_the_newest_generation_is_opened_although_the_one_that_was_the_newest_is_swept_meanwhile(
    history: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OvertakenByAWriter, "left", 2)
    monkeypatch.setattr("memory_store.memory.ReadLease", OvertakenByAWriter)
    with open_memory(history.url) as reader:
        assert reader.generation == current_generation(history) == 7
        monkeypatch.setattr(OvertakenByAWriter, "left", 1)
        replace_all_parts(history)
        assert reader.refresh() == current_generation(history) == 11
        monkeypatch.setattr(OvertakenByAWriter, "left", 1)
        replace_all_parts(history)
        assert reader.reindex(shards=2) == current_generation(history)


@pytest.mark.parametrize("overtaken_at", ["read_manifest", "load"])
def test_what_was_written_is_visible_although_its_generation_is_swept_before_it_is_served(
    history: Storage, monkeypatch: pytest.MonkeyPatch, overtaken_at: str
) -> None:
    real = getattr(memory_store.memory, overtaken_at)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(f"memory_store.memory.{overtaken_at}", real)
        replace_all_parts(history)
        return real(*arguments)

    with open_memory(history.url) as memory:
        monkeypatch.setattr(f"memory_store.memory.{overtaken_at}", overtaken)
        assert memory.upsert(pa.table({"fact_id": [50]}), np.ones((1, 4))) == 4
        assert memory.generation == 6
        assert memory.holds([50]).all()


def test_what_a_reindex_verifies_is_not_swept_meanwhile(history: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(engine: Engine, manifest: Manifest) -> Served:
        replace_all_parts(history)
        return load(engine, manifest)

    monkeypatch.setattr("memory_store.reindex_steps.load", overtaken)
    with open_memory(history.url) as memory:
        replace_all_parts(history)
        assert memory.reindex(shards=2) == memory.generation
        assert len(memory.stats().shards) == 2


def test_a_generation_that_others_read_a_moment_ago_may_be_swept_before_a_reindex_loads_it(
    history: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryReindex, "_read_by_others", lambda steps: [2, 3])
    with open_memory(history.url) as memory:
        sweep(history)
        assert memory.reindex(shards=2) == 3


def test_what_a_compaction_reads_is_not_swept_meanwhile(history: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it says that its parts were replaced, and not that they are damaged."""
    upsert_facts(history, pa.table({"fact_id": [1]}), np.ones((1, 4)), locate=partial(locate_on_disk, history))
    real = memory_store.compaction._write_output

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr("memory_store.compaction._write_output", real)
        replace_all_parts(history)
        return real(*arguments)

    monkeypatch.setattr("memory_store.compaction._write_output", overtaken)
    with pytest.raises(GenerationConflict, match="another writer replaced them"):
        compact(history)
    assert leases(history) == ()


def test_a_generation_opened_during_a_sweep_stays(history: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ReadLease(history, renew_s=0)
    delete = Storage.delete

    def opens_2(self: Storage, path: str) -> None:
        if path == manifest_path(1):
            reader.hold([2])
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", opens_2)
    assert sweep(history).generations == (1,)
    read_manifest(history, 2)


def test_a_reader_that_died_protects_until_its_lease_expires_and_then_the_file_goes_too(history: Storage) -> None:
    died_s = time.time()
    ReadLease(history, renew_s=0).hold([1])
    assert sweep(history, now_s=died_s + GONE_S - 60, dry_run=True).generations == (2,)
    assert sweep(history, now_s=died_s + GONE_S + 60, dry_run=True).generations == (1, 2)
    assert len(leases(history)) == 1, "a dry run deletes nothing"
    assert sweep(history, now_s=died_s + GONE_S + 60).generations == (1, 2)
    assert leases(history) == ()


def test_renewing_makes_a_lease_live_on(history: Storage) -> None:
    clock = iter([time.time(), time.time() + GONE_S])
    reader = ReadLease(history, clock=lambda: next(clock), renew_s=0)
    reader.hold([1])
    reader.renew()
    assert sweep(history, now_s=time.time() + GONE_S + 60, dry_run=True).generations == (2,)


def test_the_background_renews_and_ends_with_the_memory(history: Storage) -> None:
    renewed = threading.Event()
    calls = iter(range(1000))

    def clock() -> float:
        if next(calls) >= 2:
            renewed.set()
        return NOW_S

    reader = ReadLease(history, clock=clock, renew_s=0.01)
    reader.hold([1])
    assert renewed.wait(60)
    reader.close()
    assert reader._renewer is not None
    reader._renewer.join(60)
    assert not reader._renewer.is_alive()
    assert leases(history) == ()


@pytest.mark.parametrize(
    ("renewed_s", "modified_s", "live"),
    [
        (NOW_S, None, True),
        (NOW_S - GONE_S + 1, None, True),
        (NOW_S - GONE_S - 1, None, False),
        (NOW_S - GONE_S - 1, NOW_S, True),  # the reader's clock is late
        (NOW_S + 1e6, NOW_S - GONE_S - 1, False),  # it was ahead, and the reader is gone
        (NOW_S + SKEW_S, None, True),
        (NOW_S + 1e6, None, True),  # nothing is known of when it was
    ],
)
def test_how_long_a_lease_lives_by_clocks_that_differ(renewed_s: float, modified_s: float | None, live: bool) -> None:
    lease = Lease(path="", generations=(1,), reader="r", renewed_s=renewed_s, modified_s=modified_s)
    assert lease.is_live(NOW_S) is live


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format_version": 2}', b'{"format_version": 1, "generations": "x"}'])
def test_a_lease_that_cannot_be_read_stops_a_sweep(history: Storage, text: bytes) -> None:
    history.write_atomic("leases/strange.json", text)
    with pytest.raises(CorruptFile, match="a reader's lease of format version 1"):
        sweep(history)
    assert generations(history) == [1, 2, 3]


class ReadOnly(Storage):
    """Takes no write."""

    def write_atomic(self, path: str, write: object) -> None:
        raise StorageFailed(f"cannot write {self.where(path)}: read-only file system")


def test_a_memory_that_cannot_be_written_to_is_read_all_the_same_and_says_so_once(
    history: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("memory_store.opening.Storage", ReadOnly)
    with caplog.at_level(logging.WARNING), open_memory(history.url, generation=2) as reader:
        assert reader.search(np.ones((1, reader.dim)), 2).generation == 2
        assert reader.refresh() == 3
    assert [record.message.count("read-only file system") for record in caplog.records] == [1]
    assert "generation 2" in caplog.text
    assert leases(history) == ()


def test_a_memory_that_nobody_closes_lets_go_when_it_is_forgotten(history: Storage) -> None:
    reader = open_memory(history.url, generation=1)
    assert len(leases(history)) == 1
    del reader
    assert leases(history) == ()


def test_a_memory_whose_shards_cannot_be_stopped_lets_go_all_the_same(
    history: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise RuntimeError("the cluster is gone")

    memory = open_memory(history.url)
    monkeypatch.setattr(memory._engines.now.backend, "close", away)
    with pytest.raises(RuntimeError, match="cluster is gone"):
        memory.close()
    assert leases(history) == ()


def test_what_a_lease_says_is_plain(tmp_path: Path, write_memory: WriteMemory) -> None:
    storage = Storage(str(tmp_path))
    write_memory(storage, range(3))
    with open_memory(storage.url):
        (file,) = (tmp_path / "leases").iterdir()
        noted = json.loads(file.read_text())
        assert sorted(noted) == ["format_version", "generations", "reader", "renewed_s"]
        assert (noted["format_version"], noted["generations"]) == (1, [1])


@pytest.fixture(autouse=True)
def _no_lease_warns(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "read_all_the_same" not in request.node.name:
        assert not [record for record in caplog.records if record.name == "memory_store.leases"]


def test_pins_and_leases_hold_side_by_side(history: Storage) -> None:
    pin(history, "run", 2)
    with open_memory(history.url, generation=1):
        report = sweep(history)
    assert (report.generations, list(report.read)) == ((), [1])
