"""Questions with the fact that answers them: SimpleQuestions files, any table with a header, or generated ones."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memory_store.errors import ConfigError, EmptyInput, InputError
from pipeline.facts import clean, entity_ids, relation_ids
from pipeline.sources.builtin import is_builtin, read_builtin_questions
from pipeline.sources.files import SourceFile, find_files, open_stream
from pipeline.sources.jsonlines import json_text

__all__ = ["QUESTIONS_SCHEMA", "SPLITS", "RejectedQuestion", "read_questions"]

QUESTIONS_SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("subject_id", pa.string()),
        ("relation", pa.string()),
        ("object_id", pa.string()),  # null where the file does not say it
    ]
)
"""A question and the fact it asks for; ids in the spelling that facts have."""

SPLITS = ("train", "valid", "test")

_SIMPLE_QUESTIONS = ("subject_id", "relation", "object_id", "question")
_NEEDED = ("question", "subject_id", "relation")
_COLUMNS = {
    "question": ("question", "text"),
    "subject_id": ("subject_id", "subject", "head", "entity_id"),
    "relation": ("relation", "predicate", "property"),
    "object_id": ("object_id", "object", "tail", "answer_id"),
}
_QUESTION_FILE = re.compile(r"annotated_fb_data_(?P<simple>\w+?)\.|questions?[_-](?P<other>\w+?)\.", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RejectedQuestion:
    """A row that cannot be asked. line: from 1; in a Parquet file, the row. raw: as it is there."""

    file: str
    line: int
    reason: str
    raw: str


def read_questions(
    source: str, split: str | None = None, *, alone_is: str = "train", rejected: list[RejectedQuestion] | None = None
) -> pa.Table:
    """A table of QUESTIONS_SCHEMA, in the order of the files.

    source: builtin:geonames, a file, a glob or a directory of annotated_fb_data_<split>.txt or questions_<split>.tsv
    files, plain or compressed: 4 columns (subject, relation, object, question), or a header with the names of
    QUESTIONS_SCHEMA in any order; .csv, .jsonl and .parquet as well. split: "train", "valid" or "test"; None reads all
    of them. alone_is: the split that a single file is, whatever its name; it has no questions of the others.
    rejected: an empty list, to take the rows that cannot be asked, which are left out; without it the first one raises
    InputError with file and line. So does a file that cannot be read; EmptyInput for a split without questions,
    ConfigError for an unknown split.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    if is_builtin(source):
        return read_builtin_questions(source, split).cast(QUESTIONS_SCHEMA)
    files = find_files(source)
    if len(files) > 1 or files[0].name != PurePosixPath(source).name:
        files = [file for file in files if _split_of(file) in (SPLITS if split is None else (split,))]
    elif split not in (None, alone_is):
        raise EmptyInput(
            f"expected questions of split {split!r}, found one file, {files[0].shown}, whose questions are all those "
            "of training; name others with `hmn evaluate RUN --questions FILE`, or train with a directory or a glob of "
            f"questions_train.tsv and questions_{split}.tsv as data.questions"
        )
    tables = [_read(file, rejected) for file in files]
    if not any(table.num_rows for table in tables):
        if rejected:
            first = rejected[0]
            raise EmptyInput(
                f"expected questions in {source}, found {len(rejected):,} rows that cannot be asked; "
                f"the first is line {first.line} of {first.file}: {first.reason}: {first.raw:.200}"
            )
        expected = f"annotated_fb_data_{split or '<split>'}.txt or questions_{split or '<split>'}.tsv"
        raise EmptyInput(f"there are no questions in {source}; expected a file such as {expected}")
    return pa.concat_tables(tables)


def _split_of(file: SourceFile) -> str | None:
    match = _QUESTION_FILE.match(file.name)
    return (match["simple"] or match["other"]).lower() if match else None


