"""Upkeep of a memory: inspect its history, pin generations that must stay, sweep what nobody needs any more."""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from memory_store.disk import Entry
from memory_store.errors import ConfigError, CorruptFile, GenerationNotFound, HmnError
from memory_store.index_names import INDEX_FOLDER, main_names, main_of
from memory_store.leases import LEASE_FOLDER, leases
from memory_store.manifest import PART_FOLDERS, Manifest, Part, generations, manifest_path, read_manifest
from memory_store.storage import Storage
from memory_store.verify import GenerationCheck, VerifyReport, verify_memory

__all__ = [
    "TAG_PREFIX",
    "GenerationCheck",
    "GenerationReport",
    "MemoryReport",
    "SweepReport",
    "VerifyReport",
    "inspect_memory",
    "pin",
    "pins",
    "sweep",
    "unpin",
    "verify_memory",
]

ORPHAN_AGE_S = 24 * 3600.0  # a file no manifest names may belong to a long run that has not committed yet

_FOLDERS = (*PART_FOLDERS, INDEX_FOLDER, "manifests", "pins", LEASE_FOLDER, "quarantine")
TAG_PREFIX = "tag="
"""Pins under this prefix are a person's: names for generations that are worth keeping."""

_PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """One generation: its manifest (parent, time, note, dimension, encoder, parts, ...), or why it cannot be read.

    bytes: of all its parts, those shared with other generations included. pins: names of the pins that hold it.
    readers: user, machine and process of every open memory that reads it.
    """

    generation: int
    current: bool
    manifest: Manifest | None
    problem: str | None
    bytes: int
    pins: tuple[str, ...]
    readers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What is at a URL. bytes: of all part files. unnamed: part and temporary files that no manifest names."""

    url: str
    generations: tuple[GenerationReport, ...]
    bytes: int
    unnamed_files: int
    unnamed_bytes: int


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What was deleted: superseded generations, and files with their bytes.

    pinned: generations that stay only because of pins, with the names of those; read: only because somebody reads
    them, with who.
    """

    generations: tuple[int, ...]
    files: tuple[str, ...]
    bytes: int
    pinned: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    read: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def inspect_memory(url: str | os.PathLike[str] | Storage) -> MemoryReport:
    """The history of a memory, oldest generation first, from its manifests alone. Raises MemoryNotFound."""
    storage = _storage_of(url)
    known = generations(storage)
    if not known:
        read_manifest(storage)  # raises MemoryNotFound, which says what was found instead
    held_by = _pinned(storage)
    read = _readers(storage, time.time())
    reports = []
    for generation in known:
        manifest, problem = _read_or_problem(storage, generation)
        parts = _parts_of(manifest) if manifest else ()
        reports.append(
            GenerationReport(
                generation=generation,
                current=generation == known[-1],
                manifest=manifest,
                problem=problem,
                bytes=sum(part.bytes for part in parts),
                pins=held_by.get(generation, ()),
                readers=read.get(generation, ()),
            )
        )
    files = _part_files(storage)
    named = _named_parts(report.manifest for report in reports)
    unnamed = [entry for entry in files if entry.path not in named] + list(_temporaries(storage))
    return MemoryReport(
        url=storage.shown,
        generations=tuple(reports),
        bytes=sum(entry.bytes for entry in files),
        unnamed_files=len(unnamed),
        unnamed_bytes=sum(entry.bytes for entry in unnamed),
    )


def pin(storage: Storage, name: str, generation: int) -> None:
    """Keep a generation from being swept until unpin; a pin of that name moves here. Raises GenerationNotFound.

    name: letters, digits and ._=- (a run's name, for instance).
    """
    path = _pin_path(name)
    _check_exists(storage, generation)
    storage.write_atomic(path, json.dumps({"format_version": 1, "generation": generation}).encode() + b"\n")
    try:
        _check_exists(storage, generation)  # a sweep may have run before it could see the pin
    except GenerationNotFound:
        storage.delete(path)
        raise


def unpin(storage: Storage, name: str) -> None:
    """Release a pin; one that is not there is not an error."""
    storage.delete(_pin_path(name))


