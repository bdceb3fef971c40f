"""What a file holds is told from its name and first lines, or refused with what was expected and found."""

from collections.abc import Callable

import pytest

from memory_store.errors import EmptyInput, InputError
from pipeline.sources.files import SourceFile
from pipeline.sources.layout import detect_layout

Write = Callable[[str, str | bytes], str]
Only = Callable[[str], SourceFile]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.tsv", "a\tr\tb\n", "facts"),
        ("names.tsv", "m.0\tName\n", "names"),
        ("FB5M.name.txt", "m.0\tName\n", "names"),
        ("names_of_rivers.tsv", "Seine\tflows through\tParis\n", "facts"),
        ("annotated_fb_data_train.txt", "s\tr\to\twho?\n", "questions"),
        ("questions_valid.tsv", "hops\tpath\tquestion\ttopic\tanswers\n", "questions"),
        ("anything.csv", "question,subject,relation\n", "questions"),
        ("a.jsonl", '{"question": "q", "subject": "s", "relation": "r"}\n', "questions"),
    ],
)
def test_a_file_is_facts_names_or_questions(
    write: Write, source_file: Only, name: str, content: str, kind: str
) -> None:
    assert detect_layout(source_file(write(name, content))).kind == kind


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.tsv", "a\tb\tc\td\n", "expected triples: 3 columns .*found 4 columns separated by tabs"),
        ("a.tsv", "a\tb\n", "found 2 columns"),
        ("a.csv", "just text\n", "found 1 columns separated by commas"),
        ("a.jsonl", '{"head": 1}\n', "expected triples.*found columns head"),
        ("a.jsonl", "nonsense\n", "expected one JSON object per line, found nonsense"),
        ("a.parquet", "nonsense", "not a Parquet file"),
    ],
)
def test_a_file_that_holds_no_triples_is_refused_with_what_was_found(
    write: Write, source_file: Only, name: str, content: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        detect_layout(source_file(write(name, content)))


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_empty_input(write: Write, source_file: Only, content: str) -> None:
    with pytest.raises(EmptyInput, match="is empty"):
        detect_layout(source_file(write("a.tsv.gz", content)))


def test_names_are_expected_where_the_caller_says_so(write: Write, source_file: Only) -> None:
    with pytest.raises(InputError, match="expected names: an id and a name"):
        detect_layout(source_file(write("a.tsv", "a\tr\tb\n")), names=True)


def test_a_few_odd_lines_do_not_change_the_layout(write: Write, source_file: Only) -> None:
    layout = detect_layout(source_file(write("a.tsv", "odd\n" + "a\tr\tb\n" * 5)))
    assert (layout.width, layout.has_header) == (3, False)
