"""Listings that fail in turn during an upsert, a delete, a compaction: old or new generation, and work goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import pyarrow as pa
import pytest

from memory_store.compaction import compact
from memory_store.disk import Disk
from memory_store.errors import CommitUnknown, HmnError
from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writer import MemoryWriter
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

OLD = [1, 2, 3, 4]


class ListingFails(Disk):
    """A disk whose n-th listing of a folder fails, and no other."""

    def __init__(self, fail_on_listing: int | None = None) -> None:
        self.listings = 0
        self._fail_on_listing = fail_on_listing

    def scan(self, path: Path) -> Iterator["os.DirEntry[str]"]:
        self.listings += 1
        if self.listings == self._fail_on_listing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().scan(path)


def facts(ids: list[int]) -> pa.Table:
    return pa.table({"fact_id": pa.array(ids, pa.int64())})


def upsert(storage: Storage, ids: list[int]) -> None:
    vectors_ND = np.ones((len(ids), 3), np.float32)
    upsert_facts(storage, facts(ids), vectors_ND, locate=partial(locate_on_disk, storage))


def delete(storage: Storage, ids: list[int]) -> None:
    delete_facts(storage, ids, locate=partial(locate_on_disk, storage))


def prepare(path: Path) -> None:
    """Facts 1 to 4, of which 2 was overwritten."""
    storage = Storage(path)
    with MemoryWriter(storage, dim=3, part_rows=2) as writer:
        writer.append(facts([1, 2, 3]), np.ones((3, 3), np.float32))
    upsert(storage, [2, 4])


def held(path: Path) -> tuple[int, list[int]]:
    storage = Storage(path)
    manifest = read_manifest(storage)
    assert verify_memory(storage).problems == ()
    tables = scan_facts(storage, manifest, ["fact_id"])
    return manifest.generation, sorted(fact_id for table in tables for fact_id in table["fact_id"].to_pylist())


@pytest.mark.parametrize(
    ("change", "new"),
    [
        pytest.param(lambda storage: upsert(storage, [3, 9]), [1, 2, 3, 4, 9], id="an upsert"),
        pytest.param(lambda storage: delete(storage, [1, 4]), [2, 3], id="a delete"),
        pytest.param(compact, OLD, id="a compaction"),
    ],
)
def test_whatever_listing_fails_the_memory_is_the_old_or_the_new_generation(
    tmp_path: Path, change: Callable[[Storage], object], new: list[int]
) -> None:
    prepare(tmp_path / "counted")
    disk = ListingFails()
    change(Storage(tmp_path / "counted", disk=disk))
    assert disk.listings > 4
    for listing in range(1, disk.listings + 1):
        path = tmp_path / str(listing)
        prepare(path)
        try:
            change(Storage(path, disk=ListingFails(listing)))
            expected = [(3, new)]
        except CommitUnknown:
            expected = [(2, OLD), (3, new)]
        except HmnError:
            expected = [(2, OLD)]
        found = held(path)
        assert found in expected, f"listing {listing}"
        upsert(Storage(path), [100])
        compact(Storage(path))
        assert held(path)[1] == [*found[1], 100]
        sweep(path, now_s=1e12)
        assert inspect_memory(path).unnamed_files == 0
        assert held(path)[1] == [*found[1], 100]


WRITING_PROCESS = """
import sys
from functools import partial
import numpy as np, pyarrow as pa
from memory_store.compaction import compact
from memory_store.errors import GenerationConflict
from memory_store.storage import Storage
from memory_store.writes import locate_on_disk, upsert_facts
storage, first, count = Storage(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for fact_id in range(first, first + count):
    table = pa.table({"fact_id": [fact_id, 1]})
    upsert_facts(storage, table, np.full((2, 3), fact_id, np.float32), locate=partial(locate_on_disk, storage))
    print(fact_id, flush=True)
    if fact_id % 4 == 0:
        try:
            compact(storage)
        except GenerationConflict:
            pass
"""


def test_what_upserting_and_compacting_processes_report_is_there_although_one_is_killed(tmp_path: Path) -> None:
    prepare(tmp_path)

    def start(first: int, count: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", WRITING_PROCESS, str(tmp_path), str(first), str(count)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [start(1000, 8), start(2000, 10_000)]
    streams = [(process, cast(TextIO, process.stdin), cast(TextIO, process.stdout)) for process in processes]
    for _, _, output in streams:
        assert output.readline() == "ready\n"
    for _, order, _ in streams:
        order.write("go\n")
        order.flush()
    victim, _, victim_output = streams[1]
    reported = [int(victim_output.readline()) for _ in range(6)]
    victim.kill()
    for _, order, output in streams:
        reported += [int(line) for line in output]
        order.close()
        output.close()
    assert [process.wait() for process in processes] == [0, -9]
    _, ids = held(tmp_path)
    assert {*OLD, *range(1000, 1008), *reported} <= set(ids)
    assert len(ids) == len(set(ids))
    compact(Storage(tmp_path))
    assert held(tmp_path)[1] == ids