def pins(storage: Storage) -> Mapping[str, int]:
    """Every pin's name and the generation it holds."""
    held = {}
    for path in storage.list("pins"):
        try:
            content = json.loads(storage.read_bytes(path))
            generation = content["generation"] if content["format_version"] == 1 else None
        except FileNotFoundError:
            continue  # released since we looked
        except (ValueError, KeyError, TypeError):
            generation = None
        if not isinstance(generation, int) or isinstance(generation, bool):
            raise CorruptFile(f"{storage.where(path)}: expected a pin of format version 1, found none; delete the file")
        held[path.removeprefix("pins/").removesuffix(".json")] = generation
    return held


def sweep(
    url: str | os.PathLike[str] | Storage,
    *,
    keep_last: int = 1,
    keep_s: float = 0.0,
    orphan_age_s: float = ORPHAN_AGE_S,
    now_s: float | None = None,
    dry_run: bool = False,
    only_note: str | None = None,
) -> SweepReport:
    """Delete superseded generations, their saved indexes, and the part files that no remaining manifest names.

    The newest keep_last generations (at least the current one), those superseded less than keep_s seconds ago (somebody
    may still read them), all pinned ones and those that an open memory reads stay, with all their parts. With
    only_note, so do all whose note is another: what somebody else made is not ours to delete. A file that no manifest
    ever named may belong to a writer at work: it goes once it is orphan_age_s old. Leases of readers that died go too.
    dry_run: report only. Raises MemoryNotFound, and CorruptFile (deleting nothing) if a manifest that stays, a pin or a
    lease cannot be read.
    """
    if keep_s < 0:
        raise ConfigError(f"expected keep_s of at least 0, found {keep_s}")
    if keep_last < 1:
        raise ConfigError(f"expected keep_last of at least 1, found {keep_last}; the current generation always stays")
    storage = _storage_of(url)
    now_s = time.time() if now_s is None else now_s
    while True:
        known = generations(storage)
        if not known:
            read_manifest(storage)  # raises MemoryNotFound, which says what was found instead
        held_by = _pinned(storage)
        kept = {*known[-keep_last:], *_superseded_since(storage, known, keep_s, now_s - keep_s)}
        superseded = [generation for generation in known if generation not in kept]
        manifests = {generation: _read_or_problem(storage, generation)[0] for generation in superseded}
        if only_note is not None:
            notes = {generation: manifest.note for generation, manifest in manifests.items() if manifest is not None}
            superseded = [generation for generation in superseded if notes.get(generation) == only_note]
        pinned = {generation: held_by[generation] for generation in superseded if generation in held_by}
        superseded = [generation for generation in superseded if generation not in pinned]
        readers = _readers(storage, now_s)
        read = {generation: readers[generation] for generation in superseded if generation in readers}
        superseded = [generation for generation in superseded if generation not in read]
        with suppress(GenerationNotFound):  # another sweep took it since we looked: look again
            remaining = {number: read_manifest(storage, number) for number in known if number not in superseded}
            break

    # Manifests go before their parts, oldest first: a crash in between leaves files that nobody names, never a
    # generation that lacks some.
    deleted = []
    for generation in superseded:
        # Pinned or opened since we looked?
        if not _is_held(storage, generation, now_s) and (dry_run or _delete_manifest(storage, generation, now_s)):
            deleted.append(generation)
        elif (manifest := manifests[generation]) is not None:
            remaining[generation] = manifest
    for generation in generations(storage):  # committed since we looked
        if generation not in remaining and generation not in deleted:
            with suppress(GenerationNotFound):  # and swept since
                remaining[generation] = read_manifest(storage, generation)

    named = _named_parts(remaining.values())
    released = _named_parts(manifests[generation] for generation in deleted) - named
    oldest_s = now_s - orphan_age_s
    doomed = [entry for entry in _part_files(storage) if entry.path in released]
    strays = [entry for entry in _part_files(storage) if entry.path not in named | released]
    main, old_main = _mains(remaining.values()), _mains(manifests[generation] for generation in deleted)
    indexes = [entry for entry in storage.entries(INDEX_FOLDER) if main_of(entry.path) not in main]
    doomed += [entry for entry in indexes if main_of(entry.path) in old_main]
    strays += [entry for entry in indexes if main_of(entry.path) not in old_main]
    doomed += [entry for entry in (*strays, *_temporaries(storage)) if (entry.modified_s or oldest_s) < oldest_s]
    if not dry_run:
        for entry in doomed:
            storage.delete(entry.path)
        for lease in leases(storage):
            if not lease.is_live(now_s):
                storage.delete(lease.path)
    return SweepReport(
        generations=tuple(deleted),
        files=tuple(entry.path for entry in doomed),
        bytes=sum(entry.bytes for entry in doomed),
        pinned=pinned,
        read=read,
    )


