"""What the columns of a file mean: by its header if it has one, else by their number; told from its first lines."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from memory_store.errors import EmptyInput, InputError
from pipeline.sources.files import SourceFile, open_stream

__all__ = ["COMMAS", "DELIMITERS", "JSON_LINES", "NTRIPLES", "PARQUET", "TABS", "Layout", "detect_layout"]

TABS, COMMAS, JSON_LINES, PARQUET, NTRIPLES = "tab", "comma", "JSON lines", "Parquet", "N-Triples"
DELIMITERS = {TABS: "\t", COMMAS: ","}

_FORMATS = {
    ".tsv": TABS, ".tab": TABS, ".txt": TABS, ".csv": COMMAS, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES,
    ".parquet": PARQUET, ".pq": PARQUET, ".nt": NTRIPLES, ".ntriples": NTRIPLES,
}  # fmt: skip

# What headers call the columns, in lower case, with spaces and dashes as underscores.
_MEANINGS = {
    "subject_id": ("subject_id", "head_id", "subj_id"),
    "subject": ("subject", "subject_name", "subject_label", "head", "head_name", "subj", "s", "h"),
    "relation": ("relation", "predicate", "property", "rel", "relation_id", "predicate_id", "p", "r"),
    "object_id": ("object_id", "tail_id", "obj_id"),
    "object": ("object", "object_name", "object_label", "tail", "tail_name", "obj", "o", "t"),
    "entity_id": ("entity_id", "entity", "id", "mid"),
    "name": ("name", "label", "alias"),
    "question": ("question",),
}
_MEANING_OF = {name: meaning for meaning, names in _MEANINGS.items() for name in names}
_NEEDED = {"facts": ("subject_id", "relation", "object_id"), "names": ("entity_id", "name")}
_USED = {"facts": ("subject_id", "subject", "relation", "object_id", "object"), "names": ("entity_id", "name")}
_BY_WIDTH = {
    3: ("subject_id", "relation", "object_id"),
    5: ("subject_id", "subject", "relation", "object_id", "object"),
    6: ("source", "subject_id", "subject", "relation", "object_id", "object"),
}

_SAMPLE_BYTES = 256 * 2**10
_SAMPLE_LINES = 500
_ADDRESSES = re.compile(
    r"(www\.\S+/\S+\s*)+"
)  # a text with spaces in it is one object; addresses with spaces between them are many
_QUESTION_FILE = re.compile(r"annotated_fb_data|questions?[_.-]", re.IGNORECASE)
_NAMES_FILE = re.compile(r"^names?[_.-]|[_.-]names?\.", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How to read a file. kind: "facts", "names" or "questions". format: one of the constants of this file.

    columns: meaning (subject_id, subject, relation, object_id, object; entity_id, name) -> number of the column in a
    delimited file, its name in others. width: columns per line of a delimited file. grouped: the object column holds
    several ids separated by spaces, as in the SimpleQuestions release. bytes_per_row: measured on the first lines.
    """

    kind: str
    format: str
    columns: dict[str, int | str] = field(default_factory=dict)
    width: int = 0
    has_header: bool = False
    grouped: bool = False
    bytes_per_row: float = 60.0


def detect_layout(file: SourceFile, *, names: bool = False) -> Layout:
    """Look at the name and the first lines of a file. names: the caller says that it holds names of entities.

    InputError says what was found where facts (or names) cannot be told from it, EmptyInput that there is nothing.
    """
    if not names and _NAMES_FILE.search(file.name):
        with suppress(InputError):  # a name proves nothing: it may be a file of facts about names
            return _detect(file, "names")
    return _detect(file, "names" if names else "facts")


def _detect(file: SourceFile, kind: str) -> Layout:
    format_ = _FORMATS.get(file.suffix)
    if format_ == PARQUET:
        return _by_name(file, kind, PARQUET, _parquet_columns(file))
    lines = _first_lines(file)
    format_ = format_ or _guess_format(lines)
    bytes_per_row = sum(len(line.encode()) + 1 for line in lines) / len(lines)
    if format_ == NTRIPLES:
        return Layout(kind="facts", format=NTRIPLES, bytes_per_row=bytes_per_row)
    if format_ == JSON_LINES:
        return _by_name(file, kind, JSON_LINES, _json_keys(file, lines), bytes_per_row)
    return _delimited(file, kind, format_, lines, bytes_per_row)


