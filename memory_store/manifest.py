"""The generations of a memory: read one, or commit the next with a precondition."""

import getpass
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from memory_store.changes import (
    AppendParts,
    Change,
    CompactParts,
    DeleteRows,
    ReplaceFacts,
    ReplaceVectors,
    RestoreContent,
    UpsertRows,
    apply_change,
)
from memory_store.errors import (
    CommitUnknown,
    CorruptFile,
    GenerationConflict,
    GenerationNotFound,
    HmnError,
    MemoryNotFound,
    StorageFailed,
)
from memory_store.manifest_format import LAST_GENERATION, Manifest, Part, from_bytes, to_bytes
from memory_store.storage import Storage

__all__ = [
    "PART_FOLDERS",
    "AppendParts",
    "Change",
    "CompactParts",
    "DeleteRows",
    "Manifest",
    "ParentGeneration",
    "Part",
    "ReplaceFacts",
    "ReplaceVectors",
    "RestoreContent",
    "UpsertRows",
    "apply_change",
    "commit",
    "commit_beside_compactions",
    "current_generation",
    "generations",
    "manifest_path",
    "operations_since",
    "propose",
    "read_manifest",
    "withdraw",
]

PART_FOLDERS = ("facts", "vectors", "tombstones")

_FOLDER = "manifests"
_PROPOSED = "staging/proposed-"
_READ_ATTEMPTS = 10
_AFTER_LAST = LAST_GENERATION + 1  # the last digits of a proposed generation's number say which one it would become


@dataclass(frozen=True)
class ParentGeneration:
    """Precondition of a commit: the current generation is this one. None or 0: there is no memory yet."""

    generation: int | None


def commit(storage: Storage, new: Manifest, *, requires: ParentGeneration) -> Manifest:
    """Publish a generation: it becomes the current one whole or not at all. Returns it as stored, with its
    time and author.

    Raises GenerationConflict if the current generation is not the required one, CorruptFile if a part it names is not
    there, StorageFailed if nothing was published, CommitUnknown if that cannot be told.
    """
    expected = requires.generation or 0
    assert new.generation == expected + 1, "apply_change was given another manifest than the precondition names"
    try:
        _check_parts_exist(storage, new)
    except CorruptFile:
        _check_current(storage, new, expected)  # those of a superseded generation may have been swept
        raise
    parent = _check_current(storage, new, expected)  # last, so that little can happen until ours is there
    stored = replace(
        new,
        created_at=new.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        author=new.author or this_author(),
    )
    path = manifest_path(new.generation)
    try:
        storage.create_exclusive(path, to_bytes(stored))
    except (StorageFailed, FileExistsError) as error:
        # A lost reply looks like a failure, a repeated request like a conflict: only the file itself can tell.
        _settle(storage, stored, expected, error)
    _check_not_overtaken(storage, stored, expected, _part_paths(stored) - (_part_paths(parent) if parent else set()))
    return stored


def read_manifest(storage: Storage, generation: int | None = None) -> Manifest:
    """The manifest of a generation, the current one by default, or of one that is proposed, whose number is negative.

    Raises MemoryNotFound, GenerationNotFound, or CorruptFile.
    """
    if generation is not None and generation < 0:
        return _read_proposed(storage, generation)
    for _ in range(_READ_ATTEMPTS):
        known = generations(storage)
        if not known:
            raise _no_memory(storage)
        chosen = known[-1] if generation is None else generation
        if chosen not in known:
            raise _no_generation(storage, chosen, known)
        path = manifest_path(chosen)
        try:
            data = storage.read_bytes(path)
        except FileNotFoundError:
            continue  # superseded and swept since we looked, so there is a newer one to look at
        return from_bytes(data, storage.where(path), chosen)
    raise CorruptFile(f"{storage.where(path)}: expected the manifest that is listed, found no file; look at the folder")


def generations(storage: Storage) -> list[int]:
    """The numbers of all generations, oldest first; empty if there is no memory."""
    numbers = []
    for path in storage.list(_FOLDER):
        name = path.removeprefix(f"{_FOLDER}/").removesuffix(".json")
        if path == f"{_FOLDER}/{name}.json" and len(name) == 8 and name.isascii() and name.isdigit() and int(name):
            numbers.append(int(name))
    return sorted(numbers)


def current_generation(storage: Storage) -> int | None:
    """The newest generation's number; None if there is no memory."""
    known = generations(storage)
    return known[-1] if known else None


def operations_since(storage: Storage, base: int, now: int) -> set[str]:
    """What made the generations after `base` up to `now`: "upsert", "compact", ...; "unknown" for one that is gone."""
    found = set()
    for generation in range(base + 1, now + 1):
        try:
            found.add(read_manifest(storage, generation).operation)
        except (GenerationNotFound, CorruptFile):
            found.add("unknown")
    return found


def commit_beside_compactions(
    storage: Storage, parent: Manifest | None, make: Callable[[Manifest | None], Manifest]
) -> Manifest:
    """Commit what `make` makes of a generation, `parent` or, if compactions alone came after it, the current one: it
    holds the same facts. Raises what commit raises."""
    while True:
        try:
            return commit(storage, make(parent), requires=ParentGeneration(parent.generation if parent else None))
        except GenerationConflict:
            if parent is None:
                raise
            now = read_manifest(storage)
            if operations_since(storage, parent.generation, now.generation) != {"compact"}:
                raise
            parent = now


