"""N-Triples (https://www.w3.org/TR/n-triples/), matched with one regular expression; labels become names."""

import re
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.files import Segment
from pipeline.sources.lines import split_lines
from pipeline.sources.rows import BadRow, Parsed, check_names, check_triples, shorten

# L lines of a segment, N lines that are triples

__all__ = ["LABEL_RELATIONS", "parse_ntriples"]

LABEL_RELATIONS = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#prefLabel",
    "http://www.w3.org/2004/02/skos/core#altLabel",
    "http://xmlns.com/foaf/0.1/name",
    "https://schema.org/name",
    "http://schema.org/name",
    "http://rdf.freebase.com/ns/type.object.name",
)
"""Triples with these relations say what their subject is called; they become names, not facts."""

_IRI = r'<[^\x00-\x20<>"{}|^`]*>'
_BLANK_NODE = r"_:[^\s<>\"]+"
_LITERAL = r'"(?:[^"\\]|\\.)*"(?:\^\^<[^<>\s]*>|@[A-Za-z0-9-]+)?'
_TRIPLE = (
    rf"^[ \t]*(?P<subject_id>{_IRI}|{_BLANK_NODE})[ \t]*(?P<relation>{_IRI})[ \t]*"
    rf"(?P<object_id>{_IRI}|{_BLANK_NODE}|{_LITERAL})[ \t]*\.[ \t]*(?:#.*)?$"
)
_COMMENT = r"^[ \t]*(?:#.*)?$"
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}


def parse_ntriples(segment: Segment, file_name: str) -> Parsed:
    """One triple per line; comments and empty lines are skipped. Literals are read without type and language.

    Blank nodes are called by the file they stand in: elsewhere the same label is another node.
    """
    lines = split_lines(segment)
    bad = list(lines.bad)
    text_L = pa.array(lines.data.decode().split("\n")[: lines.count], pa.string())
    found_L = pc.extract_regex(text_L, _TRIPLE)
    is_triple_L = np.asarray(pc.is_valid(found_L))
    is_nothing_L = np.asarray(pc.match_substring_regex(text_L, _COMMENT)) if lines.count else is_triple_L
    bad += [
        BadRow(line=int(line), raw=shorten(lines.raw(int(line))), reason="malformed N-Triples: no triple")
        for line in np.flatnonzero(~is_triple_L & ~is_nothing_L) + 1
    ]
    line_N = np.flatnonzero(is_triple_L) + 1
    found_N = found_L.filter(pa.array(is_triple_L))
    scope = "_:" + PurePosixPath(file_name).name.replace(" ", "_") + "."
    columns = {name: _terms(found_N.field(name), scope) for name in ("subject_id", "relation", "object_id")}
    is_label_N = np.asarray(pc.is_in(columns["relation"], pa.array(LABEL_RELATIONS)))
    triples, rejected = check_triples(_where(columns, ~is_label_N), line_N[~is_label_N], lines.raw)
    labels = _where(columns, is_label_N)
    names, rejected_names = check_names(
        {"entity_id": labels["subject_id"], "name": labels["object_id"]}, line_N[is_label_N], lines.raw
    )
    bad = sorted(bad + rejected + rejected_names, key=lambda row: row.line)
    return Parsed(triples=triples, names=names, bad=bad, lines=lines.count)


def _terms(term_N: pa.Array, scope: str) -> pa.Array:
    """What an IRI, a blank node or a literal says."""
    bare_N = pc.replace_substring_regex(term_N, r"^<(.*)>$", r"\1")
    bare_N = pc.replace_substring_regex(bare_N, r"^_:", scope)
    bare_N = pc.replace_substring_regex(bare_N, r'^"(.*)"(?:\^\^<[^<>\s]*>|@[A-Za-z0-9-]+)?$', r"\1")
    escaped_N = pc.match_substring(bare_N, "\\")
    if pc.any(escaped_N).as_py():
        texts = [_ESCAPE.sub(_unescape, text) if "\\" in text else text for text in bare_N.to_pylist()]
        return pa.array(texts, pa.string())
    return bare_N


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    if code is None:
        return _ESCAPED.get(match[3], match[3])
    value = int(code, 16)
    return "\ufffd" if value > 0x10FFFF or 0xD800 <= value < 0xE000 else chr(value)


def _where(columns: dict[str, pa.Array], keep_N: np.ndarray) -> dict[str, pa.Array]:
    return {name: column.filter(pa.array(keep_N)) for name, column in columns.items()}
