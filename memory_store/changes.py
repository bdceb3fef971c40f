"""Typed changes to a memory, and the pure function that makes the next generation's manifest from one."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from memory_store.errors import DimensionMismatch, GenerationConflict, InvalidVectors, NoVectors
from memory_store.manifest_format import FORMAT_VERSION, LAST_GENERATION, Manifest, Part

__all__ = [
    "AppendParts",
    "Change",
    "CompactParts",
    "DeleteRows",
    "ReplaceFacts",
    "ReplaceVectors",
    "RestoreContent",
    "UpsertRows",
    "apply_change",
]

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


@dataclass(frozen=True, kw_only=True)
class AppendParts:
    """New facts with their vectors, behind those of the main index. vectors[i] belongs to facts[i]."""

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


@dataclass(frozen=True, kw_only=True)
class UpsertRows:
    """Fresh rows, searched beside the main index, and tombstones for the rows that they overwrite."""

    facts: tuple[Part, ...]
    vectors: tuple[Part, ...]
    tombstones: tuple[Part, ...]
    dim: int
    dtype: str
    max_norm: float


@dataclass(frozen=True, kw_only=True)
class DeleteRows:
    """Tombstones for rows that are live."""

    tombstones: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class CompactParts:
    """The same live rows in other parts; the first ones are for the main index, the last delta_parts beside it."""

    facts: tuple[Part, ...]
    vectors: tuple[Part, ...]
    tombstones: tuple[Part, ...]
    delta_parts: int


@dataclass(frozen=True, kw_only=True)
class RestoreContent:
    """Everything as it was in an older generation."""

    manifest: Manifest


Change: TypeAlias = (
    AppendParts | ReplaceFacts | ReplaceVectors | UpsertRows | DeleteRows | CompactParts | RestoreContent
)

_OPERATIONS: dict[type[Change], str] = {
    AppendParts: "append",
    ReplaceFacts: "ingest",
    ReplaceVectors: "embed",
    UpsertRows: "upsert",
    DeleteRows: "delete",
    CompactParts: "compact",
    RestoreContent: "rollback",
}


def apply_change(manifest: Manifest | None, change: Change, *, commit_id: str, note: str = "") -> Manifest:
    """The manifest of the next generation; pure. `manifest` is the current one, None for a new memory.

    Raises DimensionMismatch, InvalidVectors or NoVectors if the change does not fit what the memory holds. created_at
    and author stay empty until commit.
    """
    base = manifest or _EMPTY
    if base.generation >= LAST_GENERATION:
        raise GenerationConflict(f"expected a generation below {LAST_GENERATION}; copy the memory to a new URL")
    new = replace(
        base,
        format_version=FORMAT_VERSION,
        generation=base.generation + 1,
        parent=manifest.generation if manifest else None,
        parent_commit=manifest.commit_id if manifest else None,
        commit_id=commit_id,
        created_at="",
        note=note,
        operation=_OPERATIONS[type(change)],
        author="",
    )
    match change:
        case AppendParts():
            _check_append(base, change)
            main = len(base.facts) - base.delta_parts
            return replace(
                new,
                facts=base.facts[:main] + change.facts + base.facts[main:],
                vectors=base.vectors[:main] + change.vectors + base.vectors[main:],
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
                tombstones=(),
                delta_parts=0,
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
                delta_parts=0,  # every vector is new, so the main index is built anew, over all parts
            )
        case UpsertRows():
            _check_append(base, change)
            return replace(
                new,
                facts=base.facts + change.facts,
                vectors=base.vectors + change.vectors,
                tombstones=base.tombstones + change.tombstones,
                fact_count=base.fact_count + _rows(change.facts) - _rows(change.tombstones),
                delta_parts=base.delta_parts + len(change.facts),
                dim=change.dim,
                dtype=change.dtype,
                max_norm=max(base.max_norm, change.max_norm),
            )
        case DeleteRows():
            return replace(
                new,
                tombstones=base.tombstones + change.tombstones,
                fact_count=base.fact_count - _rows(change.tombstones),
            )
        case CompactParts():
            if base.dim:
                _check_aligned(change.facts, change.vectors)
            live = _rows(change.facts) - _rows(change.tombstones)
            assert live == base.fact_count, f"a compaction keeps {base.fact_count} facts, not {live}"
            return replace(
                new,
                facts=change.facts,
                vectors=change.vectors,
                tombstones=change.tombstones,
                delta_parts=change.delta_parts,
            )
        case RestoreContent():
            old = change.manifest
            return replace(
                new,
                dim=old.dim,
                dtype=old.dtype,
                encoder=old.encoder,
                max_norm=old.max_norm,
                fact_count=old.fact_count,
                tombstones=old.tombstones,
                features=old.features,
                grouping=old.grouping,
                facts=old.facts,
                vectors=old.vectors,
                delta_parts=old.delta_parts,
            )


def _rows(parts: tuple[Part, ...]) -> int:
    return sum(part.rows for part in parts)


def _check_append(base: Manifest, change: AppendParts | UpsertRows) -> None:
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
