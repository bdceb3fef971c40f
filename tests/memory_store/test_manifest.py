"""Manifests: pure changes, commits with a precondition, and the refusal of everything that is not ours."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from memory_store.errors import (
    CommitUnknown,
    CorruptFile,
    DimensionMismatch,
    GenerationConflict,
    GenerationNotFound,
    InputError,
    InvalidVectors,
    MemoryNotFound,
    NoVectors,
    StorageFailed,
)
from memory_store.manifest import (
    AppendParts,
    Manifest,
    ParentGeneration,
    Part,
    ReplaceFacts,
    ReplaceVectors,
    apply_change,
    commit,
    current_generation,
    generations,
    manifest_path,
    read_manifest,
)
from memory_store.manifest_format import LAST_GENERATION, from_bytes, to_bytes
from memory_store.storage import Storage

CHECKSUM = "xxh3-128:" + "0" * 32


def part(path: str, rows: int = 2) -> Part:
    return Part(path=path, rows=rows, bytes=7, checksum=CHECKSUM)


def append(*names: str, dim: int = 4, dtype: str = "float32", max_norm: float = 1.0) -> AppendParts:
    return AppendParts(
        facts=tuple(part(f"facts/{name}.arrow") for name in names),
        vectors=tuple(part(f"vectors/{name}.arrow") for name in names),
        dim=dim,
        dtype=dtype,
        max_norm=max_norm,
    )


def first(*names: str) -> Manifest:
    return apply_change(None, append(*names), commit_id="c1")


def write_parts(storage: Storage, manifest: Manifest) -> Manifest:
    for written in manifest.facts + manifest.vectors:
        storage.write_atomic(written.path, b"7 bytes")
    return manifest


def rewritten(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> bytes:
    """What somebody who knows the format could write: a changed manifest whose checksum fits."""
    content = json.loads(to_bytes(manifest))
    change(content)
    content.pop("checksum", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    content["checksum"] = f"xxh3-128:{xxhash.xxh3_128_hexdigest(canonical.encode())}"
    return json.dumps(content).encode()


# Changes


def test_the_first_change_makes_generation_one_without_a_parent() -> None:
    manifest = first("a", "b")
    assert (manifest.generation, manifest.parent, manifest.parent_commit) == (1, None, None)
    assert (manifest.fact_count, manifest.dim, manifest.dtype, manifest.max_norm) == (4, 4, "float32", 1.0)


def test_an_append_keeps_every_part_and_the_larger_norm_and_leaves_its_parent_untouched() -> None:
    old = first("a")
    before = dataclasses.asdict(old)
    new = apply_change(old, append("b", max_norm=0.5), commit_id="c2", note="more")
    assert dataclasses.asdict(old) == before
    assert [kept.path for kept in new.facts] == ["facts/a.arrow", "facts/b.arrow"]
    assert [kept.path for kept in new.vectors] == ["vectors/a.arrow", "vectors/b.arrow"]
    assert (new.generation, new.parent, new.parent_commit, new.max_norm, new.note) == (2, 1, "c1", 1.0, "more")


def test_replacing_facts_drops_their_vectors_and_replacing_vectors_keeps_the_facts() -> None:
    replaced = apply_change(
        first("a"), ReplaceFacts(facts=(part("facts/n.arrow", 5),), grouping="relation", features="f1"), commit_id="c2"
    )
    assert (replaced.fact_count, replaced.vectors, replaced.dim, replaced.dtype) == (5, (), 0, None)
    assert (replaced.encoder, replaced.max_norm, replaced.grouping, replaced.features) == (None, 0.0, "relation", "f1")
    vectors = ReplaceVectors(vectors=(part("vectors/n.arrow", 5),), dim=8, dtype="float16", encoder="e", max_norm=2.0)
    embedded = apply_change(replaced, vectors, commit_id="c3")
    assert embedded.facts == replaced.facts
    assert (embedded.dim, embedded.dtype, embedded.encoder, embedded.max_norm) == (8, "float16", "e", 2.0)
    assert (embedded.grouping, embedded.features) == ("relation", "f1")


def test_a_change_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DimensionMismatch, match=r"dimension 4, which generation 1 holds, found 8"):
        apply_change(first("a"), append("b", dim=8), commit_id="c2")
    with pytest.raises(InvalidVectors, match="expected dtype float32, which the memory holds, found float16"):
        apply_change(first("a"), append("b", dtype="float16"), commit_id="c2")
    bare = apply_change(None, ReplaceFacts(facts=(part("facts/a.arrow"),), grouping=None, features=None), commit_id="c")
    with pytest.raises(NoVectors, match="have no vectors yet; run `hmn embed"):
        apply_change(bare, append("b"), commit_id="c2")
    vectors = ReplaceVectors(vectors=(part("vectors/n.arrow", 3),), dim=8, dtype="float32", encoder=None, max_norm=2.0)
    with pytest.raises(InvalidVectors, match=r"1 parts, 2 rows\), found 1 parts, 3 rows"):
        apply_change(bare, vectors, commit_id="c3")
    with pytest.raises(GenerationConflict, match="copy the memory"):
        apply_change(dataclasses.replace(first("a"), generation=LAST_GENERATION), append("b"), commit_id="c")


# Commits


def test_a_commit_is_read_back_as_it_was_returned(storage: Storage) -> None:
    stored = commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    assert stored.created_at
    assert read_manifest(storage) == read_manifest(storage, 1) == stored
    second = write_parts(storage, apply_change(stored, append("b"), commit_id="c2"))
    assert commit(storage, second, requires=ParentGeneration(1)) == read_manifest(storage)
    assert generations(storage) == [1, 2]
    assert read_manifest(storage, 1) == stored


def test_a_commit_on_another_generation_than_required_names_both(storage: Storage) -> None:
    stored = commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(0))
    with pytest.raises(GenerationConflict, match="expected no memory to be the current state, found generation 1"):
        commit(storage, first("a"), requires=ParentGeneration(None))
    second = write_parts(storage, apply_change(stored, append("b"), commit_id="c2"))
    commit(storage, second, requires=ParentGeneration(1))
    with pytest.raises(GenerationConflict, match="expected generation 1 to be the current state, found generation 2"):
        commit(storage, second, requires=ParentGeneration(1))


def test_a_memory_that_was_deleted_and_made_anew_conflicts_although_the_number_is_the_same(storage: Storage) -> None:
    old = commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    storage.delete(manifest_path(1))
    commit(storage, dataclasses.replace(old, commit_id="another"), requires=ParentGeneration(None))
    second = write_parts(storage, apply_change(old, append("b"), commit_id="c2"))
    with pytest.raises(GenerationConflict, match=r"expected generation 1 .* found another commit of that number"):
        commit(storage, second, requires=ParentGeneration(1))


def test_of_many_writers_on_one_parent_exactly_one_commits(memory_url: str) -> None:
    write_parts(Storage(memory_url), first("a"))
    results: list[str] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        new = dataclasses.replace(first("a"), commit_id=f"writer {number}")
        start.wait()
        try:
            results.append(commit(Storage(memory_url), new, requires=ParentGeneration(None)).commit_id)
        except GenerationConflict:
            results.append("conflict")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("conflict") == 7
    assert read_manifest(Storage(memory_url)).commit_id in results


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_commit_whose_parts_are_not_all_there_publishes_nothing(storage: Storage, damage: str) -> None:
    new = write_parts(storage, first("a"))
    if damage == "missing":
        storage.delete("vectors/a.arrow")
    else:
        storage.write_atomic("vectors/a.arrow", b"6 byte")
    with pytest.raises(CorruptFile, match=r"vectors/a.arrow: expected 7 bytes, found .*; nothing was committed"):
        commit(storage, new, requires=ParentGeneration(None))
    assert current_generation(storage) is None


class UnsureStorage(Storage):
    """Storage whose exclusive creation answers with an error, after or without doing its work."""

    def __init__(self, url: str, *, lands: bool, answer: Exception, rereads: bool = True) -> None:
        super().__init__(url)
        self._lands, self._answer, self._rereads, self._asked = lands, answer, rereads, False

    def create_exclusive(self, path: str, data: bytes) -> None:
        if self._lands:
            super().create_exclusive(path, data)
        self._asked = True
        raise self._answer

    def read_bytes(self, path: str) -> bytes:
        if self._asked and not self._rereads:
            raise StorageFailed("cannot read: the network is down; try again")
        return super().read_bytes(path)


LOST_REPLY = StorageFailed("cannot create: timed out; run again")


@pytest.mark.parametrize("answer", [LOST_REPLY, FileExistsError("the request was repeated")])
def test_a_commit_whose_reply_was_lost_succeeded(memory_url: str, answer: Exception) -> None:
    storage = UnsureStorage(memory_url, lands=True, answer=answer)
    stored = commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    assert read_manifest(Storage(memory_url)) == stored


def test_a_commit_that_did_not_land_fails_with_the_storages_own_words(memory_url: str) -> None:
    storage = UnsureStorage(memory_url, lands=False, answer=LOST_REPLY)
    with pytest.raises(StorageFailed, match="timed out") as caught:
        commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    assert not isinstance(caught.value, CommitUnknown)
    assert current_generation(Storage(memory_url)) is None


def test_a_commit_that_cannot_be_reread_is_unknown_and_says_what_to_look_for(memory_url: str) -> None:
    storage = UnsureStorage(memory_url, lands=True, answer=LOST_REPLY, rereads=False)
    with pytest.raises(CommitUnknown, match=r"cannot tell whether generation 1 .* look for commit c1"):
        commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))


class SlowStorage(Storage):
    """Storage on which other writers commit two generations, and sweep one, just before a creation lands."""

    meanwhile: Callable[[Storage], None] | None = None

    def create_exclusive(self, path: str, data: bytes) -> None:
        if self.meanwhile is not None:
            others, self.meanwhile = self.meanwhile, None
            others(self)
        super().create_exclusive(path, data)


def test_a_commit_into_a_number_that_was_taken_and_swept_meanwhile_conflicts_and_vanishes(memory_url: str) -> None:
    storage = SlowStorage(memory_url)
    stored = commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    ours = write_parts(storage, apply_change(stored, append("b"), commit_id="ours"))

    def others(here: Storage) -> None:
        second = commit(here, dataclasses.replace(ours, commit_id="second"), requires=ParentGeneration(1))
        third = write_parts(here, apply_change(second, append("c"), commit_id="third"))
        commit(here, third, requires=ParentGeneration(2))
        here.delete(manifest_path(1))
        here.delete(manifest_path(2))

    storage.meanwhile = others
    with pytest.raises(GenerationConflict, match=r"expected generation 1 .* found generation 3"):
        commit(storage, ours, requires=ParentGeneration(1))
    assert generations(storage) == [3]
    assert read_manifest(storage).commit_id == "third"


# Reading


def test_a_place_without_a_memory_says_how_to_make_one(storage: Storage) -> None:
    with pytest.raises(MemoryNotFound, match=r"expected a memory at .*, found none; make one with `hmn ingest`"):
        read_manifest(storage)
    storage.write_atomic("facts/a.arrow", b"x")
    with pytest.raises(MemoryNotFound, match="part files but no manifest"):
        read_manifest(storage)


def test_a_generation_that_is_not_there_names_those_that_are(storage: Storage) -> None:
    commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    with pytest.raises(GenerationNotFound, match=r"expected generation 9, found 1 generations \(1\)"):
        read_manifest(storage, 9)


def test_only_files_named_by_eight_digits_are_generations(storage: Storage) -> None:
    commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    for name in (
        "00000000.json",
        "9.json",
        "000000009.json",
        "0000000x.json",
        "00000009.txt",
        "old/00000009.json",
        "٠٠٠٠٠٠٠٩.json",
    ):
        storage.write_atomic(f"manifests/{name}", b"{}")
    assert generations(storage) == [1]


def test_the_text_of_a_manifest_round_trips() -> None:
    manifest = dataclasses.replace(
        first("a", "b"),
        encoder="ngram-Überraschung",
        note='note with "quotes", \n lines, \udcff from a file name',
        max_norm=0.1 + 0.2,
    )
    assert from_bytes(to_bytes(manifest), "where", 1) == manifest


def test_every_truncation_and_every_flipped_bit_of_a_manifest_is_refused() -> None:
    data = to_bytes(first("a"))
    content = json.loads(data)
    for length in range(len(data) - 1):
        if data[:length].strip() != data.strip():
            with pytest.raises(CorruptFile, match="where: "):
                from_bytes(data[:length], "where", 1)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                found = from_bytes(bytes(flipped), "where", 1)
            except CorruptFile:
                continue
            # Only white space between tokens may change unseen: it means nothing.
            assert json.loads(bytes(flipped)) == content
            assert found == first("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=3), "expected format version 1 or 2, found 3; upgrade hmn"),
        (lambda c: c.update(format_version=True), "expected format version 1 or 2, found True; restore"),
        (lambda c: c.update(format_version="1"), "expected format version 1 or 2, found '1'; restore"),
        (lambda c: c.pop("format_version"), "expected format version 1 or 2, found None"),
        (lambda c: c.update(generation=2), "expected generation 1, found 2"),
        (lambda c: c.update(generation=0), "expected generation to be a whole number from 1"),
        (lambda c: c.update(generation=1.0), "expected generation to be a whole number from 1 to 99999999, found 1.0"),
        (lambda c: c.update(parent=1, parent_commit="c"), "expected a parent below generation 1, found 1"),
        (lambda c: c.update(parent_commit="c"), "expected a commit id exactly if there is a parent"),
        (lambda c: c.update(dim=-1), "expected dim to be a whole number from 0"),
        (lambda c: c.update(dim=10**12), "expected dim to be a whole number from 0 to 1048576, found 1000000000000"),
        (lambda c: c.update(dim=0), "expected no dtype and encoder while dim is 0, found 'float32'"),
        (lambda c: c.update(dtype="float8"), "expected dtype to be one of float32, float16, bfloat16, found 'float8'"),
        (lambda c: c.update(dtype=None), "expected dtype to be a text"),
        (lambda c: c.update(encoder=3), "expected encoder to be a text"),
        (lambda c: c.update(grouping="cell"), "expected grouping to be one of relation, triple"),
        (lambda c: c.update(max_norm=-0.5), "expected max_norm to be a finite number of at least 0"),
        (lambda c: c.update(max_norm="1"), "expected max_norm to be a finite number"),
        (lambda c: c.update(max_norm=float("inf")), "expected max_norm to be a finite number"),
        (lambda c: c.update(max_norm=float("nan")), "expected max_norm to be a finite number"),
        (lambda c: c.update(fact_count=3), "expected the facts parts without the tombstones to hold 3 rows, found 2"),
        (lambda c: c.update(fact_count=-2), "expected fact_count to be a whole number from 0"),
        (lambda c: c.update(tombstones=[c["facts"][0]]), "expected a part path tombstones/<name>.arrow"),
        (
            lambda c: c.update(tombstones=[{**c["facts"][0], "path": "tombstones/a.arrow"}]),
            "expected the facts parts without the tombstones to hold 2 rows, found 0",
        ),
        (lambda c: c.update(delta_parts=2), "expected delta_parts to be a whole number from 0 to 1, found 2"),
        (lambda c: c.update(operation=1), "expected operation to be a text"),
        (lambda c: c.pop("author"), "found no 'author'"),
        (lambda c: c.update(format_version=1), "found an unknown 'author'"),
        (lambda c: c.update(vectors=[]), r"aligned with the facts parts \(1 of 2 rows\), found 0 of 0 rows"),
        (lambda c: c["vectors"][0].update(rows=1), "aligned with the facts parts"),
        (lambda c: c.update(facts="all"), "expected facts to be a list of parts, found 'all'"),
        (lambda c: c.update(facts=["a"]), "expected a part in facts to be an object, found 'a'"),
        (lambda c: c.update(facts=c["facts"] * 2), "expected every part of facts once"),
        (lambda c: c["facts"][0].update(rows=-2), "expected rows to be a whole number from 1"),
        (lambda c: c["facts"][0].update(rows=True), "expected rows to be a whole number from 1 to .*, found True"),
        (lambda c: c["facts"][0].update(bytes=1 << 60), "expected bytes to be a whole number from 1"),
        (lambda c: c["facts"][0].update(checksum="md5:0"), "as xxh3-128:<32 hex digits>, found 'md5:0'"),
        (lambda c: c["facts"][0].update(extra=1), "found an unknown 'extra'"),
        (lambda c: c["facts"][0].pop("rows"), "found no 'rows'"),
        (lambda c: c.update(extra=1), "found an unknown 'extra'"),
        (lambda c: c.pop("note"), "found no 'note'"),
        (lambda c: c.update(note="x" * 20_000), "expected note to be a text of at most 10,000 characters"),
        *(
            (lambda c, path=path: c["facts"][0].update(path=path), r"expected a part path facts/<name>\.arrow, found")
            for path in (
                "/etc/passwd.arrow",
                "facts/../../x.arrow",
                "../facts/x.arrow",
                "facts//x.arrow",
                "facts/.x.arrow",
                "facts/x",
                "vectors/x.arrow",
                "s3://facts/x.arrow",
                "facts/a\\..\\b.arrow",
                "facts/a.arrow\n",
                "facts/" + "x" * 300 + ".arrow",
            )
        ),
    ],
)
def test_a_manifest_written_by_a_stranger_is_refused_with_expected_and_found(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CorruptFile, match=message) as caught:
        from_bytes(rewritten(first("a"), change), "the file", 1)
    assert str(caught.value).startswith("the file: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_manifest_that_could_not_be_read_again_is_not_committed(storage: Storage) -> None:
    for change in ({"note": "x" * 20_000}, {"max_norm": float("inf")}, {"fact_count": 3}, {"generation": 2}):
        new = dataclasses.replace(write_parts(storage, first("a")), **change)
        with pytest.raises((InputError, AssertionError)):
            commit(storage, new, requires=ParentGeneration(None))
    odd = part("facts/.hidden.arrow")
    with pytest.raises(InputError, match=r"cannot commit generation 1: expected a part path facts/<name>\.arrow"):
        to_bytes(dataclasses.replace(first("a"), facts=(odd,)))
    assert current_generation(storage) is None


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"', "3", "{", "[" * 100_000, "\x00", "{}", "NaN", "1" * 10_000])
def test_what_is_not_a_manifest_at_all_is_refused(text: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        from_bytes(text.encode(), "the file", 1)
    assert len(str(caught.value)) < 600


def test_a_manifest_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(CorruptFile, match="expected a manifest in JSON"):
        from_bytes(b"\xff\xfe{", "the file", 1)


def test_a_manifest_edited_by_hand_is_refused_with_both_checksums(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    commit(storage, write_parts(storage, first("a")), requires=ParentGeneration(None))
    file = tmp_path / "manifests" / "00000001.json"
    file.write_text(file.read_text().replace('"max_norm": 1.0', '"max_norm": 9.0'))
    with pytest.raises(
        CorruptFile,
        match=r"00000001.json: changed after it was written: expected checksum xxh3.*, found xxh3",
    ):
        read_manifest(storage)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_a_field_is_set_to_the_manifest_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    manifest = first("a", "b")
    names = [field.name for field in dataclasses.fields(Manifest)]
    name = data.draw(st.sampled_from(names), label="field")
    value = data.draw(JSON, label="value")
    inside = data.draw(st.sampled_from(["manifest", "facts", "vectors"]), label="inside")

    def change(content: dict[str, Any]) -> None:
        if inside == "manifest":
            content[name] = value
        else:
            content[inside][0][data.draw(st.sampled_from(["path", "rows", "bytes", "checksum"]))] = value

    try:
        found = from_bytes(rewritten(manifest, change), "the file", 1)
    except CorruptFile:
        return
    assert from_bytes(to_bytes(found), "again", 1) == found
