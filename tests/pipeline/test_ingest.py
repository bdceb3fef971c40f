"""Ingest: merged, deduplicated, idempotent, resumable, the same whoever does the work; and what it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from memory_store import MemoryWriter
from memory_store.errors import (
    ConfigError,
    DuplicateFact,
    EmptyInput,
    GenerationConflict,
    InputError,
    StorageFailed,
)
from memory_store.manifest import Manifest, generations, read_manifest
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from pipeline import staging
from pipeline.facts import NAMES_SCHEMA, fact_id_of
from pipeline.ingest import IngestSummary, ingest

Write = Callable[[str, str | bytes], str]
FactsOf = Callable[[str], dict[tuple[str, ...], dict[str, Any]]]

PEOPLE = (
    "e1\tAnna\tborn in\te2\tParis\ne1\tAnna\tknows\te3\tBen\ne1\tAnna\tknows\te4\tCleo\ne3\tBen\tborn in\te2\tParis\n"
)


@pytest.fixture
def memory(tmp_path: Path) -> str:
    return str(tmp_path / "memory")


def contents(url: str) -> list[tuple[int, str]]:
    """Rows and checksum of each part: equal lists are equal bytes."""
    return [(part.rows, part.checksum) for part in read_manifest(Storage(url)).facts]


def everything_in(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def numbered(first: int, last: int) -> str:
    return "".join(f"s{n % 97}\tr{n % 5}\to{n}\n" for n in range(first, last))


def test_triples_become_facts_with_all_their_objects(write: Write, memory: str, facts_of: FactsOf) -> None:
    summary = ingest(write("a.tsv", PEOPLE + PEOPLE.splitlines()[0] + "\n"), memory)
    facts = facts_of(memory)
    assert facts["e1", "knows"] == {
        "fact_id": fact_id_of("e1", "knows"),
        "subject": "Anna",
        "aliases": [],
        "object_ids": ["e3", "e4"],
        "objects": ["Ben", "Cleo"],
    }
    assert len(facts) == 3
    assert (summary.facts, summary.entities, summary.triples, summary.duplicates) == (3, 2, 5, 1)
    assert (summary.generation, summary.committed, summary.quarantined) == (1, True, 0)
    assert summary.bytes == sum(part.bytes for part in read_manifest(Storage(memory)).facts)
    assert verify_memory(memory).ok


def test_one_cell_per_triple_on_request(write: Write, memory: str, facts_of: FactsOf) -> None:
    ingest(write("a.tsv", PEOPLE), memory, grouping="triple")
    facts = facts_of(memory)
    assert len(facts) == 4
    assert facts["e1", "knows", "e4"]["fact_id"] == fact_id_of("e1", "knows", "e4")
    assert read_manifest(Storage(memory)).grouping == "triple"


def test_a_names_file_names_subjects_and_objects(write: Write, memory: str, facts_of: FactsOf) -> None:
    facts_file = write(
        "freebase-x.txt", "www.freebase.com/m/0a\twww.freebase.com/p/q\twww.freebase.com/m/0b www.freebase.com/m/0c\n"
    )
    names = write("names.tsv.gz", "www.freebase.com/m/0b\tBee\nm.0a\tFirst\n/m/0a\tSecond\n")
    ingest(facts_file, memory, names=names)
    fact = facts_of(memory)["m.0a", "p.q"]
    assert (fact["subject"], fact["aliases"]) == ("First", ["Second"])
    assert fact["objects"] == ["Bee", "m.0c"]


def test_a_directory_of_the_simplequestions_release_needs_no_options(
    write: Write, memory: str, tmp_path: Path, facts_of: FactsOf
) -> None:
    fact = "www.freebase.com/m/0{0}\twww.freebase.com/p/q\twww.freebase.com/m/0z\n"
    write("sq/freebase-FB2M.txt.gz", fact.format("a"))
    write("sq/freebase-FB5M.txt", fact.format("b") + fact.format("a"))
    write("sq/names.tsv", "www.freebase.com/m/0a\tAye\n")
    write("sq/annotated_fb_data_train.txt", fact.format("a").strip() + "\twhat?\n")
    write("sq/empty.tsv", "")
    write("sq/README.txt", "read me")
    summary = ingest(str(tmp_path / "sq"), memory)
    assert sorted(key[0] for key in facts_of(memory)) == ["m.0a", "m.0b"]
    assert facts_of(memory)["m.0a", "p.q"]["subject"] == "Aye"
    assert [Path(name).name for name in summary.skipped] == ["annotated_fb_data_train.txt", "empty.tsv"]


def test_the_same_data_again_commits_nothing(write: Write, memory: str) -> None:
    path = write("a.tsv", PEOPLE)
    ingest(path, memory)
    before = everything_in(memory)
    again = ingest(path, memory)
    assert (again.committed, again.generation, again.facts, again.entities) == (False, 1, 3, 2)
    copied = ingest(write("copy.tsv", PEOPLE), memory)  # another file: this time it is read and compared
    assert (copied.committed, copied.triples, copied.duplicates) == (False, 4, 4)
    assert everything_in(memory) == before


def test_the_same_data_again_keeps_the_vectors(write: Write, memory: str) -> None:
    from pipeline.embed import embed

    path = write("a.tsv", PEOPLE)
    ingest(path, memory)
    embed(memory, lambda: lambda facts: np.ones((len(facts), 2), np.float32), fingerprint="ones", dim=2)
    again = ingest(path, memory)
    assert (again.committed, again.generation) == (False, 2)
    assert read_manifest(Storage(memory)).encoder == "ones"


@pytest.mark.parametrize("grouping", ["relation", "triple"])
def test_ingesting_in_steps_gives_the_facts_of_ingesting_at_once(
    write: Write, tmp_path: Path, facts_of: FactsOf, grouping: str
) -> None:
    first, second = write("1.tsv", numbered(0, 200)), write("2.tsv", numbered(100, 300))
    names = write("names.tsv", "".join(f"s{n}\tname {n}\no{n}\tobject {n}\n" for n in range(0, 97, 2)))
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    at_once = ingest([first, second], one, names=names, grouping=grouping, rows_per_part=50)
    ingest(first, other, grouping=grouping, rows_per_part=50)
    assert ingest(second, other, names=names, grouping=grouping, rows_per_part=50).duplicates == 100
    assert facts_of(one) == facts_of(other)
    assert at_once.duplicates == 100
    assert ingest([first, second], other, names=names, grouping=grouping, rows_per_part=50).committed is False


def test_names_keep_their_order_however_often_facts_are_merged(write: Write, memory: str, facts_of: FactsOf) -> None:
    names = "".join(f"s{n}\tname {number} of {n}\n" for n in range(3000) for number in range(8))
    ingest(write("1.tsv", numbered(0, 3000)), memory, names=write("names.tsv", names))
    before = facts_of(memory)
    ingest(write("2.tsv", "x\tr\ty\n"), memory)
    after = facts_of(memory)
    assert after.pop(("x", "r"))["object_ids"] == ["y"]
    assert after == before


def test_objects_keep_the_order_in_which_they_were_read(write: Write, memory: str, facts_of: FactsOf) -> None:
    ingest([write("b.tsv", "s\tr\tz\ns\tr\ty\n"), write("a.tsv", "s\tr\tx\ns\tr\tz\n")], memory)
    assert facts_of(memory)["s", "r"]["object_ids"] == ["z", "y", "x"]


def test_bad_rows_go_to_quarantine_with_file_line_and_reason(write: Write, memory: str) -> None:
    good = "a\tr\tb\n" * 20
    path = write("a.tsv", good + "bad\n" + good + "\tr\tb\n")
    packed = write("b.tsv.gz", b"c\tr\td\n\xff\tr\td\n")
    summary = ingest([path, packed], memory, segment_bytes=32)
    assert summary.quarantined == 3
    assert summary.quarantine is not None
    rows = [json.loads(line) for line in (Path(memory) / summary.quarantine).read_text().splitlines()]
    assert rows == [
        {"file": path, "line": 21, "reason": "expected 3 columns, found 1", "raw": "bad"},
        {"file": path, "line": 42, "reason": "empty subject_id", "raw": "\tr\tb"},
        {"file": packed, "line": 2, "reason": "not UTF-8: byte 0xff at position 0", "raw": "\\xff\tr\td"},
    ]


def test_strict_makes_the_first_bad_row_an_error_and_leaves_nothing(write: Write, memory: str) -> None:
    path = write("a.tsv", "a\tr\tb\n" * 50 + "bad\n" + "worse\n")
    with pytest.raises(InputError, match=r"a\.tsv, line 51: expected 3 columns, found 1: bad; correct the file"):
        ingest(path, memory, strict=True, segment_bytes=32)
    assert not Path(memory).exists()


def test_input_without_a_usable_row_is_empty_input(write: Write, memory: str) -> None:
    with pytest.raises(EmptyInput, match=r"no facts in .*a\.tsv; all 2 rows were rejected, see .*quarantine/"):
        ingest(write("a.tsv", "a\tr\t\n\tr\tb\n"), memory)
    assert generations(Storage(memory)) == []
    with pytest.raises(EmptyInput, match="is empty"):
        ingest(write("empty.tsv", ""), memory)
    with pytest.raises(EmptyInput, match="there are no facts"):
        ingest(write("names.tsv", "a\tb\n"), memory)
    with pytest.raises(EmptyInput, match="nothing to ingest"):
        ingest([], memory)


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.tsv.zst"])
def test_a_truncated_file_commits_nothing(write: Write, memory: str, name: str) -> None:
    ingest(write("good.tsv", PEOPLE), memory)
    before = everything_in(memory)
    path = Path(write(name, numbered(0, 60_000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is cut short; copy or download it again"):
        ingest(str(path), memory)
    assert everything_in(memory) == before


def test_questions_are_not_facts(write: Write, memory: str) -> None:
    with pytest.raises(InputError, match="holds questions, not facts"):
        ingest(write("annotated_fb_data_valid.txt", "s\tr\to\tq\n"), memory)


def test_a_memory_keeps_its_grouping(write: Write, memory: str) -> None:
    path = write("a.tsv", PEOPLE)
    ingest(path, memory)
    with pytest.raises(InputError, match="groups facts by 'relation', not by 'triple'"):
        ingest(path, memory, grouping="triple")


@pytest.mark.parametrize("object_ids", [None, ["b"]])
def test_facts_that_were_not_ingested_cannot_be_merged(write: Write, memory: str, object_ids: Any) -> None:
    row = {"fact_id": 1, "subject_id": "a", "subject": "A", "aliases": [], "relation": "r"}
    row |= {"object_ids": object_ids, "objects": object_ids}
    with MemoryWriter(memory, dim=2) as writer:
        writer.append(pa.Table.from_pylist([row]), np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="cannot be merged with others; ingest into a new memory"):
        ingest(write("a.tsv", PEOPLE), memory)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"grouping": "pairs"}, "grouping 'pairs' is unknown"),
        ({"backend": "spark"}, "backend 'spark' is unknown"),
        ({"workers": 0}, "at least one worker"),
        ({"rows_per_part": 0}, "expected positive sizes"),
        ({"names": "memory://names.tsv", "backend": "ray"}, "memory of this process"),
    ],
)
def test_options_out_of_range_are_config_errors(
    write: Write, memory: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ingest(write("a.tsv", PEOPLE), memory, **options)


def test_source_and_memory_may_be_at_any_fsspec_url(facts_of: FactsOf) -> None:
    fsspec.filesystem("memory").pipe_file("/ingest-test/in/a.tsv", PEOPLE.encode())
    summary = ingest("memory://ingest-test/in/*.tsv", "memory://ingest-test/memory")
    assert summary.facts == len(facts_of("memory://ingest-test/memory")) == 3
    left = fsspec.filesystem("memory").find("/ingest-test/memory")
    assert {path.split("/")[3] for path in left} == {"facts", "manifests"}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("step", [0, 3, 8, 14, 17, 22, 26])
def test_a_killed_ingest_finishes_the_missing_pieces_and_commits_the_same(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sources = [write("1.tsv", numbered(0, 200)), write("2.tsv.gz", numbered(100, 300) + "bad\n")]
    names = write("names.tsv", "".join(f"s{n}\tname {n}\no{n}\tobject {n}\n" for n in range(97)))
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    options: dict[str, Any] = {"names": names, "segment_bytes": 2048, "rows_per_part": 200}
    ingest(sources, undisturbed, **options)

    written: list[str] = []
    write_atomic = Storage.write_atomic

    def die_on_the_nth_write(storage: Storage, path: str, content: Any) -> None:
        if len(written) == step:
            raise Killed
        write_atomic(storage, path, content)
        written.append(path)

    monkeypatch.setattr(Storage, "write_atomic", die_on_the_nth_write)
    with pytest.raises(Killed):
        ingest(sources, killed, **options)
    assert generations(Storage(killed)) == []
    monkeypatch.setattr(Storage, "write_atomic", write_atomic)
    before = {path: (Path(killed) / path).stat().st_mtime_ns for path in written if path.endswith(".json")}
    kept: dict[str, int] = {}

    def remember(storage: Storage, folder: str, **options: Any) -> None:
        kept.update({path: (Path(killed) / path).stat().st_mtime_ns for path in before})
        remove_staging(storage, folder, **options)

    remove_staging = staging.remove_staging
    monkeypatch.setattr("pipeline.ingest.remove_staging", remember)
    assert ingest(sources, killed, **options).quarantined == 1
    assert contents(killed) == contents(undisturbed)
    assert kept == before, "a finished piece was done again"
    assert not list((Path(killed) / "staging").iterdir())


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[1]", b'{"part": {"path": "../x"}}'])
@pytest.mark.parametrize("step", [5, 30, 40])
def test_receipts_of_a_killed_ingest_that_cannot_be_read_are_dropped_and_their_steps_done_again(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: int,
    text: bytes,
) -> None:
    sources = [write("1.tsv", numbered(0, 200)), write("2.tsv", numbered(100, 300) + "bad\n")]
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    options: dict[str, Any] = {"segment_bytes": 1024, "rows_per_part": 50}
    ingest(sources, undisturbed, **options)
    left = step

    def die_in_time(storage: Storage, path: str, content: Any) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        write_atomic(storage, path, content)

    write_atomic = Storage.write_atomic
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_atomic", die_in_time)
        with pytest.raises(Killed):
            ingest(sources, killed, **options)
    receipts = list((Path(killed) / "staging").rglob("*.json"))
    assert receipts
    for path in receipts:
        path.write_bytes(text)
    assert ingest(sources, killed, **options).quarantined == 1
    assert contents(killed) == contents(undisturbed)
    assert any(str(receipts[0]) in line and "which cannot be read" in line for line in caplog.messages)
    assert not list((Path(killed) / "staging").iterdir())


def test_an_ingest_killed_after_its_commit_is_done(write: Write, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    path = write("a.tsv", PEOPLE)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.remove_staging", die)
        with pytest.raises(Killed):
            ingest(path, memory)
    assert list((Path(memory) / "staging").iterdir())
    summary = ingest(path, memory)
    assert (summary.generation, summary.committed) == (1, False)
    assert not list((Path(memory) / "staging").iterdir())


def test_the_loser_of_a_race_is_told_to_run_again_and_then_merges(
    write: Write, memory: str, monkeypatch: pytest.MonkeyPatch, facts_of: FactsOf
) -> None:
    ours, theirs = write("ours.tsv", PEOPLE), write("theirs.tsv", "x\tr\ty\n")
    reduce_bucket = staging.reduce_bucket

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr("pipeline.ingest.reduce_bucket", reduce_bucket)
        ingest(theirs, memory)
        return reduce_bucket(*arguments)

    monkeypatch.setattr("pipeline.ingest.reduce_bucket", overtaken)
    with pytest.raises(GenerationConflict, match="another writer committed"):
        ingest(ours, memory)
    assert set(facts_of(memory)) == {("x", "r")}
    assert ingest(ours, memory).generation == 2
    assert len(facts_of(memory)) == 4
    assert verify_memory(memory).ok


def test_a_full_disk_is_one_clear_error_and_leaves_the_memory_as_it_was(
    write: Write, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(write("a.tsv", PEOPLE), memory)
    before = everything_in(memory)

    def full(self: Any, path: str, fill: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("memory_store.disk.LocalFiles.write", full)
    with pytest.raises(StorageFailed, match="No space left on device; free some space"):
        ingest(write("b.tsv", "x\tr\ty\n"), memory)
    assert everything_in(memory) == before


def test_two_facts_with_one_id_in_different_parts_are_refused_by_name(
    write: Write, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(subject_id: Any, *_: Any) -> Any:
        return np.full(len(subject_id), 7, dtype=np.int64)

    monkeypatch.setattr("pipeline.group.fact_ids", same)
    with pytest.raises(DuplicateFact, match=r"two facts have the id 7: \(s., r\) and \(s., r\)"):
        ingest(write("a.tsv", "".join(f"s{n}\tr\to\n" for n in range(2))), memory, rows_per_part=1)
    assert generations(Storage(memory)) == []


def test_workers_and_segment_order_change_no_byte(write: Write, tmp_path: Path, ray_cluster: None) -> None:
    sources = [write("1.tsv", numbered(0, 2000)), write("2.tsv.zst", numbered(1000, 3000) + "bad\n")]
    names = write("names.tsv", "".join(f"s{n}\tname {n}\no{n}\tobject {n}\n" for n in range(97)))
    options: dict[str, Any] = {"names": names, "segment_bytes": 8192, "rows_per_part": 1000}
    found: dict[str, tuple[Any, ...]] = {}
    for label, extra in {"local": {}, "one": {"backend": "ray", "workers": 1}, "many": {"backend": "ray"}}.items():
        url = str(tmp_path / label)
        summary: IngestSummary = ingest(sources, url, **options, **extra)
        found[label] = (contents(url), summary.triples, summary.duplicates, summary.quarantined, summary.entities)
    assert found["one"] == found["local"]
    assert found["many"] == found["local"]


def test_an_error_of_a_ray_worker_is_the_error_itself(write: Write, memory: str, ray_cluster: None) -> None:
    path = Path(write("a.tsv.gz", numbered(0, 60_000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is cut short"):
        ingest(str(path), memory, backend="ray")


def test_progress_is_told_from_start_to_end(write: Write, memory: str) -> None:
    told: list[tuple[str, int, int | None]] = []

    def progress(task: str, done: int, total: int | None = None, *, unit: str = "", note: str = "") -> None:
        told.append((task, done, total))

    ingest(write("a.tsv", PEOPLE), memory, names=write("names.tsv", "e1\tA\n"), progress=progress)
    assert [entry for entry in told if entry[1] == entry[2]] == [("read", 2, 2), ("write facts", 1, 1)]


def test_a_committed_generation_says_where_it_came_from(write: Write, memory: str) -> None:
    path = write("a.tsv", PEOPLE)
    ingest(path, memory)
    manifest: Manifest = read_manifest(Storage(memory))
    assert manifest.note == f"ingest of {path}"


def test_every_bucket_is_read_from_each_staged_file_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table = pa.table([[f"s{row}" for row in range(40)], [f"name {row}" for row in range(40)]], schema=NAMES_SCHEMA)
    bucket_N = np.arange(40) % 4
    paths = [f"{number}.arrow" for number in range(3)]
    for path in paths:
        staging._write_buckets(storage, path, table, bucket_N, 4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = staging.BucketFiles(storage)
    for bucket in (0, 1, 2, 3, 0):
        for path in paths:
            assert files.read(path, bucket).to_pylist() == table.filter(pa.array(bucket_N == bucket)).to_pylist()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
