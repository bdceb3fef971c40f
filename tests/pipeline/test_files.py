"""Files are found, opened and cut into segments of whole lines, the same segments however they are read."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_store.errors import InputError
from pipeline.sources import files
from pipeline.sources.files import Segment, SourceFile, cut_segments, find_files, read_segment
from pipeline.sources.lines import split_lines

Write = Callable[[str, str | bytes], str]
Only = Callable[[str], SourceFile]


def lines_of(segments: list[Segment]) -> list[str]:
    return [line for segment in segments for line in split_lines(segment).data.decode().split("\n")[:-1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.text("abé\t", max_size=12), max_size=20), st.booleans(), st.integers(30, 90))
def test_every_line_is_in_exactly_one_segment_in_order(
    write: Write, source_file: Only, lines: list[str], ends: bool, segment_bytes: int
) -> None:
    text = "\n".join(lines) + ("\n" if ends else "")
    expected = text.split("\n")
    if not expected[-1]:
        expected.pop()  # nothing stands after the last newline
    plain, packed = source_file(write("a.tsv", text)), source_file(write("b.tsv.zst", text))
    seeking = [read_segment(plain, index, segment_bytes) for index in range(-(-plain.bytes // segment_bytes))]
    streamed = list(cut_segments(packed, lambda _: True, segment_bytes))
    assert lines_of(seeking) == expected
    assert [segment.data for segment in streamed] == [segment.data for segment in seeking]


@pytest.mark.parametrize("length", [63, 64, 65, 128, 200, 1000])
@pytest.mark.parametrize("before", [0, 1, 50, 63, 64])
def test_a_line_longer_than_a_segment_is_set_aside_and_the_next_line_is_read(
    write: Write, source_file: Only, length: int, before: int
) -> None:
    text = "." * before + "\n" + "x" * length + "\nnext\n"
    file = source_file(write("a.tsv", text))
    segments = [read_segment(file, index, 64) for index in range(-(-file.bytes // 64))]
    assert sum(segment.cut_short for segment in segments) == (length > 64)
    lines = [split_lines(segment) for segment in segments]
    assert [row.reason for part in lines for row in part.bad] == ["longer than 8,388,608 bytes"] * (length > 64)
    assert lines_of(segments)[-1] == "next"


def test_lanes_of_a_compressed_file_share_its_segments(write: Write, source_file: Only) -> None:
    file = source_file(write("a.tsv.gz", "\n".join(f"line {number}" for number in range(200))))
    odd = [segment.index for segment in cut_segments(file, lambda index: index % 2 == 1, 64)]
    assert odd == list(range(1, max(odd) + 1, 2))


def test_a_directory_gives_its_data_files_sorted_and_leaves_out_the_rest(write: Write, tmp_path: Path) -> None:
    for name in ("b.tsv", "a.csv.gz", "README.txt", "licence.txt", ".hidden.tsv", "picture.png", "c.parquet"):
        write(f"data/{name}", "x")
    assert [file.name for file in find_files(str(tmp_path / "data"))] == ["a.csv.gz", "b.tsv", "c.parquet"]
    assert [file.name for file in find_files(str(tmp_path / "data" / "*.tsv"))] == ["b.tsv"]


def test_any_fsspec_url_is_a_source() -> None:
    fsspec.filesystem("memory").pipe_file("/files-test/a.tsv", b"a\tb\tc\n")
    (file,) = find_files("memory://files-test/*.tsv")
    assert list(cut_segments(file, lambda _: True, 64)) == [Segment(index=0, data=b"a\tb\tc\n")]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("/nowhere/a.tsv", "there is no file"), ("/nowhere/*.tsv", "no data files"), ("what://x", "cannot read what://x")],
)
def test_a_source_that_is_not_there_is_an_error_that_names_it(source: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        find_files(source)


def test_an_empty_directory_is_an_error_that_lists_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data files at .*expected files that end in \.csv"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.tsv.zst"])
@pytest.mark.parametrize(("keep", "complaint"), [(-1, "is cut short"), (40, "is cut short"), (3, "cut short")])
def test_a_truncated_compressed_file_is_an_input_error(
    write: Write, source_file: Only, name: str, keep: int, complaint: str
) -> None:
    path = Path(write(name, "".join(f"{number}\n" for number in range(5000))))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=complaint):
        list(cut_segments(source_file(str(path)), lambda _: True, 1 << 20))


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.tsv.zst"])
def test_a_file_that_only_pretends_to_be_compressed_is_an_input_error(
    write: Write, source_file: Only, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"a\tb\tc\n" * 10)
    with pytest.raises(InputError, match="damaged or not compressed"):
        list(cut_segments(source_file(str(tmp_path / name)), lambda _: True, 1 << 20))


def test_passwords_never_reach_a_message() -> None:
    with pytest.raises(InputError) as caught:
        find_files("what://user:secret@host/a.tsv")
    assert "secret" not in str(caught.value)


def test_a_segment_holds_the_longest_line_there_may_be() -> None:
    assert files.SEGMENT_BYTES >= files.MAX_LINE_BYTES
