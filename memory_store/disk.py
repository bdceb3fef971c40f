"""The few system calls that storage on a local disk is made of; tests hand in doubles that fail at a chosen call."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa

from memory_store.mapped_files import map_file

__all__ = ["TEMPORARY_SUFFIX", "Disk", "Entry", "LocalFiles", "WriteInto"]

TEMPORARY_SUFFIX = ".tmp"

WriteInto = Callable[[BinaryIO], object]
"""Fills an open file; what it returns is ignored."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of a memory: path relative to the memory, size, time of its last change (seconds; None: unknown)."""

    path: str
    bytes: int
    modified_s: float | None


class Disk:
    """System calls, one method each. Every change that a memory on a local disk undergoes passes through here."""

    def create(self, path: Path) -> BinaryIO:
        """Open a new file for writing; FileExistsError if it is there."""
        return path.open("xb")

    def sync(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable; until then a power loss may undo a rename or link."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def map(self, path: Path) -> pa.NativeFile:
        return map_file(path)

    def scan(self, path: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            yield from entries

    def stat(self, path: Path) -> os.stat_result:
        return path.stat()


class LocalFiles:
    """Atomic and exclusive files under one directory. Raises plain OSError; Storage explains it."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._root = root
        self._disk = disk

    def read_bytes(self, path: str) -> bytes:
        return self._disk.read(self._root / path)

    def exists(self, path: str) -> bool:
        return self._stat(path) is not None

    def size(self, path: str) -> int:
        return self._disk.stat(self._root / path).st_size

    def entries(self, prefix: str) -> Iterator[Entry]:
        root = f"{self._root}{os.sep}"
        folders = [root + prefix]
        while folders:
            try:
                for found in self._disk.scan(Path(folders.pop())):
                    if found.is_dir():
                        if not found.is_symlink():  # which may lead back up
                            folders.append(found.path)
                    else:
                        path = found.path.removeprefix(root).replace(os.sep, "/")
                        with suppress(FileNotFoundError):  # a temporary file may be renamed while we look
                            stat = found.stat()
                            yield Entry(path=path, bytes=stat.st_size, modified_s=stat.st_mtime)
            except FileNotFoundError:
                continue

    def write(self, path: str, fill: WriteInto) -> None:
        """Write beside, sync, rename over the name, sync the directory: readers see the old file or the new one."""
        target = self._root / path
        temporary = self._write_beside(target, fill)
        try:
            self._disk.rename(temporary, target)
        except OSError:
            self._discard(temporary)
            raise
        self._disk.sync_dir(target.parent)

    def create(self, path: str, data: bytes) -> None:
        """Like write, but a hard link gives the name, because a link fails where the name exists."""
        target = self._root / path
        temporary = self._write_beside(target, lambda file: file.write(data))
        try:
            self._disk.link(temporary, target)
        finally:
            self._discard(temporary)
        self._disk.sync_dir(target.parent)
        # A writer that died between making a folder and syncing it left a name that nobody would sync again.
        self._disk.sync_dir(self._root)
        with suppress(PermissionError):  # not ours to read, and then not ours to have made
            self._disk.sync_dir(self._root.parent)

    def sync(self, path: str) -> None:
        with (self._root / path).open("rb") as file:
            self._disk.sync(file)
        self._disk.sync_dir((self._root / path).parent)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._disk.unlink(self._root / path)

    def open_input(self, path: str) -> pa.NativeFile:
        return self._disk.map(self._root / path)

    def open_stored(self, path: str) -> pa.NativeFile:
        return self.open_input(path)

    def cached_bytes(self, path: str) -> bytes | None:
        """Nothing is cached: the file itself is mapped."""
        return None

    def forget(self, path: str) -> None:
        """Nothing is cached: the file itself is mapped."""

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return self._disk.stat(self._root / path)
        except FileNotFoundError:
            return None

    def _write_beside(self, target: Path, fill: WriteInto) -> Path:
        self._make_dirs(target.parent)
        temporary = target.with_name(f"{target.name}.{uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
        try:
            with self._disk.create(temporary) as file:
                fill(file)
                self._disk.sync(file)
        except Exception:  # a crash leaves the file to `sweep`; every error tidies up at once
            self._discard(temporary)
            raise
        return temporary

    def _discard(self, temporary: Path) -> None:
        with suppress(OSError):  # a leftover is harmless and swept later; the first error is the one to report
            self._disk.unlink(temporary)

    def _make_dirs(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            self._disk.mkdir(path)
            self._disk.sync_dir(path.parent)