def _is_held(storage: Storage, generation: int, now_s: float) -> bool:
    return generation in pins(storage).values() or generation in _readers(storage, now_s)


def _delete_manifest(storage: Storage, generation: int, now_s: float) -> bool:
    """Delete a manifest, unless somebody pins or opens the generation at this moment; whether it is gone for good.

    They write their pin or lease and then look for the manifest; we take the manifest away and then look for theirs.
    So one of the two sees the other; if it is us, the manifest comes back, and no part is gone yet.
    """
    path = manifest_path(generation)
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return False  # another sweep is at it, and may bring it back
    storage.delete(path)
    held = True  # also where it cannot be told
    try:
        held = _is_held(storage, generation, now_s)
    finally:
        if held:
            with suppress(FileExistsError):  # another sweep has brought it back
                storage.create_exclusive(path, content)
    return not held


def _pinned(storage: Storage) -> dict[int, tuple[str, ...]]:
    """The names of the pins on each generation that has some."""
    found: dict[int, list[str]] = {}
    for name, generation in pins(storage).items():
        found.setdefault(generation, []).append(name)
    return {generation: tuple(sorted(names)) for generation, names in found.items()}


def _readers(storage: Storage, now_s: float) -> dict[int, tuple[str, ...]]:
    """Who reads which generation now."""
    found: dict[int, list[str]] = {}
    for lease in leases(storage):
        if lease.is_live(now_s):
            for generation in lease.generations:
                found.setdefault(generation, []).append(lease.reader)
    return {generation: tuple(sorted(readers)) for generation, readers in found.items()}


def _superseded_since(storage: Storage, known: list[int], keep_s: float, since_s: float) -> set[int]:
    """The generations that had no successor before that time; where the time cannot be told, it counts as recent."""
    if keep_s <= 0:
        return set()
    recent = set()
    for generation, successor in pairwise(known):
        manifest, _ = _read_or_problem(storage, successor)
        try:
            made_s = datetime.fromisoformat(manifest.created_at).timestamp() if manifest else since_s
        except ValueError:
            made_s = since_s
        if made_s >= since_s:
            recent.add(generation)
    return recent


def _storage_of(url: str | os.PathLike[str] | Storage) -> Storage:
    return url if isinstance(url, Storage) else Storage(url)


def _read_or_problem(storage: Storage, generation: int) -> tuple[Manifest | None, str | None]:
    try:
        return read_manifest(storage, generation), None
    except HmnError as error:
        return None, str(error)


def _part_files(storage: Storage) -> tuple[Entry, ...]:
    return tuple(entry for folder in PART_FOLDERS for entry in storage.entries(folder))


def _temporaries(storage: Storage) -> tuple[Entry, ...]:
    return tuple(entry for folder in _FOLDERS for entry in storage.temporaries(folder))


def _named_parts(manifests: Iterable[Manifest | None]) -> set[str]:
    return {part.path for manifest in manifests if manifest for part in _parts_of(manifest)}


def _mains(manifests: Iterable[Manifest | None]) -> set[str]:
    return {name for manifest in manifests if manifest for name in main_names(manifest)}


def _parts_of(manifest: Manifest) -> tuple[Part, ...]:
    return manifest.facts + manifest.vectors + manifest.tombstones


def _pin_path(name: str) -> str:
    if not _PIN_NAME.fullmatch(name):
        raise ConfigError(f"expected a pin's name of letters, digits and ._=-, found {name!r:.80}")
    return f"pins/{name}.json"


def _check_exists(storage: Storage, generation: int) -> None:
    if generation not in generations(storage):
        read_manifest(storage, generation)  # raises MemoryNotFound or GenerationNotFound
