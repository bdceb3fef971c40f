"""Triples and names as one JSON object per line; an object may be a list of objects."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.sources.files import Segment
from pipeline.sources.layout import Layout
from pipeline.sources.lines import split_lines
from pipeline.sources.rows import BadRow, Parsed, check_names, check_triples, shorten

__all__ = ["json_text", "parse_json_lines"]


def parse_json_lines(segment: Segment, layout: Layout) -> Parsed:
    """Values may be text or numbers; null and absent keys are empty. A list of objects gives one triple each."""
    lines = split_lines(segment)
    bad = list(lines.bad)
    columns: dict[str, list[str]] = {name: [] for name in layout.columns}
    numbers: list[int] = []
    skipped_L = lines.skipped
    for number, text in enumerate(lines.data.decode().split("\n")[: lines.count]):
        if skipped_L[number]:
            continue
        try:
            for values in _rows(json.loads(text), layout.columns):
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
                numbers.append(number + 1)
        except (ValueError, RecursionError) as error:
            reason = f"malformed JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            bad.append(BadRow(line=number + 1, raw=shorten(text), reason=reason))
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    if layout.kind == "names":
        names, rejected = check_names(arrays, np.array(numbers, np.int64), lines.raw)
        return Parsed(names=names, bad=sorted(bad + rejected, key=lambda row: row.line), lines=lines.count)
    triples, rejected = check_triples(arrays, np.array(numbers, np.int64), lines.raw)
    return Parsed(triples=triples, bad=sorted(bad + rejected, key=lambda row: row.line), lines=lines.count)


def _rows(content: Any, columns: dict[str, int | str]) -> list[list[str]]:
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    values = [content.get(key) for key in columns.values()]
    lengths = {len(value) for value in values if isinstance(value, list)}
    if not lengths:
        return [[json_text(value) for value in values]]
    if len(lengths) > 1:
        raise ValueError(f"expected lists of one length, found {sorted(lengths)}")
    (length,) = lengths
    if not length:
        raise ValueError("empty object_id: the list has no elements")
    return [[json_text(value[at] if isinstance(value, list) else value) for value in values] for at in range(length)]


def json_text(value: Any) -> str:
    """Numbers read as they are written; a lone surrogate from an escape is no text."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected text or a number, found {type(value).__name__}")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8: an escape stands for half a character") from None
    return str(value)
