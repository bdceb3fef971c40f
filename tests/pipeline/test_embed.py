"""Embedding: part by part, resumable, the same on both backends, and picky about what an encoder returns."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import (
    ConfigError,
    DimensionMismatch,
    EmptyInput,
    GenerationConflict,
    HmnError,
    InvalidVectors,
    MemoryNotFound,
)
from memory_store.manifest import read_manifest
from memory_store.parts import fact_ids_of, scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from pipeline.embed import embed
from pipeline.ingest import ingest
from pipeline.upsert import delete, upsert

# N facts, D dimension

Write = Callable[[str, str | bytes], str]


def angles(facts: pa.Table) -> NDArray[np.float32]:
    """Vectors [N, 2] that tell the fact."""
    angle_N = fact_ids_of(facts) % 1000 / 1000
    return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)


def encoder(encode: Callable[[pa.Table], Any]) -> Callable[[pa.Table], Any]:
    return encode


angles_factory = partial(encoder, angles)


@pytest.fixture
def memory(write: Write, tmp_path: Path) -> str:
    url = str(tmp_path / "memory")
    ingest(write("a.tsv", "".join(f"s{n}\tr\to{n}\n" for n in range(400))), url, rows_per_part=100)
    return url


def test_every_fact_gets_its_vector_in_its_place(memory: str) -> None:
    summary = embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    storage = Storage(memory)
    manifest = read_manifest(storage)
    for facts, vectors in zip(scan_facts(storage, manifest), scan_vectors(storage, manifest), strict=True):
        np.testing.assert_array_equal(fact_ids_of(facts), fact_ids_of(vectors))
        np.testing.assert_array_equal(vectors_of(vectors), angles(facts))
    assert (manifest.encoder, manifest.dim, manifest.dtype) == ("angles/1", 2, "float32")
    assert (summary.generation, summary.committed, summary.facts) == (2, True, 400)
    assert summary.parts == summary.embedded_parts == len(manifest.facts) > 1
    assert manifest.max_norm == summary.max_norm == pytest.approx(1.0)
    assert verify_memory(memory).ok
    assert not list((Path(memory) / "staging").iterdir())


def test_the_same_encoder_again_commits_nothing_and_makes_no_encoder(memory: str) -> None:
    def never() -> Any:
        raise AssertionError("an encoder was made")

    embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    again = embed(memory, never, fingerprint="angles/1", dim=2)
    assert (again.generation, again.committed, again.embedded_parts) == (2, False, 0)


def test_another_encoder_or_type_makes_another_generation_and_keeps_the_old_bytes(memory: str) -> None:
    embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    embed(memory, angles_factory, fingerprint="angles/2", dim=2)
    assert embed(memory, angles_factory, fingerprint="angles/1", dim=2, dtype="float16").generation == 4
    assert embed(memory, angles_factory, fingerprint="angles/1", dim=2).generation == 5
    report = verify_memory(memory)
    assert report.ok
    assert [check.generation for check in report.generations] == [1, 2, 3, 4, 5]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize(("broken", "left"), [(None, 2), (b"", 0), (b'{"part": {}}', 0)])
def test_a_killed_embedding_embeds_the_missing_parts_only_and_commits_the_same(
    memory: str, write: Write, tmp_path: Path, broken: bytes | None, left: int
) -> None:
    """A receipt that cannot be read is only one more missing part."""
    calls = []

    def dies_at_the_third(facts: pa.Table) -> NDArray[np.float32]:
        calls.append(len(facts))
        if len(calls) == 3:
            raise Killed
        return angles(facts)

    with pytest.raises(Killed):
        embed(memory, partial(encoder, dies_at_the_third), fingerprint="angles/1", dim=2)
    assert read_manifest(Storage(memory)).generation == 1
    receipts = [path for path in Storage(memory).list("staging") if path.endswith(".json")]
    assert len(receipts) == 2
    for path in receipts if broken is not None else ():
        Storage(memory).write_atomic(path, broken)
    summary = embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    assert summary.embedded_parts == summary.parts - left
    other = str(tmp_path / "other")
    ingest(str(tmp_path / "a.tsv"), other, rows_per_part=100)
    embed(other, angles_factory, fingerprint="angles/1", dim=2)
    checksums = [[part.checksum for part in read_manifest(Storage(url)).vectors] for url in (memory, other)]
    assert checksums[0] == checksums[1]


@pytest.mark.parametrize(
    ("encode", "error", "complaint"),
    [
        (lambda facts: np.full((len(facts), 2), np.nan, np.float32), InvalidVectors, "found nan in row 0, fact id"),
        (lambda facts: np.full((len(facts), 2), np.inf, np.float32), InvalidVectors, "found inf"),
        (lambda facts: np.ones((len(facts), 3), np.float32), DimensionMismatch, "dimension 2, found 3"),
        (lambda facts: np.ones((1, 2), np.float32), DimensionMismatch, "one vector for each of"),
        (lambda facts: np.ones((len(facts), 2), np.int64), InvalidVectors, "found int64"),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused_and_nothing_is_committed(
    memory: str, encode: Callable[[pa.Table], Any], error: type[HmnError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        embed(memory, partial(encoder, encode), fingerprint="bad", dim=2)
    assert read_manifest(Storage(memory)).generation == 1


def test_what_overflows_half_precision_is_refused(memory: str) -> None:
    def large(facts: pa.Table) -> NDArray[np.float32]:
        return np.full((len(facts), 2), 1e6, np.float32)

    with pytest.raises(InvalidVectors, match="float16 values, found inf"):
        embed(memory, partial(encoder, large), fingerprint="large", dim=2, dtype="float16")


def test_there_must_be_facts_to_embed(tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound):
        embed(str(tmp_path / "nothing"), angles_factory, fingerprint="x", dim=2)


def test_options_are_checked_before_any_work(memory: str) -> None:
    with pytest.raises(ConfigError, match="float32, float16 or bfloat16"):
        embed(memory, angles_factory, fingerprint="x", dim=2, dtype="int8")
    with pytest.raises(ConfigError, match="backend 'gpu' is unknown"):
        embed(memory, angles_factory, fingerprint="x", dim=2, backend="gpu")
    with pytest.raises(ConfigError, match="memory of this process"):
        embed("memory://embed-test", angles_factory, fingerprint="x", dim=2, backend="ray")


def test_an_embedding_that_is_overtaken_is_a_conflict(memory: str, write: Write) -> None:
    def overtaken(facts: pa.Table) -> NDArray[np.float32]:
        ingest(write("b.tsv", "x\tr\ty\n"), memory, rows_per_part=100)
        return angles(facts)

    with pytest.raises(GenerationConflict):
        embed(memory, partial(encoder, overtaken), fingerprint="angles/1", dim=2)
    assert read_manifest(Storage(memory)).encoder is None


def test_what_is_upserted_and_deleted_during_an_embedding_is_carried_over(memory: str, write: Write) -> None:
    embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    storage = Storage(memory)
    known = [row for table in scan_facts(storage, read_manifest(storage)) for row in table["fact_id"].to_pylist()]

    def overtaken(facts: pa.Table) -> NDArray[np.float32]:
        if read_manifest(storage).generation == 2:
            upsert([write("b.tsv", "x\tr\ty\n")], memory, angles, fingerprint="angles/1")
            delete([], memory, fact_ids=known[:1])
        return angles(facts)

    summary = embed(memory, partial(encoder, overtaken), fingerprint="angles/2", dim=2)
    after = read_manifest(storage)
    assert (after.generation, after.encoder, after.fact_count) == (5, "angles/2", len(known))
    assert summary.embedded_parts == len(after.facts)
    assert verify_memory(storage).problems == ()


def test_what_is_compacted_during_an_embedding_is_not_encoded_again(memory: str, write: Write) -> None:
    embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    storage = Storage(memory)
    upsert([write("b.tsv", "x\tr\ty\ns0\tr\tother\n")], memory, angles, fingerprint="angles/1")
    encoded: list[int] = []

    def overtaken(facts: pa.Table) -> NDArray[np.float32]:
        if not encoded:
            compact(storage, policy=CompactionPolicy(most_dead_share=0.0))
        encoded.extend(fact_ids_of(facts).tolist())
        return angles(facts)

    before = read_manifest(storage)
    embed(memory, partial(encoder, overtaken), fingerprint="angles/2", dim=2)
    after = read_manifest(storage)
    assert (after.encoder, after.fact_count) == ("angles/2", before.fact_count)
    assert not {part.path for part in before.facts[-1:]} & {part.path for part in after.facts}, "it was compacted"
    assert len(encoded) == sum(part.rows for part in before.facts)
    for facts, vectors in zip(scan_facts(storage, after), scan_vectors(storage, after), strict=True):
        np.testing.assert_array_equal(vectors_of(vectors), angles(facts))
    assert verify_memory(storage).problems == ()


def test_an_embedding_of_which_every_part_was_compacted_meanwhile_is_no_conflict(tmp_path: Path, write: Write) -> None:
    memory = str(tmp_path / "memory")
    ingest(write("a.tsv", "".join(f"s{n}\tr\to{n}\n" for n in range(40))), memory)
    embed(memory, angles_factory, fingerprint="angles/1", dim=2)
    storage = Storage(memory)

    def overtaken(facts: pa.Table) -> NDArray[np.float32]:
        if read_manifest(storage).generation == 2:
            upsert(
                [write("b.tsv", "".join(f"x{n}\tr\ty\n" for n in range(60)))], memory, angles, fingerprint="angles/1"
            )
            compact(storage)
        return angles(facts)

    embed(memory, partial(encoder, overtaken), fingerprint="angles/2", dim=2)
    after = read_manifest(storage)
    assert (after.encoder, after.fact_count, len(after.facts)) == ("angles/2", 100, 1)
    assert verify_memory(storage).problems == ()


def test_ray_workers_give_the_same_bytes_and_their_errors_arrive(
    memory: str, tmp_path: Path, write: Write, ray_cluster: None
) -> None:
    def narrow(facts: pa.Table) -> NDArray[np.float32]:
        return np.ones((len(facts), 1), np.float32)

    with pytest.raises(DimensionMismatch, match="dimension 2, found 1"):
        embed(memory, partial(encoder, narrow), fingerprint="narrow", dim=2, backend="ray")
    embed(memory, lambda: angles, fingerprint="angles/1", dim=2, backend="ray", workers=2)
    other = str(tmp_path / "other")
    ingest(str(tmp_path / "a.tsv"), other, rows_per_part=100)
    embed(other, angles_factory, fingerprint="angles/1", dim=2)
    checksums = [[part.checksum for part in read_manifest(Storage(url)).vectors] for url in (memory, other)]
    assert checksums[0] == checksums[1]


def test_an_empty_memory_is_empty_input(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    manifest = replace(read_manifest(Storage(memory)), facts=(), fact_count=0)
    monkeypatch.setattr("pipeline.embed.read_manifest", lambda _: manifest)
    with pytest.raises(EmptyInput, match="holds no facts"):
        embed(memory, angles_factory, fingerprint="x", dim=2)
