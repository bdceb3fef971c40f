"""Sources cut into pieces of work: each piece parses on its own, anywhere, and always to the same rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory_store.errors import InputError
from memory_store.manifest import Part
from memory_store.parts import FACTS_SCHEMA, dead_rows, live_rows, open_part
from memory_store.storage import Storage
from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA, fact_ids
from pipeline.sources.delimited import parse_delimited
from pipeline.sources.files import Segment, SourceFile, cut_segments, read_segment
from pipeline.sources.jsonlines import parse_json_lines
from pipeline.sources.layout import DELIMITERS, JSON_LINES, PARQUET, Layout
from pipeline.sources.ntriples import parse_ntriples
from pipeline.sources.parquet import parse_parquet
from pipeline.sources.rows import Parsed

__all__ = ["FilePiece", "KnownFacts", "Piece", "file_pieces", "parse_segment"]

_LANES = 4
_BYTES_WORTH_LANES = 4 * 2**20  # compressed bytes from which a file is worth decompressing several times over


class Piece(Protocol):
    """A share of one source. source: the number of its file among all inputs; key: its name, unique in an ingest."""

    @property
    def source(self) -> int: ...

    @property
    def key(self) -> str: ...

    @property
    def only_segment(self) -> int | None:
        """The one segment it has, if that is known before it is read."""
        ...

    def parse(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Parsed]]:
        """The wanted segments of this piece, each with its number in the source."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilePiece:
    """Every lanes-th segment of a file, from segment number `lane`; of an uncompressed file just that one segment."""

    source: int
    file: SourceFile
    layout: Layout
    segment_bytes: int
    lane: int
    lanes: int

    @property
    def key(self) -> str:
        return f"{self.source:06d}-{self.lane:08d}"

    @property
    def only_segment(self) -> int | None:
        return None if self.file.codec or self.layout.format == PARQUET else self.lane

    def parse(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Parsed]]:
        def mine(segment: int) -> bool:
            return segment % self.lanes == self.lane and wanted(segment)

        if self.layout.format == PARQUET:
            yield from parse_parquet(self.file, self.layout, mine)
        elif self.file.codec:
            for segment in cut_segments(self.file, mine, self.segment_bytes):
                yield segment.index, parse_segment(segment, self.layout, self.file)
        elif wanted(self.lane):
            yield (
                self.lane,
                parse_segment(read_segment(self.file, self.lane, self.segment_bytes), self.layout, self.file),
            )


@dataclass(frozen=True, kw_only=True)
class KnownFacts:
    """One part of the facts that the memory has already, to be merged with new ones; its dead rows are left out."""

    source: int
    url: str
    part: Part
    tombstones: tuple[Part, ...]
    grouping: str

    only_segment = 0

    @property
    def key(self) -> str:
        return f"{self.source:06d}-known"

    def parse(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Parsed]]:
        if not wanted(0):
            return
        storage = Storage(self.url)
        facts = open_part(storage, self.part, FACTS_SCHEMA)
        dead = dead_rows(storage, [self.part], self.tombstones)
        if self.part.path in dead:
            facts = facts.take(pa.array(live_rows(facts.num_rows, dead[self.part.path]))).combine_chunks()
        if not facts.num_rows:
            yield 0, Parsed()
            return
        without_nulls = all(facts.column(name).null_count == 0 for name in FACTS_SCHEMA.names[:-1])
        if not without_nulls or not pc.min(pc.list_value_length(facts.column("object_ids"))).as_py():
            raise InputError(
                f"the memory at {storage.shown} holds facts without subject, relation or objects, which cannot be "
                "merged with others; ingest into a new memory"
            )
        yield 0, Parsed(triples=self._triples(facts, storage), names=_names(facts), lines=facts.num_rows)

    def _triples(self, facts: pa.Table, storage: Storage) -> pa.Table:
        objects = facts.column("object_ids").combine_chunks()
        row_T = pc.list_parent_indices(objects)
        subject_id, relation = (facts.column(name).combine_chunks().take(row_T) for name in ("subject_id", "relation"))
        object_id, name = objects.flatten(), facts.column("objects").combine_chunks().flatten()
        minted = fact_ids(subject_id, relation, object_id if self.grouping == "triple" else None)
        if not np.array_equal(minted, np.asarray(facts.column("fact_id"))[np.asarray(row_T)]):
            raise InputError(
                f"the memory at {storage.shown} holds facts whose ids were not made from their content, which cannot "
                "be merged with others; ingest into a new memory"
            )
        # An id in place of a name is no name: a names file read now may know it.
        named = pc.if_else(pc.equal(object_id, name), pa.scalar(None, pa.string()), name)
        unsaid = pa.nulls(len(row_T), pa.string())  # names come with _names, aliases and all
        return pa.table([subject_id, unsaid, relation, object_id, named], schema=TRIPLES_SCHEMA)


def file_pieces(source: int, file: SourceFile, layout: Layout, segment_bytes: int) -> list[FilePiece]:
    """The pieces of one file; depends on nothing but the file, so that every ingest of it cuts it alike."""
    if layout.format == PARQUET:
        lanes = 1
    elif file.codec:
        lanes = _LANES if file.bytes >= _BYTES_WORTH_LANES else 1
    else:
        lanes = max(1, -(-file.bytes // segment_bytes))
    return [
        FilePiece(source=source, file=file, layout=layout, segment_bytes=segment_bytes, lane=lane, lanes=lanes)
        for lane in range(lanes)
    ]


def parse_segment(segment: Segment, layout: Layout, file: SourceFile) -> Parsed:
    """Lines of any text format to triples or names."""
    if layout.format in DELIMITERS:
        return parse_delimited(segment, layout)
    if layout.format == JSON_LINES:
        return parse_json_lines(segment, layout)
    return parse_ntriples(segment, file.name)


def _names(facts: pa.Table) -> pa.Table:
    """The names of the subjects, each once, in their order: those that have one beside their id."""
    first = facts.select(["subject_id", "subject"]).filter(pc.not_equal(facts["subject"], facts["subject_id"]))
    aliases = facts.column("aliases").combine_chunks()
    others = [facts.column("subject_id").combine_chunks().take(pc.list_parent_indices(aliases)), aliases.flatten()]
    both = pa.concat_tables([pa.table(list(first.columns), schema=NAMES_SCHEMA), pa.table(others, schema=NAMES_SCHEMA)])
    numbered = both.append_column("row", pa.array(np.arange(len(both))))
    grouped = pa.TableGroupBy(numbered, ["entity_id", "name"], use_threads=False).aggregate([("row", "min")])
    # Groups come in no order that Arrow promises, and a name in another place would make another fact of it.
    return both.take(grouped["row_min"].sort())
