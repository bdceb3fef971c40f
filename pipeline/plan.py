"""What an ingest will do, before it does anything: its inputs, their pieces, how many parts, and its id."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from memory_store.errors import ConfigError, EmptyInput, GenerationNotFound, InputError
from memory_store.manifest import Manifest, current_generation, read_manifest
from memory_store.manifest_format import GROUPINGS
from memory_store.storage import Storage
from pipeline.features import FEATURES_VERSION
from pipeline.inputs import Input, find_inputs
from pipeline.sources.pieces import KnownFacts, Piece
from pipeline.staging import STAGING, Job

__all__ = ["INGEST_VERSION", "Plan", "plan_ingest"]

INGEST_VERSION = 1
"""Changes whenever the same input would give other parts."""

_OVERFULL = 4  # a memory whose parts hold this many times the wanted rows is cut anew


@dataclass(frozen=True, kw_only=True)
class Plan:
    """shown: what each source is called in messages, by its number. up_to_date: the memory holds this input already."""

    job: Job
    parent: Manifest | None
    pieces: tuple[Piece, ...]
    shown: tuple[str, ...]
    source_bytes: int
    skipped: tuple[str, ...]
    up_to_date: bool

    @property
    def parent_generation(self) -> int:
        """0 where there is no memory yet."""
        return self.parent.generation if self.parent else 0

    @property
    def shown_inputs(self) -> tuple[str, ...]:
        return self.shown[self.job.known_sources :]

    @property
    def commit_id(self) -> str:
        return f"ingest-{self.job.ingest_id}"


def plan_ingest(
    sources: Sequence[str],
    url: str,
    *,
    names: Sequence[str],
    grouping: str,
    segment_bytes: int,
    rows_per_part: int,
) -> Plan:
    """Look at the sources and the memory, read nothing but first lines, write nothing.

    Raises ConfigError for options, InputError or EmptyInput for sources that cannot be what they should be.
    """
    if grouping not in GROUPINGS:
        raise ConfigError(f"grouping {grouping!r} is unknown; expected one of {', '.join(GROUPINGS)}")
    if segment_bytes < 1 or rows_per_part < 1:
        raise ConfigError(
            f"expected positive sizes, found segment_bytes={segment_bytes}, rows_per_part={rows_per_part}"
        )
    if not sources:
        raise EmptyInput("there is nothing to ingest: give a file, a glob, a directory or builtin:geonames")
    inputs, skipped = find_inputs(sources, names)
    storage = Storage(url)
    parent = read_manifest(storage) if current_generation(storage) else None
    if parent is not None and parent.fact_count and parent.grouping not in (None, grouping):
        raise InputError(
            f"the memory at {storage.shown} groups facts by {parent.grouping!r}, not by {grouping!r}; use its "
            "grouping, or ingest into a new memory"
        )
    tombstones = parent.tombstones if parent else ()
    known: list[Piece] = [
        KnownFacts(source=number, url=storage.url, part=part, tombstones=tombstones, grouping=grouping)
        for number, part in enumerate(parent.facts if parent else ())
    ]
    options = {"grouping": grouping, "segment_bytes": segment_bytes, "rows_per_part": rows_per_part}
    ingest_id = _ingest_id(inputs, options, parent)
    job = Job(
        url=storage.url,
        ingest_id=ingest_id,
        folder=f"{STAGING}/{parent.generation if parent else 0:08d}-{ingest_id}",
        buckets=_buckets(sum(item.triples for item in inputs), parent, rows_per_part),
        grouping=grouping,
        known_sources=len(known),
        names_expected=bool(known) or any(item.gives_names for item in inputs),
    )
    pieces = known + [
        piece for number, item in enumerate(inputs, start=len(known)) for piece in item.pieces(number, segment_bytes)
    ]
    return Plan(
        job=job,
        parent=parent,
        pieces=tuple(pieces),
        shown=(*(part.path for part in (parent.facts if parent else ())), *(item.shown for item in inputs)),
        source_bytes=sum(item.bytes for item in inputs),
        skipped=tuple(skipped),
        up_to_date=_holds_already(storage, inputs, options, parent),
    )


def _ingest_id(inputs: Sequence[Input], options: dict[str, object], parent: Manifest | None) -> str:
    content = {
        "version": INGEST_VERSION,
        "features": FEATURES_VERSION,
        "inputs": [item.identity for item in inputs],
        "options": options,
        "parent": [parent.generation, parent.commit_id] if parent else None,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())[:20]


def _holds_already(
    storage: Storage, inputs: Sequence[Input], options: dict[str, object], current: Manifest | None
) -> bool:
    """Whether the facts of the current generation were made by this very ingest: it was killed late, or is repeated."""
    manifest = current
    held = (current.facts, current.tombstones) if current is not None else None
    while manifest is not None and (manifest.facts, manifest.tombstones) == held:
        parent = None
        if manifest.parent is not None:
            try:
                parent = read_manifest(storage, manifest.parent)
            except GenerationNotFound:
                return False
        if manifest.commit_id == f"ingest-{_ingest_id(inputs, options, parent)}":
            return True
        manifest = parent
    return False


def _buckets(new_rows: float, parent: Manifest | None, rows_per_part: int) -> int:
    """How many parts, a power of two; the same again when the same input comes again, so that nothing changes."""
    wanted = _power_of_two(new_rows / rows_per_part)
    if parent is None or not parent.facts:
        return wanted
    known_rows = parent.fact_count
    at_least = _power_of_two(known_rows / (_OVERFULL * rows_per_part))
    at_most = _power_of_two(_OVERFULL * known_rows / rows_per_part)
    return max(wanted, at_least, min(_power_of_two(len(parent.facts)), at_most))


def _power_of_two(number: float) -> int:
    power = 1
    while power < number:
        power *= 2
    return power
