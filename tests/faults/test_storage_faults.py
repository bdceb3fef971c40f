"""Every step of a commit fails in turn: afterwards the memory is the old or the new generation, and work goes on."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
import pyarrow as pa
import pytest

from memory_store.compaction import compact
from memory_store.disk import Disk
from memory_store.errors import CommitUnknown, MemoryNotFound, StorageFailed
from memory_store.manifest import ParentGeneration, ReplaceVectors, apply_change, commit, read_manifest
from memory_store.parts import fact_ids_of, scan_facts, vectors_table, write_part
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writer import MemoryWriter
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

OLD_IDS = [1, 2, 3]
NEW_IDS = [6, 7, 8, 9]


class Fault(Enum):
    ERROR = "the step is refused"
    LOST_REPLY = "the step is done, and reported as failed"
    CRASH_BEFORE = "the process dies before the step"
    CRASH_AFTER = "the process dies after the step"
    TORN = "the process dies when half of the bytes are written"


class Crash(BaseException):
    """The process is gone: no handler of ours runs to good effect after it."""


class QuickDisk(Disk):
    """A disk that does everything but wait for the platter; durability is the business of PowerLossDisk."""

    def sync(self, file: BinaryIO) -> None:
        file.flush()

    def sync_dir(self, path: Path) -> None:
        """Nothing to wait for."""


class FaultyFile:
    """A file whose writes are steps of a FaultyDisk."""

    def __init__(self, file: BinaryIO, disk: "FaultyDisk") -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = self._disk.step(
            "write", lambda: self._file.write(view), torn=lambda: self._file.write(view[: len(view) // 2])
        )
        return cast(int, done)

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FaultyDisk(Disk):
    """A disk whose n-th changing step fails in the given way; after a crash every step fails."""

    def __init__(
        self, fail_on_step: int | None = None, fault: Fault = Fault.ERROR, healthy: Disk | None = None
    ) -> None:
        self.steps: list[str] = []
        self.struck = False
        self._healthy = healthy or QuickDisk()
        self._fail_on_step, self._fault, self._dead = fail_on_step, fault, False

    def step(self, name: str, do: Callable[[], Any], torn: Callable[[], Any] | None = None) -> Any:
        if self._dead:
            raise Crash
        self.steps.append(name)
        if len(self.steps) != self._fail_on_step:
            return do()
        self.struck = True
        if self._fault is Fault.TORN and torn is not None:
            torn()
        elif self._fault in (Fault.LOST_REPLY, Fault.CRASH_AFTER):
            do()
        if self._fault in (Fault.ERROR, Fault.LOST_REPLY):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._dead = True
        raise Crash

    def create(self, path: Path) -> BinaryIO:
        return cast(BinaryIO, self.step("create", lambda: FaultyFile(self._healthy.create(path), self)))

    def sync(self, file: BinaryIO) -> None:
        self.step("sync", lambda: self._healthy.sync(file))

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename", lambda: self._healthy.rename(source, target))

    def link(self, source: Path, target: Path) -> None:
        self.step("link", lambda: self._healthy.link(source, target))

    def unlink(self, path: Path) -> None:
        self.step("unlink", lambda: self._healthy.unlink(path))

    def mkdir(self, path: Path) -> None:
        self.step("mkdir", lambda: self._healthy.mkdir(path))

    def sync_dir(self, path: Path) -> None:
        self.step("sync_dir", lambda: self._healthy.sync_dir(path))


@dataclass
class Inode:
    """What a power loss leaves of a file: the content at its last sync. A directory has none."""

    durable: bytes = b""
    is_dir: bool = False


class PowerLossDisk(QuickDisk):
    """A disk that remembers what was made durable, and can lose the rest."""

    def __init__(self) -> None:
        self._names: dict[Path, Inode] = {}  # as programs see them
        self._durable_names: dict[Path, Inode] = {}  # as a power loss leaves them

    def create(self, path: Path) -> BinaryIO:
        file = super().create(path)
        self._names[path] = Inode()
        return file

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        path = Path(file.name)
        self._names[path].durable = path.read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._names[target] = self._names.pop(source)

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._names[target] = self._names[source]

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._names.pop(path, None)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self._names[path] = Inode(is_dir=True)

    def sync_dir(self, path: Path) -> None:
        for name in [name for name in self._durable_names if name.parent == path and name not in self._names]:
            del self._durable_names[name]
        self._durable_names.update({name: inode for name, inode in self._names.items() if name.parent == path})

    def lose_power(self, *, unsynced_names_survive: bool) -> None:
        """Leave on the real disk what this one made durable. Unsynced names may survive or not: both must be borne."""
        surviving = {**self._durable_names, **self._names} if unsynced_names_survive else self._durable_names
        made_dirs = {path for path, inode in self._names.items() if inode.is_dir}
        for path in sorted({*self._names, *self._durable_names}, reverse=True):  # files before their directories
            reachable = all(folder in surviving for folder in path.parents if folder in made_dirs)
            if path in made_dirs:
                if path not in surviving or not reachable:
                    path.rmdir()
                continue
            path.unlink(missing_ok=True)
            if path in surviving and reachable:
                path.write_bytes(surviving[path].durable)


def facts(ids: list[int]) -> pa.Table:
    return pa.table({"fact_id": pa.array(ids, pa.int64()), "subject": [f"fact {fact_id}" for fact_id in ids]})


def vectors(ids: list[int]) -> np.ndarray:
    return np.sin(np.asarray(ids, np.float32)[:, None] + np.arange(3, dtype=np.float32))


def append(storage: Storage, ids: list[int]) -> None:
    with MemoryWriter(storage, dim=3, part_rows=3) as writer:
        writer.append(facts(ids), vectors(ids))


def embed_again(storage: Storage) -> None:
    """The other kind of commit: new vectors beside the old, under names that a rerun writes again."""
    manifest = read_manifest(storage)
    parts = []
    for number, table in enumerate(scan_facts(storage, manifest, ["fact_id"])):
        new_ND = vectors(fact_ids_of(table).tolist()) * 2
        parts.append(write_part(storage, f"vectors/again-{number}.arrow", vectors_table(fact_ids_of(table), new_ND)))
    change = ReplaceVectors(vectors=tuple(parts), dim=3, dtype="float32", encoder="again", max_norm=4.0)
    new = apply_change(manifest, change, commit_id="again")
    commit(storage, new, requires=ParentGeneration(manifest.generation))


def state_of(path: Path) -> tuple[int, list[int], str | None]:
    """Generation, sorted fact ids and encoder as a reader with a healthy disk finds them; every byte verified."""
    storage = Storage(path, disk=QuickDisk())
    try:
        manifest = read_manifest(storage)
    except MemoryNotFound:
        return 0, [], None
    assert verify_memory(storage).problems == ()
    ids = [fact_id for table in scan_facts(storage, manifest, ["fact_id"]) for fact_id in fact_ids_of(table).tolist()]
    return manifest.generation, sorted(ids), manifest.encoder


def work_goes_on(path: Path, generation: int, ids: list[int]) -> None:
    """The next writer succeeds, whatever lies around, and a late sweep leaves nothing that nobody names."""
    storage = Storage(path, disk=QuickDisk())
    append(storage, [100, 101])
    assert state_of(path)[:2] == (generation + 1, sorted([*ids, 100, 101]))
    sweep(storage, now_s=time.time() + 1e6)
    assert inspect_memory(storage).unnamed_files == 0
    assert state_of(path)[:2] == (generation + 1, sorted([*ids, 100, 101]))


def steps_of(tmp_path: Path, prepare: Callable[[Storage], None], change: Callable[[Storage], None]) -> Iterator[int]:
    """1 .. the number of disk steps that the change takes."""
    disk = FaultyDisk()
    path = tmp_path / "counted"
    prepare(Storage(path, disk=QuickDisk()))
    change(Storage(path, disk=disk))
    assert {"create", "write", "sync", "rename", "link", "unlink", "sync_dir"} <= set(disk.steps)
    yield from range(1, len(disk.steps) + 1)


def make_old(storage: Storage) -> None:
    append(storage, OLD_IDS)


def make_nothing(storage: Storage) -> None:
    """A memory that is not there yet."""


def append_new(storage: Storage) -> None:
    append(storage, NEW_IDS)


def upsert_some(storage: Storage) -> None:
    """Overwrites one fact and adds one."""
    upsert_facts(storage, facts([2, 6]), vectors([2, 6]), locate=partial(locate_on_disk, storage))


def delete_some(storage: Storage) -> None:
    delete_facts(storage, [3, 1], locate=partial(locate_on_disk, storage))


def make_changed(storage: Storage) -> None:
    append(storage, OLD_IDS)
    upsert_some(storage)
    delete_some(storage)


def compact_all(storage: Storage) -> None:
    compact(storage)


OLD = (1, OLD_IDS, None)
SCENARIOS = [
    pytest.param(make_nothing, append_new, (0, [], None), (1, NEW_IDS, None), id="a first generation"),
    pytest.param(make_old, append_new, OLD, (2, [*OLD_IDS, *NEW_IDS], None), id="an append"),
    pytest.param(make_old, embed_again, OLD, (2, OLD_IDS, "again"), id="new vectors"),
    pytest.param(make_old, upsert_some, OLD, (2, [1, 2, 3, 6], None), id="an upsert"),
    pytest.param(make_old, delete_some, OLD, (2, [2], None), id="a delete"),
    pytest.param(make_changed, compact_all, (3, [2, 6], None), (4, [2, 6], None), id="a compaction"),
]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize(("prepare", "change", "old", "new"), SCENARIOS)
def test_whatever_step_of_a_commit_fails_the_memory_is_the_old_or_the_new_generation(
    tmp_path: Path,
    prepare: Callable[[Storage], None],
    change: Callable[[Storage], None],
    old: tuple[int, list[int], str | None],
    new: tuple[int, list[int], str | None],
    fault: Fault,
) -> None:
    outcomes = set()
    for step in steps_of(tmp_path, prepare, change):
        path = tmp_path / str(step)
        prepare(Storage(path, disk=QuickDisk()))
        disk = FaultyDisk(step, fault)
        try:
            change(Storage(path, disk=disk))
            outcome = "done"
        except CommitUnknown:
            outcome = "unknown"
        except StorageFailed:
            outcome = "failed"
        except Crash:
            outcome = "crashed"
        assert disk.struck
        outcomes.add(outcome)
        found = state_of(path)
        where = f"step {step} ({disk.steps[step - 1]}): {outcome}"
        if outcome == "done":
            assert found == new, where
        elif outcome == "failed":
            assert found == old, where  # "failed" is only said when nothing landed
        else:
            assert found in (old, new), where
        work_goes_on(path, *found[:2])
    assert outcomes <= (
        {"crashed"} if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.TORN) else {"done", "failed"}
    )


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.LOST_REPLY])
def test_an_error_that_proves_nothing_landed_leaves_no_part_behind(tmp_path: Path, fault: Fault) -> None:
    for step in steps_of(tmp_path, make_old, append_new):
        path = tmp_path / str(step)
        make_old(Storage(path, disk=QuickDisk()))
        before = inspect_memory(path).bytes
        disk = FaultyDisk(step, fault)
        try:
            append_new(Storage(path, disk=disk))
        except StorageFailed:
            if disk.steps[step - 1] != "unlink":
                assert inspect_memory(path).bytes == before
                assert inspect_memory(path).unnamed_files == 0


@pytest.mark.parametrize("unsynced_names_survive", [False, True])
@pytest.mark.parametrize("fault", [Fault.CRASH_AFTER, Fault.ERROR, Fault.LOST_REPLY])
@pytest.mark.parametrize(("prepare", "change", "old", "new"), SCENARIOS)
def test_a_power_loss_leaves_the_old_or_the_new_generation_and_keeps_what_was_reported_as_committed(
    tmp_path: Path,
    prepare: Callable[[Storage], None],
    change: Callable[[Storage], None],
    old: tuple[int, list[int], str | None],
    new: tuple[int, list[int], str | None],
    fault: Fault,
    unsynced_names_survive: bool,
) -> None:
    found_states = []
    for step in [*steps_of(tmp_path, prepare, change), None]:
        path = tmp_path / f"power-{step}"
        prepare(Storage(path, disk=QuickDisk()))
        disk = PowerLossDisk()
        try:
            change(Storage(path, disk=FaultyDisk(step, fault, healthy=disk)))
            reported = True
        except (Crash, StorageFailed):
            reported = False
        disk.lose_power(unsynced_names_survive=unsynced_names_survive)
        found = state_of(path)
        assert found == new if reported else found in (old, new), f"step {step}"
        found_states.append(found)
        work_goes_on(path, *found[:2])
    assert old in found_states
    assert found_states[-1] == new


def test_what_a_dead_writer_left_unsynced_is_synced_by_the_next_one_that_commits(tmp_path: Path) -> None:
    for step in steps_of(tmp_path, make_nothing, append_new):
        path = tmp_path / f"rerun-{step}"
        disk = PowerLossDisk()
        with pytest.raises(Crash):
            append_new(Storage(path, disk=FaultyDisk(step, Fault.CRASH_BEFORE, healthy=disk)))
        generation = state_of(path)[0]
        append(Storage(path, disk=disk), [50])
        disk.lose_power(unsynced_names_survive=False)
        assert state_of(path)[0] == generation + 1, f"step {step}"


def test_a_disk_that_refuses_everything_after_the_manifest_is_linked_leaves_the_outcome_unknown_and_the_parts_there(
    tmp_path: Path,
) -> None:
    class DyingDisk(FaultyDisk):
        """Links the manifest, and then answers nothing any more."""

        linked = False

        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            self.linked = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def read(self, path: Path) -> bytes:
            if self.linked:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(path)

    make_old(Storage(tmp_path))
    with pytest.raises(CommitUnknown, match=r"cannot tell whether generation 2 .* was committed"):
        append_new(Storage(tmp_path, disk=DyingDisk()))
    assert state_of(tmp_path) == (2, [*OLD_IDS, *NEW_IDS], None)


def test_the_files_of_a_crashed_writer_are_left_to_a_sweep_that_waits_for_them_to_be_old(tmp_path: Path) -> None:
    make_old(Storage(tmp_path))
    with pytest.raises(Crash):
        append_new(Storage(tmp_path, disk=FaultyDisk(12, Fault.CRASH_BEFORE)))
    left = inspect_memory(tmp_path).unnamed_files
    assert left > 0
    assert sweep(tmp_path).files == ()
    assert len(sweep(tmp_path, now_s=time.time() + 1e6).files) == left
    assert inspect_memory(tmp_path).unnamed_files == 0
    assert state_of(tmp_path) == OLD


APPENDING_PROCESS = """
import sys
import numpy as np, pyarrow as pa
from memory_store.errors import GenerationConflict
from memory_store.writer import MemoryWriter
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts
url, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for fact_id in range(first, first + count):
    while True:
        try:
            with MemoryWriter(url, dim=3) as writer:
                writer.append(pa.table({"fact_id": [fact_id]}), np.ones((1, 3), np.float32))
            break
        except GenerationConflict:
            continue
    print(fact_id, flush=True)
"""


def test_what_writers_in_several_processes_report_is_there_although_one_is_killed(tmp_path: Path) -> None:
    def start(first: int, count: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", APPENDING_PROCESS, str(tmp_path), str(first), str(count)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [start(0, 6), start(1000, 6), start(2000, 10_000)]
    streams = [(process, cast(TextIO, process.stdin), cast(TextIO, process.stdout)) for process in processes]
    for _, _, output in streams:
        assert output.readline() == "ready\n"
    for _, order, _ in streams:
        order.write("go\n")
        order.flush()
    victim, _, victim_output = streams[2]
    reported = [int(victim_output.readline())]
    victim.kill()
    for _, order, output in streams:
        reported += [int(line) for line in output]
        order.close()
        output.close()
    assert [process.wait() for process in processes] == [0, 0, -signal.SIGKILL]
    generation, ids, _ = state_of(tmp_path)
    assert generation == len(ids)
    assert {*range(6), *range(1000, 1006), *reported} <= set(ids)
    work_goes_on(tmp_path, generation, ids)
