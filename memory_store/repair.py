"""Repair of a memory: damaged files restored from whatever still holds their bytes; nothing is made up."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from memory_store.errors import CorruptFile, HmnError, MemoryNotFound
from memory_store.index_names import INDEX_FOLDER
from memory_store.leases import leased
from memory_store.manifest import PART_FOLDERS, Manifest, Part, manifest_path, read_manifest
from memory_store.manifest_format import from_bytes
from memory_store.parts import is_part
from memory_store.storage import Storage

__all__ = ["RepairReport", "Restored", "repair_memory"]

_MANIFESTS = "manifests"
_CHECKSUM_BYTES = 16  # at the end of an index file


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A file that is whole again, and where its bytes were found."""

    path: str
    source: str


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair did. dropped: damaged index files, which are built again when the memory is next opened.

    lost: one line for each file that could not be restored, saying what to do.
    """

    restored: tuple[Restored, ...]
    dropped: tuple[str, ...]
    lost: tuple[str, ...]


def repair_memory(
    url: str | os.PathLike[str] | Storage,
    *,
    copies: Sequence[str | os.PathLike[str] | Storage] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Read every part and manifest as the storage holds it, and restore those that are damaged or gone.

    The bytes of a part are looked for, by size and checksum, in this machine's cache of a remote memory, in other parts
    and staged files of the memory (content is what counts, not the name), and in `copies`: other places where the same
    memory was copied to. Manifests are restored from copies alone. A file is written only when its bytes are exactly
    those that the manifest names. Vectors that are lost can be embedded again from their facts; facts cannot be made
    from anything. progress: called with (bytes read, bytes in all). Raises MemoryNotFound, also for a copy that holds
    no file of a memory, and StorageFailed for one that cannot be reached; then nothing has been read or written.
    """
    storage = _storage(url)
    others = [_storage(copy) for copy in copies]
    for copy in others:
        if not any(copy.entries(folder) for folder in (_MANIFESTS, *PART_FOLDERS)):
            raise MemoryNotFound(
                f"expected a copy of the memory at {copy.shown}, found no file of one; name the folder that holds "
                "manifests/, facts/ and vectors/, or leave that copy out"
            )
    with leased(storage) as known:  # a sweep meanwhile would look like damage
        return _Repair(storage, others).run(known, progress)


class _Repair:
    def __init__(self, storage: Storage, copies: Sequence[Storage]) -> None:
        self._storage = storage
        self._copies = copies
        self._restored: list[Restored] = []
        self._lost: list[str] = []

    def run(self, known: Sequence[int], progress: Callable[[int, int], None] | None) -> RepairReport:
        manifests = self._manifests(known)
        parts = {part.path: part for manifest in manifests for part in _parts_of(manifest)}
        total, done = sum(part.bytes for part in parts.values()), 0
        damaged = []
        for part in parts.values():
            held = self._bytes_of(self._storage, part.path)
            if held is None or not is_part(part, held):
                damaged.append(part)
            done += part.bytes
            if progress is not None:
                progress(done, total)
        for part in damaged:
            self._restore(part)
        return RepairReport(
            restored=tuple(self._restored), dropped=tuple(self._drop_damaged_indexes()), lost=tuple(self._lost)
        )

    def _manifests(self, known: Sequence[int]) -> list[Manifest]:
        found = []
        for generation in known:
            path = manifest_path(generation)
            try:
                found.append(read_manifest(self._storage, generation))
            except HmnError as problem:
                manifest = self._manifest_of_copies(generation)
                if manifest is None:
                    self._lost.append(f"{problem}; without a copy it stays as it is")
                else:
                    found.append(manifest)
                    self._storage.forget(path)
        return found

    def _manifest_of_copies(self, generation: int) -> Manifest | None:
        path = manifest_path(generation)
        for copy in self._copies:
            data = self._bytes_of(copy, path)
            try:
                manifest = from_bytes(data or b"", copy.where(path), generation)
            except CorruptFile:
                continue
            self._storage.write_atomic(path, data or b"")
            self._restored.append(Restored(path=path, source=copy.where(path)))
            return manifest
        return None

    def _restore(self, part: Part) -> None:
        for source, data in self._candidates(part):
            if data is not None and is_part(part, data):
                self._storage.write_atomic(part.path, data)
                self._storage.forget(part.path)
                self._restored.append(Restored(path=part.path, source=source))
                return
        advice = {
            "vectors": "its facts can be embedded again: `hmn embed`, or roll back to a generation without it",
            "tombstones": "roll back to a generation without it, and delete again",
        }.get(part.path.partition("/")[0], "ingest the sources again, or roll back to a generation without it")
        self._lost.append(
            f"{self._storage.where(part.path)}: expected {part.bytes:,} bytes with checksum {part.checksum}, found "
            f"them nowhere; name a copy of the memory that holds them, or: {advice}"
        )

    def _candidates(self, part: Part) -> Iterator[tuple[str, bytes | None]]:
        """(where, bytes) of all that may be the part; most likely first."""
        yield "this machine's cache", self._storage.cached_bytes(part.path)
        for storage in (self._storage, *self._copies):
            if storage is not self._storage:
                yield storage.where(part.path), self._bytes_of(storage, part.path)
            for folder in (*PART_FOLDERS, "staging"):
                for entry in storage.entries(folder):
                    if entry.bytes == part.bytes and entry.path != part.path:
                        yield storage.where(entry.path), self._bytes_of(storage, entry.path)

    def _drop_damaged_indexes(self) -> Iterator[str]:
        for entry in self._storage.entries(INDEX_FOLDER):
            data = self._bytes_of(self._storage, entry.path)
            if data is not None and xxhash.xxh3_128_digest(data[:-_CHECKSUM_BYTES]) != data[-_CHECKSUM_BYTES:]:
                self._storage.delete(entry.path)
                yield entry.path

    @staticmethod
    def _bytes_of(storage: Storage, path: str) -> bytes | None:
        """As the storage itself holds them, not as they are cached here; None where they cannot be read."""
        try:
            return storage.read_bytes(path)
        except (OSError, HmnError):
            return None


def _parts_of(manifest: Manifest) -> tuple[Part, ...]:
    return manifest.facts + manifest.vectors + manifest.tombstones


def _storage(url: str | os.PathLike[str] | Storage) -> Storage:
    return url if isinstance(url, Storage) else Storage(url)
