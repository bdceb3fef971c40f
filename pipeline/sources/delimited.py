"""Tab- and comma-separated rows, and the grouped SimpleQuestions layout, split with array operations."""

import csv
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.sources.files import Segment
from pipeline.sources.layout import COMMAS, DELIMITERS, Layout
from pipeline.sources.lines import Lines, split_lines
from pipeline.sources.rows import BadRow, Parsed, check_names, check_triples, shorten

# L lines of a segment, F fields of all its lines, N rows with the right number of fields

__all__ = ["parse_delimited"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fields:
    """All fields of a segment, line after line. first_L: index in text_F of each line's first field."""

    text_F: pa.Array
    first_L: NDArray[np.int64]
    count_L: NDArray[np.int64]


def parse_delimited(segment: Segment, layout: Layout) -> Parsed:
    """One record per line; quotes are data in tab-separated files, and quote a field in comma-separated ones."""
    lines = split_lines(segment)
    bad = list(lines.bad)
    if layout.format == COMMAS and b'"' in lines.data:
        fields = _quoted_fields(lines, bad)
    else:
        fields = _plain_fields(lines, DELIMITERS[layout.format])
    skipped_L = lines.skipped
    if layout.has_header and segment.index == 0:
        skipped_L[np.flatnonzero(~skipped_L)[:1]] = True
    skipped_L[[row.line - 1 for row in bad]] = True
    wrong_L = (fields.count_L != layout.width) & ~skipped_L
    for line in np.flatnonzero(wrong_L):
        reason = f"expected {layout.width} columns, found {fields.count_L[line]}"
        bad.append(BadRow(line=int(line) + 1, raw=shorten(lines.raw(int(line) + 1)), reason=reason))
    good_N = np.flatnonzero(~wrong_L & ~skipped_L)
    columns = {
        name: fields.text_F.take(pa.array(fields.first_L[good_N] + int(number)))
        for name, number in layout.columns.items()
    }
    line_N = good_N + 1
    if layout.kind == "names":
        names, rejected = check_names(columns, line_N, lines.raw)
        return Parsed(names=names, bad=_in_order(bad + rejected), lines=lines.count)
    if layout.grouped:
        columns, line_N = _ungroup(columns, line_N)
    triples, rejected = check_triples(columns, line_N, lines.raw)
    return Parsed(triples=triples, bad=_in_order(bad + rejected), lines=lines.count)


def _plain_fields(lines: Lines, delimiter: str) -> _Fields:
    """Squeeze the separators out of the bytes: what remains is the data buffer of one string array of all fields."""
    bytes_ = np.frombuffer(lines.data, dtype=np.uint8)
    is_newline = bytes_ == ord("\n")
    is_end = is_newline | (bytes_ == ord(delimiter))
    end_F = np.flatnonzero(is_end)
    offsets = np.zeros(len(end_F) + 1, dtype=np.int32)
    offsets[1:] = end_F - np.arange(len(end_F))
    text_F = pa.StringArray.from_buffers(len(end_F), pa.py_buffer(offsets), pa.py_buffer(bytes_[~is_end]))
    last_L = np.flatnonzero(is_newline[end_F])
    first_L = np.concatenate([np.zeros(1, np.int64), last_L[:-1] + 1]) if len(last_L) else last_L
    return _Fields(text_F=text_F, first_L=first_L, count_L=last_L - first_L + 1)


def _quoted_fields(lines: Lines, bad: list[BadRow]) -> _Fields:
    """CSV with quotes, line by line, so that one stray quote does not swallow the lines that follow it."""
    texts: list[str] = []
    counts = np.zeros(lines.count, dtype=np.int64)
    for number, line in enumerate(lines.data.decode().split("\n")[: lines.count]):
        try:
            row = next(csv.reader([line], strict=True), [""])
        except csv.Error as error:
            row = [""]
            bad.append(BadRow(line=number + 1, raw=shorten(line), reason=f"malformed CSV: {error}"))
        texts += row
        counts[number] = len(row)
    return _Fields(text_F=pa.array(texts, pa.string()), first_L=np.cumsum(counts) - counts, count_L=counts)


def _ungroup(columns: dict[str, pa.Array], line_N: NDArray[np.int64]) -> tuple[dict[str, pa.Array], NDArray[np.int64]]:
    """One row per object: the object column holds ids separated by spaces."""
    objects_N = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(columns["object_id"]))
    row_T = pc.list_parent_indices(objects_N)
    ungrouped = {name: column.take(row_T) for name, column in columns.items() if name != "object_id"}
    ungrouped["object_id"] = pc.list_flatten(objects_N)
    return ungrouped, line_N[row_T.to_numpy()]


def _in_order(bad: list[BadRow]) -> list[BadRow]:
    return sorted(bad, key=lambda row: row.line)
