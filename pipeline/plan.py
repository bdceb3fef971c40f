"""What an ingest will do, before it does anything: its inputs, their pieces, how many parts, and its id."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import xxhash

from memory_store.errors import ConfigError, EmptyInput, GenerationNotFound, InputError
from memory_store.manifest import Manifest, current_generation, read_manifest
from memory_store.manifest_format import GROUPINGS
from memory_store.storage import Storage
from pipeline.features import FEATURES_VERSION
from pipeline.sources.files import SourceFile, find_files
from pipeline.sources.layout import NTRIPLES, Layout, detect_layout
from pipeline.sources.pieces import KnownFacts, Piece, file_pieces
from pipeline.staging import STAGING, Job

__all__ = ["INGEST_VERSION", "Input", "Plan", "plan_ingest"]

INGEST_VERSION = 1
"""Changes whenever the same input would give other parts."""

_EXPANSION = {None: 1.0, "gzip": 4.0, "zstd": 8.0}  # decompressed bytes per byte, for text of this kind
_OVERFULL = 4  # a memory whose parts hold this many times the wanted rows is cut anew


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file of an ingest and how it is read."""

    file: SourceFile
    layout: Layout

    @property
    def rows(self) -> float:
        """A guess, from the size and the first lines."""
        return self.file.bytes * _EXPANSION[self.file.codec] / self.layout.bytes_per_row


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
    inputs, skipped = _find_inputs(sources, names)
    storage = Storage(url)
    parent = read_manifest(storage) if current_generation(storage) else None
    if parent is not None and parent.fact_count and parent.grouping not in (None, grouping):
        raise InputError(
            f"the memory at {storage.shown} groups facts by {parent.grouping!r}, not by {grouping!r}; use its "
            "grouping, or ingest into a new memory"
        )
    known: list[Piece] = [
        KnownFacts(source=number, url=storage.url, part=part, grouping=grouping)
        for number, part in enumerate(parent.facts if parent else ())
    ]
    # Names given as such come before what the triples say, so that the first line of a names file names the entity.
    inputs.sort(key=lambda item: item.layout.kind != "names")
    options = {"grouping": grouping, "segment_bytes": segment_bytes, "rows_per_part": rows_per_part}
    ingest_id = _ingest_id(inputs, options, parent)
    new_rows = sum(item.rows for item in inputs if item.layout.kind == "facts")
    job = Job(
        url=storage.url,
        ingest_id=ingest_id,
        folder=f"{STAGING}/{parent.generation if parent else 0:08d}-{ingest_id}",
        buckets=_buckets(new_rows, parent, rows_per_part),
        grouping=grouping,
        known_sources=len(known),
        names_expected=bool(known)
        or any(item.layout.kind == "names" or item.layout.format == NTRIPLES for item in inputs),
    )
    pieces = known + [
        piece
        for number, item in enumerate(inputs, start=len(known))
        for piece in file_pieces(number, item.file, item.layout, segment_bytes)
    ]
    return Plan(
        job=job,
        parent=parent,
        pieces=tuple(pieces),
        shown=(*(part.path for part in (parent.facts if parent else ())), *(item.file.shown for item in inputs)),
        source_bytes=sum(item.file.bytes for item in inputs),
        skipped=tuple(skipped),
        up_to_date=_holds_already(storage, inputs, options, parent),
    )


def _find_inputs(sources: Sequence[str], names: Sequence[str]) -> tuple[list[Input], list[str]]:
    """Every file once; in directories and globs, files of questions are left out, and so are empty files."""
    inputs: dict[str, Input] = {}
    skipped = []
    for source, is_names in [(source, False) for source in sources] + [(source, True) for source in names]:
        files = find_files(source)
        for file in files:
            try:
                layout = detect_layout(file, names=is_names)
            except EmptyInput:
                if len(files) == 1:
                    raise
                skipped.append(file.shown)
                continue
            if layout.kind != "questions":
                inputs[file.url] = Input(file=file, layout=layout)
            elif len(files) > 1:
                skipped.append(file.shown)
            else:
                raise InputError(f"{file.shown} holds questions, not facts; `hmn train` and `hmn evaluate` read them")
    if not any(item.layout.kind == "facts" for item in inputs.values()):
        raise EmptyInput(f"there are no facts in {', '.join(sources)}; expected files of triples")
    return list(inputs.values()), skipped


def _ingest_id(inputs: Sequence[Input], options: dict[str, object], parent: Manifest | None) -> str:
    content = {
        "version": INGEST_VERSION,
        "features": FEATURES_VERSION,
        "inputs": [asdict(item) for item in inputs],
        "options": options,
        "parent": [parent.generation, parent.commit_id] if parent else None,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())[:20]


def _holds_already(
    storage: Storage, inputs: Sequence[Input], options: dict[str, object], current: Manifest | None
) -> bool:
    """Whether the facts of the current generation were made by this very ingest: it was killed late, or is repeated."""
    manifest = current
    while manifest is not None and current is not None and manifest.facts == current.facts:
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
