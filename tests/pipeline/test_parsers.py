"""Every format gives the same clean triples, and every bad row is set aside with its line, its text and the reason."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.files import Segment, SourceFile
from pipeline.sources.layout import detect_layout
from pipeline.sources.pieces import file_pieces
from pipeline.sources.rows import MAX_FIELD_BYTES, Parsed

Write = Callable[[str, str | bytes], str]
Only = Callable[[str], SourceFile]


@pytest.fixture
def parse(write: Write, source_file: Only) -> Callable[..., Parsed]:
    """The only segment of a file with this content."""

    def parse_content(name: str, content: str | bytes, names: bool = False) -> Parsed:
        file = source_file(write(name, content))
        (piece,) = file_pieces(0, file, detect_layout(file, names=names), 1 << 20)
        ((_, parsed),) = piece.parse(lambda _: True)
        return parsed

    return parse_content


def triples_of(parsed: Parsed) -> list[tuple[str | None, ...]]:
    return [tuple(row.values()) for row in parsed.triples.to_pylist()]


def bad_of(parsed: Parsed) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in parsed.bad]


FULL = [
    ("e1", "Paris", "country", "e2", "France"),
    ("e1", "Paris", "river", "e3", 'the "Seine"'),
    ("e4", None, "is a", "e5", None),
]
ROWS = [dict(zip(("subject_id", "subject", "relation", "object_id", "object"), row, strict=True)) for row in FULL]


def as_delimited(delimiter: str, header: str = "") -> str:
    quoted = [
        [(f or "") if delimiter == "\t" else f'"{(f or "").replace(chr(34), chr(34) * 2)}"' for f in row]
        for row in FULL
    ]
    return header + "".join(delimiter.join(row) + "\n" for row in quoted)


SHUFFLED_HEADER = "object\tnotes\tRelation\tobject id\tsubject_id\tsubject\n"
SHUFFLED = SHUFFLED_HEADER + "".join(
    f"{row['object'] or ''}\t?\t{row['relation']}\t{row['object_id']}\t{row['subject_id']}\t{row['subject'] or ''}\n"
    for row in ROWS
)


def as_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", as_delimited("\t")),
        ("a.txt.gz", as_delimited("\t")),
        ("a.tsv.zst", as_delimited("\t").replace("\n", "\r\n")),
        ("a.tsv", "\ufeff" + as_delimited("\t", "subject_id\tsubject\trelation\tobject_id\tobject\n")),
        ("a.tsv", "".join(f"src\t{line}\n" for line in as_delimited("\t").splitlines())),
        ("a.tsv", SHUFFLED),
        ("a.csv", as_delimited(",")),
        ("a.csv", as_delimited(",", "subject_id,subject,predicate,object_id,object\n")),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.ndjson.gz", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)),
        ("a.parquet", as_parquet()),
        ("no-suffix", as_delimited("\t")),
    ],
)
def test_every_format_and_layout_gives_the_same_triples(parse: Callable[..., Parsed], name: str, content: Any) -> None:
    parsed = parse(name, content)
    assert triples_of(parsed) == FULL
    assert parsed.bad == []


def test_three_columns_are_subject_relation_object(parse: Callable[..., Parsed]) -> None:
    assert triples_of(parse("a.tsv", "New York City\tcountry\tUnited States\n")) == [
        ("New York City", None, "country", "United States", None)
    ]


def test_the_simplequestions_layout_lists_objects_by_spaces(parse: Callable[..., Parsed]) -> None:
    line = "www.freebase.com/m/0a\twww.freebase.com/x/y\twww.freebase.com/m/0b www.wikidata.org/entity/Q1\n"
    assert triples_of(parse("freebase-FB2M.txt.gz", line)) == [
        ("m.0a", None, "x.y", "m.0b", None),
        ("m.0a", None, "x.y", "wd:Q1", None),
    ]


def test_a_names_file_may_give_several_names_for_an_id(parse: Callable[..., Parsed]) -> None:
    parsed = parse("names.tsv", "www.freebase.com/m/0a\tOne\nm.0a\t Uno \nm.0b\t\nm.0c\n")
    assert parsed.names.to_pylist() == [{"entity_id": "m.0a", "name": "One"}, {"entity_id": "m.0a", "name": "Uno"}]
    assert bad_of(parsed) == [(3, "empty name"), (4, "expected 2 columns, found 1")]


def test_bad_rows_of_a_tsv_are_named_by_line_and_reason(parse: Callable[..., Parsed]) -> None:
    content = b"a\tr\tb\nonly one\n\n\tr\tb\na\t \tb\na\tr\t\xc3\xa9\na\tr\t\xff\na\tr\tb\textra\na\tr\t\x00\nz\tr\ty"
    parsed = parse("a.tsv", content)
    assert triples_of(parsed) == [("a", None, "r", "b", None), ("a", None, "r", "é", None), ("z", None, "r", "y", None)]
    assert bad_of(parsed) == [
        (2, "expected 3 columns, found 1"),
        (4, "empty subject_id"),
        (5, "empty relation"),
        (7, "not UTF-8: byte 0xff at position 4"),
        (8, "expected 3 columns, found 4"),
        (9, "empty object_id"),
    ]
    assert parsed.bad[0].raw == "only one"
    assert parsed.bad[3].raw == "a\tr\t\\xff"
    assert parsed.lines == 10


def test_an_absurdly_long_field_is_rejected_and_shown_shortened(parse: Callable[..., Parsed]) -> None:
    parsed = parse("a.tsv", "a\tr\tb\na\tr\t" + "x" * (MAX_FIELD_BYTES + 1) + "\n")
    (row,) = parsed.bad
    assert row.reason == "object_id has 65,537 bytes, more than 65,536"
    assert len(row.raw) < 600
    assert parsed.triples.num_rows == 1


def test_a_stray_quote_spoils_its_own_csv_line_only(parse: Callable[..., Parsed]) -> None:
    parsed = parse("a.csv", 'a,r,b\na,"r,b\n"x, y",r,"say ""hi"""\n')
    assert triples_of(parsed) == [("a", None, "r", "b", None), ("x, y", None, "r", 'say "hi"', None)]
    assert bad_of(parsed) == [(2, "malformed CSV: unexpected end of data")]