def _delimited(file: SourceFile, kind: str, format_: str, lines: Sequence[str], bytes_per_row: float) -> Layout:
    rows = [_csv_row(line) if format_ == COMMAS else line.split("\t") for line in lines]
    header = _meanings(rows[0])
    if "question" in header or _QUESTION_FILE.match(file.name):
        return Layout(kind="questions", format=format_)
    if all(meaning in header for meaning in _NEEDED[kind]):
        columns: dict[str, int | str] = {m: rows[0].index(header[m]) for m in _USED[kind] if m in header}
        width, has_header = len(rows[0]), True
    else:
        width, has_header = Counter(map(len, rows)).most_common(1)[0][0], False
        known = {2: _USED["names"]} if kind == "names" else _BY_WIDTH
        if width not in known:
            raise InputError(f"{file.shown}: {_expected(kind)}, found {width} columns separated by {format_}s")
        columns = {meaning: number for number, meaning in enumerate(known[width]) if meaning in _USED[kind]}
    objects = [row[2] for row in rows if len(row) == 3] if width == 3 and not has_header else []
    grouped = bool(objects) and all(_ADDRESSES.fullmatch(text) for text in objects)
    if grouped:
        bytes_per_row /= sum(len(text.split()) for text in objects) / len(objects)
    return Layout(
        kind=kind,
        format=format_,
        columns=columns,
        width=width,
        has_header=has_header,
        grouped=grouped,
        bytes_per_row=bytes_per_row,
    )


def _csv_row(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []  # the reader will reject it by line


def _by_name(file: SourceFile, kind: str, format_: str, found: Sequence[str], bytes_per_row: float = 60.0) -> Layout:
    meanings = _meanings(found)
    if "question" in meanings:
        return Layout(kind="questions", format=format_)
    if not all(meaning in meanings for meaning in _NEEDED[kind]):
        raise InputError(f"{file.shown}: {_expected(kind)}, found columns {', '.join(found)}")
    columns: dict[str, int | str] = {m: meanings[m] for m in _USED[kind] if m in meanings}
    return Layout(kind=kind, format=format_, columns=columns, bytes_per_row=bytes_per_row)


def _meanings(found: Sequence[str]) -> dict[str, str]:
    """What each known column name means -> the name as written, the first one winning. A lone name is an id."""
    meanings: dict[str, str] = {}
    for column in found:
        meaning = _MEANING_OF.get(re.sub(r"[\s-]+", "_", column.strip().lower().lstrip("\ufeff")))
        if meaning is not None:
            meanings.setdefault(meaning, column)
    for end in ("subject", "object"):
        if f"{end}_id" not in meanings and end in meanings:
            meanings[f"{end}_id"] = meanings.pop(end)
    return meanings


def _expected(kind: str) -> str:
    if kind == "names":
        return "expected names: an id and a name on every line, or a header with entity_id and name"
    return (
        "expected triples: 3 columns (subject, relation, object), 5 columns (subject_id, subject, relation, object_id, "
        "object), 6 columns (a source before these), or a header that names them"
    )


def _first_lines(file: SourceFile) -> list[str]:
    """The first lines with anything in them; the last of the sample is dropped unless the file ends there."""
    with open_stream(file) as stream:
        sample = stream.read(_SAMPLE_BYTES)
        ends = len(sample) < _SAMPLE_BYTES and not stream.read(1)
    text = sample.decode("utf-8-sig", errors="replace")
    lines = text.split("\n")
    if not ends and len(lines) > 1:
        lines.pop()
    filled = [line.rstrip("\r") for line in lines[:_SAMPLE_LINES] if line.strip()]
    if not filled:
        raise EmptyInput(f"{file.shown} is empty; expected triples")
    return filled


def _guess_format(lines: Sequence[str]) -> str:
    """For files whose name does not say."""
    first = lines[0].lstrip()
    if first.startswith("PAR1"):
        return PARQUET
    if first.startswith("{"):
        return JSON_LINES
    if first.startswith(("<", "_:", "#")) and any(line.rstrip().endswith(".") for line in lines):
        return NTRIPLES
    return COMMAS if "," in first and "\t" not in first else TABS


def _json_keys(file: SourceFile, lines: Sequence[str]) -> list[str]:
    keys: dict[str, None] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the reader will reject it by line
        if isinstance(row, dict):
            keys.update(dict.fromkeys(row))
    if not keys:
        raise InputError(f"{file.shown}: expected one JSON object per line, found {lines[0]:.80}")
    return list(keys)


def _parquet_columns(file: SourceFile) -> list[str]:
    with open_stream(file) as stream:
        try:
            return list(pq.ParquetFile(stream).schema_arrow.names)
        except pa.ArrowException as error:
            raise InputError(f"{file.shown} is not a Parquet file, or damaged: {error}") from None
