"""The one gate for raw rows of every format: clean, spell ids one way, reject what is no fact and say why."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA, clean, entity_ids, relation_ids

# N rows of a batch

__all__ = ["MAX_FIELD_BYTES", "BadRow", "Parsed", "Raw", "check_names", "check_triples"]

MAX_FIELD_BYTES = 64 * 2**10
"""A longer id or name is no id or name."""

_LONGEST_SHOWN = 500  # characters of a rejected row that quarantine keeps

Raw = Callable[[int], str]
"""The text of a row as it stood in the file, by its line number (from 1)."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A rejected row. line: counted from 1 within what was parsed (a segment or a file)."""

    line: int
    raw: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """What one segment of a source holds. rows: triples and names found, good or bad; lines: lines of text, or rows."""

    triples: pa.Table = field(default_factory=TRIPLES_SCHEMA.empty_table)
    names: pa.Table = field(default_factory=NAMES_SCHEMA.empty_table)
    bad: list[BadRow] = field(default_factory=list)
    lines: int = 0


def check_triples(columns: dict[str, pa.Array], line_N: NDArray[np.int64], raw: Raw) -> tuple[pa.Table, list[BadRow]]:
    """Raw string columns (subject_id, relation, object_id; subject and object if known) to clean triples.

    Returns a table of TRIPLES_SCHEMA, and the rows that were rejected.
    """
    columns = {name: clean(column) for name, column in columns.items()}
    columns["subject_id"] = entity_ids(columns["subject_id"])
    columns["object_id"] = entity_ids(columns["object_id"])
    columns["relation"] = relation_ids(columns["relation"])
    for name in ("subject", "object"):
        # An empty name, or the id in place of a name, is no name.
        known_N = columns.get(name, pa.nulls(len(line_N), pa.string()))
        is_none_N = pc.or_(pc.equal(known_N, ""), pc.equal(known_N, columns[f"{name}_id"]))
        columns[name] = pc.if_else(is_none_N, pa.scalar(None, pa.string()), known_N)
    table = pa.table([columns[name] for name in TRIPLES_SCHEMA.names], schema=TRIPLES_SCHEMA)
    return _reject(table, ("subject_id", "relation", "object_id"), line_N, raw)


def check_names(columns: dict[str, pa.Array], line_N: NDArray[np.int64], raw: Raw) -> tuple[pa.Table, list[BadRow]]:
    """Raw string columns entity_id and name to a clean table of NAMES_SCHEMA, and the rows that were rejected."""
    entity_N, name_N = entity_ids(clean(columns["entity_id"])), clean(columns["name"])
    return _reject(pa.table([entity_N, name_N], schema=NAMES_SCHEMA), NAMES_SCHEMA.names, line_N, raw)


def shorten(raw: str) -> str:
    """Quarantine shows how a row begins, not a gigabyte of it."""
    return raw if len(raw) <= _LONGEST_SHOWN else f"{raw[:_LONGEST_SHOWN]}... ({len(raw):,} characters)"


def _reject(
    table: pa.Table, needed: tuple[str, ...] | list[str], line_N: NDArray[np.int64], raw: Raw
) -> tuple[pa.Table, list[BadRow]]:
    """Split off the rows with an empty needed column or an absurdly long one."""
    reasons: dict[int, str] = {}
    for name in table.column_names:
        length_N = pc.fill_null(pc.binary_length(table.column(name)), 0).to_numpy()
        for row in np.flatnonzero(length_N > MAX_FIELD_BYTES):
            reasons.setdefault(int(row), f"{name} has {length_N[row]:,} bytes, more than {MAX_FIELD_BYTES:,}")
        if name in needed:
            for row in np.flatnonzero(length_N == 0):
                reasons.setdefault(int(row), f"empty {name}")
    if not reasons:
        return table, []
    bad = [
        BadRow(line=int(line_N[row]), raw=shorten(raw(int(line_N[row]))), reason=reasons[row])
        for row in sorted(reasons)
    ]
    good_N = np.ones(table.num_rows, dtype=np.bool_)
    good_N[list(reasons)] = False
    return table.filter(pa.array(good_N)), bad
