"""Facts from sources into a living memory: read, cleaned, grouped and embedded in memory, then upserted or deleted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from uuid import uuid4

import pyarrow as pa
from numpy.typing import ArrayLike

from memory_store.errors import EmptyInput, InputError, NoVectors, VersionMismatch
from memory_store.manifest import Manifest, read_manifest
from memory_store.parts import FACTS_SCHEMA, fact_ids_of
from memory_store.storage import Storage
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts
from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA
from pipeline.features import FEATURES_VERSION
from pipeline.group import group_facts
from pipeline.inputs import find_inputs
from pipeline.quarantine import write_quarantine
from pipeline.sources.files import SEGMENT_BYTES
from pipeline.sources.rows import BadRow, Parsed

# N facts, D dimension

__all__ = ["WriteSummary", "delete", "upsert"]


@dataclass(frozen=True, kw_only=True)
class WriteSummary:
    """What an upsert or a delete did. generation: the one that shows it; committed: whether this call made it.

    facts: upserted or deleted; triples: rows read from the sources; quarantined: rows rejected, listed in `quarantine`.
    """

    generation: int
    committed: bool
    facts: int
    triples: int
    quarantined: int
    quarantine: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """Facts of all sources together."""

    facts: pa.Table
    triples: int
    quarantined: int
    quarantine: str | None


def upsert(
    sources: Sequence[str],
    url: str,
    encode: Callable[[pa.Table], ArrayLike],
    *,
    fingerprint: str,
    names: Sequence[str] = (),
    strict: bool = False,
    note: str | None = None,
) -> WriteSummary:
    """Put the facts of the sources into the memory: new ones beside, known ones in place of what they said before.

    A fact is what its triples say here, all its objects; an ingest would add them to the known ones. sources, names,
    strict: as for `ingest`; everything is held in memory at once. encode: a table of FACTS_SCHEMA with N rows ->
    vectors [N, D]; fingerprint names it, and must be that of the memory's encoder. Raises VersionMismatch if it is not,
    NoVectors, InputError or EmptyInput for the sources, and what memory_store.writes.upsert_facts raises.
    """
    started_s = time.monotonic()
    storage = Storage(url)
    current = read_manifest(storage)
    if not current.dtype:
        raise NoVectors(f"the facts of {storage.shown} have no vectors yet; run `hmn embed` first")
    if current.encoder != fingerprint:
        raise VersionMismatch(
            f"expected the model that embedded generation {current.generation} of {storage.shown}, {current.encoder}, "
            f"found {fingerprint}; name the run that embedded it, or run `hmn embed` with this one first"
        )
    if current.features != FEATURES_VERSION:
        raise VersionMismatch(
            f"expected facts with the text features {FEATURES_VERSION}, found {current.features}; ingest them again"
        )
    read = _read(sources, names, storage, current, strict)
    locate = partial(locate_on_disk, storage)
    said = f"upsert of {', '.join(sources)}" if note is None else note
    new = upsert_facts(storage, read.facts, encode(read.facts), locate=locate, made_for=current, note=said)
    return _summary(new, current, read.facts.num_rows, read, started_s)


def delete(
    sources: Sequence[str], url: str, *, fact_ids: Sequence[int] = (), strict: bool = False, note: str | None = None
) -> WriteSummary:
    """Delete facts by their ids, and every fact that a triple of the sources belongs to.

    With the grouping "relation" a triple names the whole fact: its subject and relation. Raises UnknownFact, and
    deletes nothing, if the memory lacks one of them.
    """
    started_s = time.monotonic()
    storage = Storage(url)
    current = read_manifest(storage)
    nothing = _Read(facts=FACTS_SCHEMA.empty_table(), triples=0, quarantined=0, quarantine=None)
    read = _read(sources, (), storage, current, strict) if sources else nothing
    doomed = sorted({*fact_ids, *fact_ids_of(read.facts).tolist()})
    if not doomed:
        raise EmptyInput("there is nothing to delete: give fact ids, or sources of triples")
    said = f"delete of {len(doomed):,} facts" if note is None else note
    new = delete_facts(storage, doomed, locate=partial(locate_on_disk, storage), note=said)
    return _summary(new, current, len(doomed), read, started_s)


def _read(sources: Sequence[str], names: Sequence[str], storage: Storage, current: Manifest, strict: bool) -> _Read:
    inputs, _ = find_inputs(sources, names)
    found: list[tuple[int, int, Parsed]] = []
    for source, given in enumerate(inputs):
        for piece in given.pieces(source, SEGMENT_BYTES):
            found += [(source, segment, parsed) for segment, parsed in piece.parse(lambda _segment: True)]
    found.sort(key=lambda item: item[:2])
    bad: list[tuple[str, BadRow]] = []
    first_line = [0] * len(inputs)
    for source, _, parsed in found:
        for row in parsed.bad:
            whole_file = BadRow(line=row.line + first_line[source], raw=row.raw, reason=row.reason)
            bad.append((inputs[source].shown, whole_file))
        first_line[source] += parsed.lines
    if bad and strict:
        shown, row = bad[0]
        raise InputError(
            f"{shown}, line {row.line}: {row.reason}: {row.raw:.200}; correct the file, or leave --strict out"
        )
    quarantine = None
    if bad:
        quarantine = write_quarantine(
            storage, f"write-{uuid4().hex[:20]}", ((shown, asdict(row)) for shown, row in bad)
        )
    triples = pa.concat_tables([TRIPLES_SCHEMA.empty_table(), *(parsed.triples for _, _, parsed in found)])
    if not triples.num_rows:
        where = f"; all {len(bad):,} rows were rejected, see {storage.where(quarantine)}" if quarantine else ""
        raise EmptyInput(f"there are no facts in {', '.join(given.shown for given in inputs):.300}{where}")
    called = pa.concat_tables([NAMES_SCHEMA.empty_table(), *(parsed.names for _, _, parsed in found)])
    grouped = group_facts(triples, called, called, grouping=current.grouping or "relation")
    return _Read(facts=grouped.facts, triples=triples.num_rows, quarantined=len(bad), quarantine=quarantine)


def _summary(new: Manifest, before: Manifest, facts: int, read: _Read, started_s: float) -> WriteSummary:
    return WriteSummary(
        generation=new.generation,
        committed=new.generation != before.generation,
        facts=facts,
        triples=read.triples,
        quarantined=read.quarantined,
        quarantine=read.quarantine,
        seconds=time.monotonic() - started_s,
    )
