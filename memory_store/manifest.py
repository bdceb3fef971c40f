"""Typed changes to a memory, and the commit of a generation with a precondition."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias

from memory_store.errors import (
    CommitUnknown,
    CorruptFile,
    DimensionMismatch,
    GenerationConflict,
    GenerationNotFound,
    HmnError,
    InvalidVectors,
    MemoryNotFound,
    NoVectors,
    StorageFailed,
)
from memory_store.manifest_format import LAST_GENERATION, Manifest, Part, from_bytes, to_bytes
from memory_store.storage import Storage

__all__ = [
    "AppendParts",
    "Change",
    "Manifest",
    "ParentGeneration",
    "Part",
    "ReplaceFacts",
    "ReplaceVectors",
    "apply_change",
    "commit",
    "current_generation",
    "generations",
    "manifest_path",
    "read_manifest",
]

_FOLDER = "manifests"


@dataclass(frozen=True, kw_only=True)
class AppendParts:
    """New facts with their vectors, behind those that are there. vectors[i] belongs to facts[i]."""

    facts: tuple[Part, ...]
    vectors: tuple[Part, ...]
    dim: int
    dtype: str
    max_norm: float


@dataclass(frozen=True, kw_only=True)
class ReplaceFacts:
    """All facts anew; vectors made for the old facts are dropped. features: version of the feature extraction."""

    facts: tuple[Part, ...]
    grouping: str | None
    features: str | None


@dataclass(frozen=True, kw_only=True)
class ReplaceVectors:
    """All vectors anew, part by part of the facts. encoder: fingerprint of the fact encoder."""

    vectors: tuple[Part, ...]
    dim: int
    dtype: str
    encoder: str | None
    max_norm: float


Change: TypeAlias = AppendParts | ReplaceFacts | ReplaceVectors


@dataclass(frozen=True)
class ParentGeneration:
    """Precondition of a commit: the current generation is this one. None or 0: there is no memory yet."""

    generation: int | None


def apply_change(manifest: Manifest | None, change: Change, *, commit_id: str, note: str = "") -> Manifest:
    """The manifest of the next generation; pure. `manifest` is the current one, None for a new memory.

    Raises DimensionMismatch, InvalidVectors or NoVectors if the change does not fit what the memory holds. created_at
    stays empty until commit.
    """
    base = manifest or _EMPTY
    if base.generation >= LAST_GENERATION:
        raise GenerationConflict(f"expected a generation below {LAST_GENERATION}; copy the memory to a new URL")
    new = replace(
        base,
        generation=base.generation + 1,
        parent=manifest.generation if manifest else None,
        parent_commit=manifest.commit_id if manifest else None,
        commit_id=commit_id,
        created_at="",
        note=note,
    )
    match change:
        case AppendParts():
            _check_append(base, change)
            return replace(
                new,
                facts=base.facts + change.facts,
                vectors=base.vectors + change.vectors,
                fact_count=base.fact_count + sum(part.rows for part in change.facts),
                dim=change.dim,
                dtype=change.dtype,
                max_norm=max(base.max_norm, change.max_norm),
            )
        case ReplaceFacts():
            return replace(
                new,
                facts=change.facts,
                fact_count=sum(part.rows for part in change.facts),
                grouping=change.grouping,
                features=change.features,
                vectors=(),
                dim=0,
                dtype=None,
                encoder=None,
                max_norm=0.0,
            )
        case ReplaceVectors():
            _check_aligned(base.facts, change.vectors)
            return replace(
                new,
                vectors=change.vectors,
                dim=change.dim,
                dtype=change.dtype,
                encoder=change.encoder,
                max_norm=change.max_norm,
            )


def commit(storage: Storage, new: Manifest, *, requires: ParentGeneration) -> Manifest:
    """Publish a generation: it becomes the current one whole or not at all. Returns it as stored, with created_at.

    Raises GenerationConflict if the current generation is not the required one, CorruptFile if a part it names is not
    there, StorageFailed if nothing was published, CommitUnknown if that cannot be told.
    """
    expected = requires.generation or 0
    found = current_generation(storage) or 0
    if found != expected:
        raise _conflict(storage, expected, found)
    assert new.generation == expected + 1, "apply_change was given another manifest than the precondition names"
    _check_parts_exist(storage, new)
    stored = replace(new, created_at=new.created_at or datetime.now(UTC).isoformat(timespec="seconds"))
    path = manifest_path(new.generation)
    try:
        storage.create_exclusive(path, to_bytes(stored))
    except (StorageFailed, FileExistsError) as error:
        # A lost reply looks like a failure, a repeated request like a conflict: only the file itself can tell.
        _settle(storage, stored, expected, error)
    _check_not_overtaken(storage, stored, expected)
    return stored


def read_manifest(storage: Storage, generation: int | None = None) -> Manifest:
    """The manifest of a generation, the current one by default.

    Raises MemoryNotFound, GenerationNotFound, or CorruptFile.
    """
    known = generations(storage)
    if not known:
        raise _no_memory(storage)
    chosen = known[-1] if generation is None else generation
    if chosen not in known:
        raise _no_generation(storage, chosen, known)
    path = manifest_path(chosen)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:  # swept since we looked
        raise _no_generation(storage, chosen, generations(storage)) from None
    return from_bytes(data, storage.where(path), chosen)


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


def manifest_path(generation: int) -> str:
    """manifests/<8 digits>.json"""
    return f"{_FOLDER}/{generation:08d}.json"


_EMPTY = Manifest(
    generation=0,
    parent=None,
    parent_commit=None,
    commit_id="",
    created_at="",
    dim=0,
    dtype=None,
    encoder=None,
    max_norm=0.0,
    fact_count=0,
    tombstones=(),
    features=None,
    grouping=None,
    facts=(),
    vectors=(),
    note="",
)


def _check_append(base: Manifest, change: AppendParts) -> None:
    _check_aligned(change.facts, change.vectors)
    if base.facts and not base.dim:
        raise NoVectors(
            f"the {base.fact_count:,} facts of generation {base.generation} have no vectors yet; "
            "run `hmn embed --memory URL` before adding facts with vectors"
        )
    if base.dim and base.dim != change.dim:
        raise DimensionMismatch(
            f"expected vectors of dimension {base.dim}, which generation {base.generation} holds, found {change.dim}; "
            "write to a new memory or embed with the same encoder"
        )
    if base.dim and base.dtype != change.dtype:
        raise InvalidVectors(f"expected dtype {base.dtype}, which the memory holds, found {change.dtype}")


def _check_aligned(facts: tuple[Part, ...], vectors: tuple[Part, ...]) -> None:
    wanted, found = [part.rows for part in facts], [part.rows for part in vectors]
    if wanted != found:
        raise InvalidVectors(
            f"expected one vectors part per facts part with the same rows ({len(wanted)} parts, {sum(wanted):,} rows), "
            f"found {len(found)} parts, {sum(found):,} rows"
        )


def _check_parts_exist(storage: Storage, new: Manifest) -> None:
    sizes = {entry.path: entry.bytes for folder in ("facts", "vectors") for entry in storage.entries(folder)}
    for part in new.facts + new.vectors:
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


def _check_not_overtaken(storage: Storage, ours: Manifest, expected: int) -> None:
    """Our number may have been free only because others committed it and beyond, and swept it, since we looked."""
    try:
        later = [number for number in generations(storage) if number > ours.generation]
        if not later or read_manifest(storage, later[0]).parent_commit == ours.commit_id:
            return
        storage.delete(manifest_path(ours.generation))
    except HmnError as error:
        raise _unknown(storage, ours, str(error)) from None
    raise _conflict(storage, expected, later[-1])


def _unknown(storage: Storage, ours: Manifest, reason: str) -> CommitUnknown:
    return CommitUnknown(
        f"cannot tell whether generation {ours.generation} of {storage.shown} was committed: {reason}; "
        f"run `hmn inspect` and look for commit {ours.commit_id}"
    )


def _conflict(storage: Storage, expected: int, found: int) -> GenerationConflict:
    def name(number: int) -> str:
        return f"generation {number}" if number else "no memory"

    return GenerationConflict(
        f"{storage.shown}: expected {name(expected)} to be the current one, found {name(found)}; "
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