def test_quotes_are_data_in_a_tsv(parse: Callable[..., Parsed]) -> None:
    assert triples_of(parse("a.tsv", 'a "quoted\tr\t"b\n')) == [('a "quoted', None, "r", '"b', None)]


def test_bad_json_lines_are_named_by_line_and_reason(parse: Callable[..., Parsed]) -> None:
    lines = [
        '{"subject": "a", "relation": "r", "object": ["b", 7]}',
        '{"subject": "a", "relation": "r"',
        "[1]",
        '{"subject": "a", "relation": "r", "object": null}',
        '{"subject": "a", "relation": "r", "object": []}',
        '{"subject": "a", "relation": {"x": 1}, "object": "b"}',
        '{"subject": "\\ud800", "relation": "r", "object": "b"}',
    ]
    parsed = parse("a.jsonl", "\n".join(lines))
    assert triples_of(parsed) == [("a", None, "r", "b", None), ("a", None, "r", "7", None)]
    assert [line for line, _ in bad_of(parsed)] == [2, 3, 4, 5, 6, 7]
    assert [row.reason.partition(":")[0] for row in parsed.bad] == [
        "malformed JSON",
        "expected a JSON object, found list",
        "empty object_id",
        "empty object_id",
        "expected text or a number, found dict",
        "not UTF-8",
    ]


def test_ntriples_give_triples_names_and_rejected_lines(parse: Callable[..., Parsed]) -> None:
    content = r"""# a comment
<http://x.org/a> <http://x.org/r> <http://x.org/b> .
<http://x.org/a> <http://x.org/says> "tab\tquote\" \u00e9 \U0001F600"@en .

_:n1 <http://x.org/r> "5"^^<http://www.w3.org/2001/XMLSchema#integer> . # why not
<http://x.org/a> <http://www.w3.org/2000/01/rdf-schema#label> "Anna"@de .
<http://x.org/a> <http://x.org/r> <http://x.org/b>
<http://x.org/a> "literal" <http://x.org/b> .
<http://x.org/a> <http://x.org/r> "" .
"""
    parsed = parse("a.nt", content)
    assert triples_of(parsed) == [
        ("http://x.org/a", None, "http://x.org/r", "http://x.org/b", None),
        ("http://x.org/a", None, "http://x.org/says", 'tab quote" é 😀', None),
        ("_:a.nt.n1", None, "http://x.org/r", "5", None),
    ]
    assert parsed.names.to_pylist() == [{"entity_id": "http://x.org/a", "name": "Anna"}]
    assert bad_of(parsed) == [
        (7, "malformed N-Triples: no triple"),
        (8, "malformed N-Triples: no triple"),
        (9, "empty object_id"),
    ]


def test_parquet_lists_are_several_triples_and_nulls_are_rejected(parse: Callable[..., Parsed]) -> None:
    table = pa.table({"head": ["a", None, "c", "d"], "relation": ["r"] * 4, "tail": [["x", "y"], ["z"], [], ["w"]]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    parsed = parse("a.parquet", sink.getvalue().to_pybytes())
    assert [(row[0], row[3]) for row in triples_of(parsed)] == [("a", "x"), ("a", "y"), ("d", "w")]
    assert bad_of(parsed) == [(2, "empty subject_id"), (3, "expected lists of one length, not empty, found 0")]


def test_a_name_that_is_its_id_is_no_name(parse: Callable[..., Parsed]) -> None:
    assert triples_of(parse("a.tsv", "e1\te1\tr\te2\te2\n")) == [("e1", None, "r", "e2", None)]


def test_a_segment_without_lines_parses_to_nothing(source_file: Only, write: Write) -> None:
    from pipeline.sources.pieces import parse_segment

    file = source_file(write("a.tsv", "a\tb\tc\n"))
    parsed = parse_segment(Segment(index=3, data=b""), detect_layout(file), file)
    assert (parsed.triples.num_rows, parsed.bad, parsed.lines) == (0, [], 0)
