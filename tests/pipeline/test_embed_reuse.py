"""Embedding after few facts changed: they alone are encoded, all others keep the bits of an earlier generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory_store.compaction import CompactionPolicy, compact
from memory_store.history import diff_generations
from memory_store.manifest import Manifest, read_manifest
from memory_store.parts import FACTS_SCHEMA, fact_ids_of, scan_facts, scan_vectors, vectors_of
from memory_store.reuse import earlier_vectors
from memory_store.storage import Storage
from memory_store.upkeep import sweep, verify_memory
from memory_store.vectors import stored_vectors
from memory_store.writes import locate_on_disk, upsert_facts
from pipeline.embed import EmbedSummary, embed
from pipeline.ingest import ingest
from pipeline.upsert import delete, upsert

# N facts, D dimension

Write = Callable[[str, str | bytes], str]

DIM = 3


def encode(facts: pa.Table) -> NDArray[np.float32]:
    """Vectors [N, D] that tell every column of the fact."""
    digests = [xxhash.xxh3_64_intdigest(repr(row).encode()) for row in facts.to_pylist()]
    values_ND = [[digest >> shift & 0xFFFF for shift in (0, 16, 32)] for digest in digests]
    return np.array(values_ND, dtype=np.float32).reshape(len(facts), DIM) / 65536 + 0.1


@dataclass
class Recording:
    """The encoder, and the ids of the facts that it was asked for."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, facts: pa.Table) -> NDArray[np.float32]:
        self.asked += fact_ids_of(facts).tolist()
        return encode(facts)


def lines(numbers: Sequence[int]) -> str:
    return "".join(f"s{n}\tr{n % 3}\to{n}\n" for n in numbers)


def embedded(url: str, *, dtype: str = "float32", fingerprint: str = "e/1") -> tuple[EmbedSummary, list[int]]:
    recording = Recording()
    summary = embed(url, lambda: recording, fingerprint=fingerprint, dim=DIM, dtype=dtype)
    assert summary.computed == len(recording.asked)
    return summary, recording.asked


def ids(storage: Storage, manifest: Manifest | None = None) -> set[int]:
    tables = scan_facts(storage, manifest or read_manifest(storage), ["fact_id"])
    return {fact_id for table in tables for fact_id in table["fact_id"].to_pylist()}


def is_as_if_all_were_encoded(url: str, dtype: str = "float32") -> bool:
    """Every vector has the bits that the encoder gives for what the fact says now."""
    storage = Storage(url)
    manifest = read_manifest(storage)
    for facts, vectors in zip(scan_facts(storage, manifest), scan_vectors(storage, manifest), strict=True):
        np.testing.assert_array_equal(fact_ids_of(facts), fact_ids_of(vectors))
        np.testing.assert_array_equal(vectors_of(vectors), stored_vectors(encode(facts), DIM, dtype))
    assert verify_memory(url).ok
    return True