def _read(file: SourceFile, rejected: list[RejectedQuestion] | None) -> pa.Table:
    rows = _Rows(file, rejected)
    if file.suffix in (".parquet", ".pq"):
        with open_stream(file) as stream:
            table = pq.read_table(stream)
        numbers = _positions(file, table.column_names)
        columns = {name: pc.fill_null(table.column(at).cast(pa.string()), "") for name, at in numbers.items()}
        at = range(1, table.num_rows + 1)
        return rows.table(columns, at, lambda row: json.dumps(table.slice(row, 1).to_pylist()[0], default=str))
    with open_stream(file) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file.shown}: not UTF-8 at byte {error.start:,}; convert the file") from None
    lines = [
        (number, line) for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1) if line.strip()
    ]
    if not lines:
        return QUESTIONS_SCHEMA.empty_table()
    if file.suffix in (".jsonl", ".ndjson"):
        return _read_objects(rows, lines)
    is_csv = file.suffix == ".csv"
    cells = [next(csv.reader([line])) if is_csv else line.split("\t") for _, line in lines]
    if _known(cells[0]):
        numbers, width = _positions(file, cells[0]), len(cells[0])
        lines, cells = lines[1:], cells[1:]
    else:
        numbers, width = {name: at for at, name in enumerate(_SIMPLE_QUESTIONS)}, len(_SIMPLE_QUESTIONS)
        cells = [[*row[:3], " ".join(row[3:])] if len(row) > width else row for row in cells]  # it may hold tabs
    kept, kept_lines = [], []
    for (number, line), row in zip(lines, cells, strict=True):
        if len(row) == width:
            kept.append(row)
            kept_lines.append((number, line))
        else:
            rows.reject(number, f"expected {width} columns, found {len(row)}", line)
    columns = {name: _strings([row[at] for row in kept]) for name, at in numbers.items()}
    return rows.table(columns, [number for number, _ in kept_lines], lambda row: kept_lines[row][1])


def _strings(values: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def _read_objects(rows: "_Rows", lines: Sequence[tuple[int, str]]) -> pa.Table:
    """lines: (number, one JSON object)."""
    kept, objects = [], []
    for number, line in lines:
        try:
            objects.append(_object(line))
            kept.append((number, line))
        except (ValueError, RecursionError) as error:
            reason = f"malformed JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            rows.reject(number, reason, line)
    if not kept:
        return QUESTIONS_SCHEMA.empty_table()
    header = list(dict.fromkeys(key for one in objects for key in one))
    positions = _positions(rows.file, header)
    columns = {name: _strings([one.get(header[at], "") for one in objects]) for name, at in positions.items()}
    return rows.table(columns, [number for number, _ in kept], lambda row: kept[row][1])


def _object(line: str) -> dict[str, str]:
    """The values that are read of it, as text."""
    content: Any = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    known = {name for names in _COLUMNS.values() for name in names}
    return {key: json_text(value) for key, value in content.items() if key.strip().lower() in known}


def _known(header: Sequence[str]) -> bool:
    found = {column.strip().lower() for column in header}
    return "question" in found and bool(found & set(_COLUMNS["relation"]))


def _positions(file: SourceFile, header: Sequence[str]) -> dict[str, int]:
    found = [column.strip().lower() for column in header]
    positions = {}
    for meaning, names in _COLUMNS.items():
        at = next((found.index(name) for name in names if name in found), None)
        if at is not None:
            positions[meaning] = at
        elif meaning != "object_id":
            raise InputError(f"{file.shown}: expected a column {meaning}, found {', '.join(header)}")
    return positions


class _Rows:
    """The rows of a file: those that can be asked become a table, the others are rejected, or the first one raises."""

    def __init__(self, file: SourceFile, rejected: list[RejectedQuestion] | None) -> None:
        self.file = file
        self._rejected = rejected

    def reject(self, line: int, reason: str, raw: str) -> None:
        if self._rejected is None:
            raise InputError(f"{self.file.shown}, line {line}: {reason}: {raw:.200}")
        self._rejected.append(RejectedQuestion(file=self.file.shown, line=line, reason=reason, raw=raw))

    def table(
        self, columns: Mapping[str, pa.ChunkedArray], lines: Sequence[int], raw: Callable[[int], str]
    ) -> pa.Table:
        """Of QUESTIONS_SCHEMA. lines: of the rows. raw: of the row at a position."""
        cleaned = {name: clean(column.combine_chunks()) for name, column in columns.items()}
        cleaned["subject_id"] = entity_ids(cleaned["subject_id"])
        cleaned["relation"] = relation_ids(cleaned["relation"])
        object_id = cleaned.get("object_id", pa.nulls(len(lines), pa.string()))
        cleaned["object_id"] = entity_ids(pc.if_else(pc.equal(object_id, ""), pa.scalar(None, pa.string()), object_id))
        empty = {name: pc.equal(cleaned[name], "").to_numpy(zero_copy_only=False) for name in _NEEDED}
        lacking = np.logical_or.reduce(list(empty.values()))
        for row in np.flatnonzero(lacking).tolist():
            name = next(name for name in _NEEDED if empty[name][row])
            self.reject(lines[row], f"empty {name}; correct or remove the line", raw(row))
        table = pa.table([cleaned[name] for name in QUESTIONS_SCHEMA.names], schema=QUESTIONS_SCHEMA)
        return table.filter(pa.array(~lacking)) if lacking.any() else table