def propose(storage: Storage, new: Manifest) -> Manifest:
    """Write a generation that is not committed yet, so that shards can load it and it can be looked at.

    Returned with its number: negative, another one every time, and known to the caller alone until it is withdrawn.
    """
    number = -(random.randrange(1, 2**30) * _AFTER_LAST + new.generation)
    storage.write_atomic(_proposed_path(number), to_bytes(new))
    return replace(new, generation=number)


def withdraw(storage: Storage, generation: int | None = None) -> None:
    """Delete a proposed generation, or all that there are. Its parts stay: a commit may name them."""
    paths = [path for path in storage.list("staging") if path.startswith(_PROPOSED)]
    for path in paths if generation is None else [_proposed_path(generation)]:
        storage.delete(path)


def _proposed_path(generation: int) -> str:
    return f"{_PROPOSED}{-generation}.json"


def _read_proposed(storage: Storage, generation: int) -> Manifest:
    path = _proposed_path(generation)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise _no_generation(storage, generation, generations(storage)) from None
    return replace(from_bytes(data, storage.where(path), -generation % _AFTER_LAST), generation=generation)


def manifest_path(generation: int) -> str:
    """manifests/<8 digits>.json"""
    return f"{_FOLDER}/{generation:08d}.json"


def _check_current(storage: Storage, new: Manifest, expected: int) -> Manifest | None:
    """The parent that is required; GenerationConflict if it is not the current generation."""
    found = current_generation(storage) or 0
    parent = read_manifest(storage, expected) if expected and found == expected else None
    if found != expected or (parent and parent.commit_id != new.parent_commit):
        raise _conflict(storage, expected, found)
    return parent


def _part_paths(manifest: Manifest) -> set[str]:
    return {part.path for part in manifest.facts + manifest.vectors + manifest.tombstones}


def _check_parts_exist(storage: Storage, new: Manifest) -> None:
    sizes = {entry.path: entry.bytes for folder in PART_FOLDERS for entry in storage.entries(folder)}
    for part in new.facts + new.vectors + new.tombstones:
        if sizes.get(part.path) != part.bytes:
            found = f"{sizes[part.path]:,} bytes" if part.path in sizes else "no file"
            raise CorruptFile(
                f"{storage.where(part.path)}: expected {part.bytes:,} bytes, found {found}; nothing was committed, "
                "write the part again"
            )


def _settle(storage: Storage, ours: Manifest, expected: int, error: Exception) -> None:
    """After an ambiguous error: return if our manifest is there and durable, raise what is known otherwise."""
    path = manifest_path(ours.generation)
    try:
        try:
            found = from_bytes(storage.read_bytes(path), storage.where(path), ours.generation)
        except FileNotFoundError:
            if isinstance(error, StorageFailed):
                raise error from None
            raise _conflict(storage, expected, current_generation(storage) or 0) from None
        if found.commit_id == ours.commit_id:
            storage.sync(path)
            return
    except HmnError as reread:
        if reread is error or isinstance(reread, GenerationConflict):
            raise
        raise _unknown(storage, ours, f"{error}; then: {reread}") from None
    raise _conflict(storage, expected, ours.generation)


def _check_not_overtaken(storage: Storage, ours: Manifest, expected: int, own: set[str]) -> None:
    """Our number may have been free only because others committed it and beyond, and swept it, since we looked.

    Or ours was there, and they committed beyond it and swept it: then what they committed names parts of our own.
    """
    try:
        later: list[Manifest] = []
        while not later and (numbers := [found for found in generations(storage) if found > ours.generation]):
            with suppress(GenerationNotFound):  # superseded and swept since it was listed: look again
                later = [read_manifest(storage, number) for number in numbers]
        if not later or later[0].parent_commit == ours.commit_id:
            return
        if later[0].generation > ours.generation + 1:
            if any(own & _part_paths(manifest) for manifest in later):
                return
            raise _unknown(storage, ours, "it is superseded and swept, or never was")
        storage.delete(manifest_path(ours.generation))
    except CommitUnknown:
        raise
    except HmnError as error:
        raise _unknown(storage, ours, str(error)) from None
    raise _conflict(storage, expected, later[-1].generation)


def this_author() -> str:
    """Who commits, for the history: user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


def _unknown(storage: Storage, ours: Manifest, reason: str) -> CommitUnknown:
    return CommitUnknown(
        f"cannot tell whether generation {ours.generation} of {storage.shown} was committed: {reason}; "
        f"run `hmn inspect` and look for commit {ours.commit_id}"
    )


def _conflict(storage: Storage, expected: int, found: int) -> GenerationConflict:
    wanted = f"generation {expected}" if expected else "no memory"
    other = "another commit of that number" if found == expected else f"generation {found}" if found else "no memory"
    return GenerationConflict(
        f"{storage.shown}: expected {wanted} to be the current state, found {other}; "
        "another writer committed meanwhile, run again to build on its result"
    )


def _no_memory(storage: Storage) -> MemoryNotFound:
    if storage.list("facts"):
        found = "part files but no manifest: its first writer has not finished, or the manifests are lost"
    else:
        found = "none"
    return MemoryNotFound(f"expected a memory at {storage.shown}, found {found}; make one with `hmn ingest`")


def _no_generation(storage: Storage, wanted: int, known: list[int]) -> GenerationNotFound:
    span = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(*known) or "none"
    return GenerationNotFound(
        f"{storage.shown}: expected generation {wanted}, found {len(known)} generations ({span}); "
        "`hmn inspect` lists them"
    )