def damage(url: str, path: str) -> None:
    file = Path(url, path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture
def memory(write: Write, tmp_path: Path) -> str:
    """400 facts in several parts, embedded by e/1."""
    url = str(tmp_path / "memory")
    ingest(write("a.tsv", lines(range(400))), url, rows_per_part=100)
    embedded(url)
    return url


def add(url: str, write: Write, numbers: Sequence[int], **options: Any) -> set[int]:
    """Ingest more facts; the ids of what the memory did not hold."""
    before = ids(Storage(url))
    name = f"more-{len(list(Path(url).parent.glob('more-*')))}.tsv"
    ingest(write(name, lines(numbers)), url, rows_per_part=100, **options)
    return ids(Storage(url)) - before


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_after_one_more_row_one_fact_is_encoded_and_unchanged_parts_keep_their_files(
    memory: str, write: Write, dtype: str
) -> None:
    embedded(memory, dtype=dtype)
    before = read_manifest(Storage(memory))
    new = add(memory, write, [1000])
    summary, asked = embedded(memory, dtype=dtype)
    after = read_manifest(Storage(memory))
    assert set(asked) == new
    assert (summary.computed, summary.reused, summary.facts) == (1, 400, 401)
    assert summary.embedded_parts == 1 == len(set(after.vectors) - set(before.vectors))
    assert is_as_if_all_were_encoded(memory, dtype)
    assert diff_generations(Storage(memory), before.generation, after.generation).changed.tolist() == []


def test_the_norm_is_that_of_the_facts_which_are_left(memory: str, write: Write) -> None:
    storage = Storage(memory)
    vectors = [(fact_ids_of(table), vectors_of(table)) for table in scan_vectors(storage, read_manifest(storage))]
    id_N, vector_ND = (np.concatenate(pieces) for pieces in zip(*vectors, strict=True))
    delete([], memory, fact_ids=[int(id_N[np.argmax(np.linalg.norm(vector_ND, axis=1))])])
    add(memory, write, [1000])
    summary, _ = embedded(memory)
    facts = pa.concat_tables(list(scan_facts(storage, read_manifest(storage))))
    assert summary.max_norm == pytest.approx(np.linalg.norm(encode(facts), axis=1).max(), rel=1e-6)
    assert summary.reused == 399


def test_a_fact_that_says_something_else_now_is_encoded_anew(memory: str, write: Write) -> None:
    ingest(write("b.tsv", "s7\tr1\tanother\n"), memory, names=write("names.tsv", "s8\tEight\n"), rows_per_part=100)
    summary, asked = embedded(memory)
    rows = [row for table in scan_facts(Storage(memory), read_manifest(Storage(memory))) for row in table.to_pylist()]
    told = {row["subject_id"]: row for row in rows}
    assert told["s7"]["object_ids"] == ["o7", "another"]
    assert told["s8"]["subject"] == "Eight"
    assert set(asked) == {told["s7"]["fact_id"], told["s8"]["fact_id"]}
    assert summary.reused == 398
    assert is_as_if_all_were_encoded(memory)


def test_parts_that_are_cut_otherwise_reuse_all_their_rows(memory: str, write: Write) -> None:
    new = add(memory, write, range(1000, 1700))
    assert len(read_manifest(Storage(memory)).facts) > 4
    summary, asked = embedded(memory)
    assert set(asked) == new
    assert (summary.computed, summary.reused) == (700, 400)
    assert is_as_if_all_were_encoded(memory)


@pytest.mark.parametrize("compacted", [False, True])
def test_upserts_and_deletes_of_the_earlier_generation_count(memory: str, write: Write, compacted: bool) -> None:
    upsert([write("u.tsv", "s5\tr2\tother\n" + lines([2000, 2001]))], memory, encode, fingerprint="e/1")
    gone = sorted(ids(Storage(memory)))[:20]
    delete([], memory, fact_ids=gone)
    if compacted:
        compact(Storage(memory), policy=CompactionPolicy(most_dead_share=0.0), part_rows=100)
    new = add(memory, write, [1000])
    summary, asked = embedded(memory)
    assert set(asked) == new
    assert (summary.computed, summary.reused) == (1, 382)
    assert is_as_if_all_were_encoded(memory)


def test_a_fact_that_was_deleted_and_comes_back_is_encoded(memory: str, write: Write) -> None:
    delete([write("d.tsv", lines([3]))], memory)
    back = add(memory, write, [3])
    assert len(back) == 1
    _, asked = embedded(memory)
    assert set(asked) == back
    assert is_as_if_all_were_encoded(memory)


def test_the_vector_of_a_row_that_was_overwritten_is_not_taken(memory: str, write: Write) -> None:
    storage = Storage(memory)
    fact = next(iter(scan_facts(storage, read_manifest(storage)))).slice(0, 1)
    for vectors_ND in (np.full((1, DIM), 0.5, np.float32), encode(fact)):
        upsert_facts(storage, fact, vectors_ND, locate=partial(locate_on_disk, storage))
    add(memory, write, [1000])
    embedded(memory)
    assert is_as_if_all_were_encoded(memory)


def test_an_encoder_that_comes_back_finds_all_its_vectors(memory: str) -> None:
    before = read_manifest(Storage(memory))
    embedded(memory, fingerprint="e/2")
    summary, asked = embedded(memory)
    after = read_manifest(Storage(memory))
    assert (asked, summary.committed, summary.embedded_parts, summary.reused) == ([], True, 0, 400)
    assert after.vectors == before.vectors
    sweep(memory)
    assert is_as_if_all_were_encoded(memory)


@pytest.mark.parametrize("other", [{"fingerprint": "e/2"}, {"dtype": "float16"}])
def test_vectors_of_another_encoder_or_type_are_not_taken(memory: str, write: Write, other: dict[str, str]) -> None:
    add(memory, write, [1000])
    summary, _ = embedded(memory, **other)
    assert (summary.computed, summary.reused) == (401, 0)


def test_an_encoder_that_is_new_costs_a_few_manifests(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(memory)
    for _ in range(20):
        upsert_facts(
            storage,
            next(iter(scan_facts(storage, read_manifest(storage)))).slice(0, 1),
            np.ones((1, DIM), np.float32),
            locate=partial(locate_on_disk, storage),
        )
    read: list[str] = []
    read_bytes = Storage.read_bytes

    def noted(self: Storage, path: str) -> bytes:
        read.append(path)
        return read_bytes(self, path)

    def never(*_: Any) -> Any:
        raise AssertionError("a part was opened")

    monkeypatch.setattr(Storage, "read_bytes", noted)
    monkeypatch.setattr("memory_store.reuse.open_part", never)
    monkeypatch.setattr("memory_store.reuse.dead_rows", never)
    embedded(memory, fingerprint="e/2")
    assert len({path for path in read if path.startswith("manifests/")}) <= 18


def test_what_is_damaged_or_gone_is_encoded(memory: str, write: Write) -> None:
    before = read_manifest(Storage(memory))
    new = add(memory, write, [1000])
    kept = {part.checksum for part in read_manifest(Storage(memory)).facts}
    same = [number for number, part in enumerate(before.facts) if part.checksum in kept]
    (changed,) = set(range(len(before.facts))) - set(same)
    damage(memory, before.vectors[same[0]].path)
    Path(memory, before.vectors[same[1]].path).unlink()
    _, asked = embedded(memory)
    lost = {*fact_ids(memory, before, same[0]), *fact_ids(memory, before, same[1])}
    assert set(asked) == new | lost
    assert changed not in same
    sweep(memory)
    assert is_as_if_all_were_encoded(memory)


def fact_ids(memory: str, manifest: Manifest, number: int) -> list[int]:
    table = pa.ipc.open_file(Path(memory, manifest.facts[number].path).read_bytes()).read_all()
    return fact_ids_of(table).tolist()


@pytest.mark.parametrize("kind", ["facts", "vectors", "tombstones", "manifests"])
def test_whatever_of_the_earlier_generation_is_damaged_is_not_used(memory: str, write: Write, kind: str) -> None:
    delete([], memory, fact_ids=sorted(ids(Storage(memory)))[:1])
    earlier = read_manifest(Storage(memory))
    add(memory, write, [1000])
    if kind == "manifests":
        for generation in (2, 3):
            damage(memory, f"manifests/{generation:08d}.json")
    else:
        for part in getattr(earlier, kind):
            damage(memory, part.path)
    summary, _ = embedded(memory)
    assert summary.facts == 400
    assert summary.computed > 1
    for generation in (2, 3):
        Path(memory, f"manifests/{generation:08d}.json").unlink()
    sweep(memory)
    assert is_as_if_all_were_encoded(memory)


def test_vectors_beside_other_facts_than_the_manifest_says_are_not_taken(memory: str, write: Write) -> None:
    storage = Storage(memory)
    manifest = read_manifest(storage)
    add(memory, write, [1000])
    with earlier_vectors(storage, read_manifest(storage), encoder="e/1", dtype="float32") as earlier:
        (pair,) = earlier.others
        other = next(part for part in manifest.vectors if part != pair[1])
        wrong = replace(earlier, others=((pair[0], other),))
        facts = pa.ipc.open_file(Path(memory, pair[0].path).read_bytes()).read_all().cast(FACTS_SCHEMA)
        vectors_ND = np.empty((facts.num_rows, DIM), np.float32)
        assert earlier.copy_into(storage, facts, vectors_ND).all()
        np.testing.assert_array_equal(vectors_ND, encode(facts))
        assert not wrong.copy_into(storage, facts, vectors_ND).any()


def test_a_sweep_meanwhile_takes_nothing_that_is_reused(memory: str, write: Write) -> None:
    new = add(memory, write, [1000])
    asked: list[int] = []

    def swept(facts: pa.Table) -> NDArray[np.float32]:
        asked.extend(fact_ids_of(facts).tolist())
        sweep(memory)
        return encode(facts)

    embed(memory, lambda: swept, fingerprint="e/1", dim=DIM)
    assert set(asked) == new
    assert list(Path(memory, "leases").glob("*")) == []
    sweep(memory)
    assert is_as_if_all_were_encoded(memory)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_a_killed_embedding_goes_on_where_it_was(memory: str, write: Write) -> None:
    new = add(memory, write, [1000, 1001, 1002, 1003])
    asked: list[int] = []

    def dies_at_the_second(facts: pa.Table) -> NDArray[np.float32]:
        if asked:
            raise Killed
        asked.extend(fact_ids_of(facts).tolist())
        return encode(facts)

    with pytest.raises(Killed):
        embed(memory, lambda: dies_at_the_second, fingerprint="e/1", dim=DIM)
    _, others = embedded(memory)
    assert sorted(asked + others) == sorted(new)
    assert is_as_if_all_were_encoded(memory)


def test_what_is_upserted_meanwhile_is_encoded_beside_what_is_reused(memory: str, write: Write) -> None:
    embedded(memory, fingerprint="e/2")
    storage = Storage(memory)

    def overtaken(done: int) -> None:
        if read_manifest(storage).generation == 3:
            upsert([write("u.tsv", lines([2000]))], memory, encode, fingerprint="e/2")

    recording = Recording()
    summary = embed(
        memory, lambda: recording, fingerprint="e/1", dim=DIM, progress=lambda _task, done, *_a, **_k: overtaken(done)
    )
    assert (summary.computed, summary.reused, summary.generation) == (1, 400, 5)
    assert is_as_if_all_were_encoded(memory)


def test_ray_workers_reuse_the_same_bits(memory: str, write: Write, tmp_path: Path, ray_cluster: None) -> None:
    add(memory, write, [1000])
    asked = tmp_path / "asked"

    def factory() -> Callable[[pa.Table], NDArray[np.float32]]:
        def recording(facts: pa.Table) -> NDArray[np.float32]:
            with asked.open("a") as file:
                file.writelines(f"{fact_id}\n" for fact_id in fact_ids_of(facts))
            return np.full((len(facts), DIM), 0.25, np.float32)

        return recording

    before = read_manifest(Storage(memory))
    summary = embed(memory, factory, fingerprint="e/1", dim=DIM, backend="ray", workers=2)
    assert before.vectors == ()
    assert (summary.computed, summary.reused) == (1, 400)
    assert len(asked.read_text().splitlines()) == 1
    assert verify_memory(memory).ok


NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=10, unique=True)
EVENT = st.one_of(
    st.tuples(st.sampled_from(["ingest", "rename", "upsert", "delete"]), NUMBERS),
    st.tuples(st.sampled_from(["embed", "embed by another", "compact", "sweep"]), st.just([])),
)


@settings(max_examples=15, deadline=None)
@given(first=NUMBERS, events=st.lists(EVENT, max_size=6))
def test_whatever_happened_before_all_vectors_are_those_of_the_encoder(
    first: list[int], events: list[tuple[str, list[int]]]
) -> None:
    with TemporaryDirectory() as folder:
        url, file = f"{folder}/memory", Path(folder, "given.tsv")
        storage = Storage(url)
        for what, numbers in [("ingest", first), ("embed", []), *events, ("ingest", [99]), ("embed", [])]:
            now = read_manifest(storage) if what != "ingest" or Path(url).exists() else None
            file.write_text("".join(f"s{n}\tr\to{n % 3}\n" for n in numbers))
            if what == "ingest":
                ingest(str(file), url, rows_per_part=4)
            elif what == "rename":
                file.write_text("".join(f"s{n}\tName {n} {len(numbers)}\tr\to{n}\tObject {n}\n" for n in numbers))
                ingest(str(file), url, rows_per_part=4)
            elif what == "embed":
                embedded(url)
            elif what == "embed by another":
                embedded(url, fingerprint="e/2")
            elif what == "sweep":
                sweep(storage)
            elif now is not None and now.encoder:
                if what == "upsert":
                    upsert([str(file)], url, encode, fingerprint=now.encoder)
                elif what == "compact":
                    compact(storage, policy=CompactionPolicy(most_dead_share=0.0), part_rows=8)
                elif len(known := sorted(ids(storage, now))) > len(numbers):
                    delete([], url, fact_ids=[known[n % len(known)] for n in numbers])
        assert is_as_if_all_were_encoded(url)
