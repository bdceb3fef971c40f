"""Typed changes to a memory, and the pure function that makes the next generation's manifest from one."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from memory_store.errors import DimensionMismatch, GenerationConflict, InvalidVectors, NoVectors
from memory_store.manifest_format import LAST_GENERATION, Manifest, Part

__all__ = ["AppendParts", "Change", "ReplaceFacts", "ReplaceVectors", "apply_change"]

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
