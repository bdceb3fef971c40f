"""Question files of every layout give the same table, in the ids that facts have."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memory_store.errors import ConfigError, EmptyInput, InputError
from pipeline.sources.questions import QUESTIONS_SCHEMA, RejectedQuestion, read_questions

Write = Callable[[str, str | bytes], str]

ROW = {"question": "where was A born?", "subject_id": "m.0a", "relation": "people.person.born", "object_id": "m.0b"}


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([ROW | {"split": "train"}]), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "any.txt",
            "www.freebase.com/m/0a\twww.freebase.com/people/person/born\twww.freebase.com/m/0b\twhere was A born?",
        ),
        ("any.txt.gz", "m.0a\t/people/person/born\t/m/0b\twhere was\tA born?\r\n"),
        (
            "any.tsv",
            "relation\tquestion\tobject_id\tsubject\n/people/person/born\twhere was A born?\tm.0b\tm.0a\n",
        ),
        ("any.csv", 'question,subject_id,relation,object\n"where was A born?",m.0a,people.person.born,m.0b\n'),
        ("any.csv", "/m/0a,/people/person/born,/m/0b,where was A born?\n"),
        (
            "any.jsonl",
            '{"question": "where was A born?", "subject": "m.0a", "relation": "people.person.born", "object": "m.0b", '
            '"source": ["x"]}\n\n',
        ),
        ("any.parquet", parquet()),
    ],
)
def test_every_layout_gives_the_same_question(write: Write, name: str, content: str | bytes) -> None:
    table = read_questions(write(name, content))
    assert table.schema == QUESTIONS_SCHEMA
    assert table.to_pylist() == [ROW]


def test_an_answer_may_be_unknown(write: Write) -> None:
    table = read_questions(write("q.tsv", "question\tsubject\trelation\nwhat?\ta\tr\n"))
    assert table["object_id"].to_pylist() == [None]


def test_a_directory_is_read_by_split(write: Write, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(f"sq/annotated_fb_data_{split}.txt.gz", f"s\tr\to\t{split} question\n")
    write("sq/questions_test.tsv", "question\tsubject\trelation\ntest question\ts\tr\n")
    write("sq/freebase-FB2M.txt", "s\tr\to\n")
    folder = str(tmp_path / "sq")
    assert read_questions(folder, "valid")["question"].to_pylist() == ["valid question"]
    assert sorted(read_questions(folder)["question"].to_pylist()) == [
        "test question",
        "train question",
        "valid question",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("s\tr\to\tq\ns\tr\to\n", "line 2: expected 4 columns, found 3"),
        ("s\tr\to\tq\ns\tr\to\t \n", "line 2: empty question"),
        (b"s\tr\to\t\xff\n", "not UTF-8 at byte 6"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(write: Write, content: str | bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_questions(write("q.txt", content))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "q"', "line 2: malformed JSON"),
        ("[]", "line 2: expected a JSON object, found list"),
        ('{"question": "q", "subject": ["s"], "relation": "r"}', "line 2: expected text or a number, found list"),
        ('{"question": "q", "relation": "r"}', "line 2: empty subject_id"),
    ],
)
def test_a_bad_line_of_json_is_an_error_with_its_number(write: Write, line: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_questions(write("q.jsonl", f'{{"question": "q", "subject": 7, "relation": "r"}}\n{line}\n'))


@pytest.mark.parametrize("name", ["mine.tsv", "questions_valid.tsv"])
def test_a_single_file_is_one_split_and_never_passes_for_another(write: Write, name: str) -> None:
    source = write(name, "s\tr\to\tq\n")
    assert read_questions(source, "train") == read_questions(source)
    assert read_questions(source, "test", alone_is="test") == read_questions(source)
    for split in ("valid", "test"):
        with pytest.raises(EmptyInput, match=rf"split '{split}', found one file, .*{name}.* --questions FILE"):
            read_questions(source, split)


def test_no_questions_is_empty_input(write: Write, tmp_path: Path) -> None:
    write("sq/annotated_fb_data_valid.txt", "s\tr\to\tq\n")
    with pytest.raises(EmptyInput, match=r"expected a file such as annotated_fb_data_test\.txt"):
        read_questions(str(tmp_path / "sq"), "test")
    with pytest.raises(EmptyInput, match="no questions"):
        read_questions(write("empty.txt", ""))


def test_an_unknown_split_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="split 'dev' is unknown"):
        read_questions("anywhere", "dev")


@pytest.mark.parametrize(
    ("name", "content", "raw"),
    [
        ("q.tsv", "s\tr\to\tq\ns\tr\no\t\to\tq\n", ["s\tr", "o\t\to\tq"]),
        ("q.csv", "question,subject,relation\nq,s,r\nq,s\n,s,r\n", ["q,s", ",s,r"]),
        (
            "q.jsonl",
            '{"question": "q", "subject": "s", "relation": "r"}\n{\n{"question": "q", "subject": "s"}\n',
            ["{", '{"question": "q", "subject": "s"}'],
        ),
    ],
)
def test_rows_that_cannot_be_asked_are_handed_over_and_the_others_are_read(
    write: Write, name: str, content: str, raw: list[str]
) -> None:
    source, rejected = write(name, content), list[RejectedQuestion]()
    assert read_questions(source, rejected=rejected)["question"].to_pylist() == ["q"]
    last = len(content.splitlines())
    assert [(one.file, one.line, one.raw) for one in rejected] == [
        (source, last - 1, raw[0]),
        (source, last, raw[1]),
    ]


def test_a_parquet_row_without_a_subject_is_rejected_by_its_number(tmp_path: Path) -> None:
    table = pa.table({"question": ["q", "q"], "subject": ["s", None], "relation": ["r", "r"]})
    pq.write_table(table, tmp_path / "q.parquet")
    rejected: list[RejectedQuestion] = []
    assert read_questions(str(tmp_path / "q.parquet"), rejected=rejected).num_rows == 1
    assert [(one.line, one.reason) for one in rejected] == [(2, "empty subject_id; correct or remove the line")]
    assert json.loads(rejected[0].raw) == {"question": "q", "subject": None, "relation": "r"}


def test_questions_that_are_all_rejected_are_an_error_that_names_the_first(write: Write) -> None:
    with pytest.raises(EmptyInput, match=r"found 2 rows that cannot be asked; the first is line 1 of .*: expected 4"):
        read_questions(write("q.tsv", "s\tr\ns\n"), rejected=[])
