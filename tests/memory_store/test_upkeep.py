"""Verify reports every kind of damage, inspect tells the history, and sweep deletes only what nobody needs."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import memory_store.upkeep
from memory_store.errors import ConfigError, CorruptFile, GenerationNotFound, MemoryNotFound
from memory_store.leases import ReadLease
from memory_store.manifest import (
    Manifest,
    ParentGeneration,
    Part,
    ReplaceFacts,
    ReplaceVectors,
    apply_change,
    commit,
    generations,
    manifest_path,
    read_manifest,
)
from memory_store.manifest_format import to_bytes
from memory_store.parts import fact_ids_of, open_part, scan_facts, vectors_of, vectors_table, write_part
from memory_store.repair import repair_memory
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, pin, pins, sweep, unpin, verify_memory

WriteMemory = Callable[..., Storage]
LATER_S = 1e7


@pytest.fixture
def history(storage: Storage, write_memory: WriteMemory) -> Storage:
    """Three generations: 5 facts, 9 facts, 9 facts with other vectors. Parts of at most 3 rows."""
    write_memory(storage, range(5), note="first")
    write_memory(storage, range(5, 9))
    embed_again(storage)
    return storage


def embed_again(storage: Storage, encoder: str = "again") -> Manifest:
    manifest = read_manifest(storage)
    parts = []
    for number, table in enumerate(scan_facts(storage, manifest, ["fact_id"])):
        ids_N = fact_ids_of(table)
        path = f"vectors/{encoder}-{manifest.generation}-{number}.arrow"
        parts.append(write_part(storage, path, vectors_table(ids_N, np.full((len(ids_N), 4), 0.5, np.float32))))
    change = ReplaceVectors(vectors=tuple(parts), dim=4, dtype="float32", encoder=encoder, max_norm=1.0)
    new = apply_change(manifest, change, commit_id=f"{encoder} {manifest.generation}")
    return commit(storage, new, requires=ParentGeneration(manifest.generation))


def files_in(storage: Storage) -> set[str]:
    return {path for folder in ("facts", "vectors", "manifests") for path in storage.list(folder)}


def named_by(*manifests: Manifest) -> set[str]:
    parts = {part.path for manifest in manifests for part in manifest.facts + manifest.vectors}
    return parts | {manifest_path(manifest.generation) for manifest in manifests}


# Verify


def test_a_sound_memory_verifies_and_every_byte_was_read_once(history: Storage) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_memory(history, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert [(check.generation, check.facts, check.problems) for check in report.generations] == [
        (1, 5, ()),
        (2, 9, ()),
        (3, 9, ()),
    ]
    assert report.parts == len(history.list("facts")) + len(history.list("vectors"))
    assert report.bytes == sum(entry.bytes for folder in ("facts", "vectors") for entry in history.entries(folder))
    assert seen[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


class SweptWhileRead(Storage):
    """A sweep runs as the first part is opened."""

    def open_stored(self, path: str) -> pa.NativeFile:
        sweep(Storage(self.url))
        return super().open_stored(path)


def test_a_sweep_takes_nothing_from_under_a_verification(history: Storage) -> None:
    report = verify_memory(SweptWhileRead(history.url))
    assert report.problems == ()
    assert [check.generation for check in report.generations] == [1, 2, 3]
    assert sweep(history).generations == (1, 2)
    assert history.list("leases") == []


class SweptWhileRepaired(Storage):
    """A sweep runs as the first part is read."""

    def read_bytes(self, path: str) -> bytes:
        if path.startswith("facts/"):
            sweep(Storage(self.url))
        return super().read_bytes(path)


def test_a_sweep_takes_nothing_from_under_a_repair(history: Storage) -> None:
    report = repair_memory(SweptWhileRepaired(history.url))
    assert (report.restored, report.lost) == ((), ())
    assert sweep(history).generations == (1, 2)
    assert history.list("leases") == []


def test_current_only_reads_the_current_generation_only(history: Storage) -> None:
    history.delete(read_manifest(history, 1).vectors[0].path)
    assert verify_memory(history, current_only=True).ok
    assert [check.generation for check in verify_memory(history, current_only=True).generations] == [3]
    assert not verify_memory(history).ok


def test_every_damaged_file_is_reported_with_the_generations_it_breaks(history: Storage) -> None:
    oldest, newest = read_manifest(history, 1), read_manifest(history, 3)
    shared, own = oldest.facts[0].path, newest.vectors[1].path
    history.delete(shared)
    data = history.read_bytes(own)
    history.write_atomic(own, data[:300] + bytes([data[300] ^ 1]) + data[301:])
    history.write_atomic(oldest.vectors[1].path, history.read_bytes(oldest.vectors[1].path)[:-1])
    report = verify_memory(history)
    problems = {check.generation: " ".join(check.problems) for check in report.generations}
    assert len(report.problems) == 3
    assert all(f"{shared}: expected" in text and "found no file" in text for text in problems.values())
    assert f"{own}: expected checksum" in problems[3]
    assert own not in problems[1] + problems[2]
    assert all(f"{oldest.vectors[1].path}: expected" in problems[generation] for generation in (1, 2))
    assert oldest.vectors[1].path not in problems[3]


def test_a_broken_manifest_is_a_problem_and_the_other_generations_are_still_checked(history: Storage) -> None:
    history.write_atomic(manifest_path(2), b"{}")
    report = verify_memory(history)
    assert [bool(check.problems) for check in report.generations] == [False, True, False]
    assert "00000002.json: expected format version 1" in report.problems[0]


def lie(storage: Storage, change: Callable[[Manifest], Manifest]) -> None:
    """Publish a current manifest that is well-formed and says something untrue about its parts."""
    manifest = change(read_manifest(storage))
    storage.write_atomic(manifest_path(manifest.generation), to_bytes(manifest))


def rewrite(storage: Storage, part: Part, change: Callable[[pa.Table], pa.Table]) -> Part:
    return write_part(storage, part.path, change(open_part(storage, part)))


def with_ids(new_ids: list[int]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(0, table.schema.field("fact_id"), pa.array(new_ids, pa.int64()))


def test_vectors_under_other_ids_than_the_facts_are_reported(history: Storage) -> None:
    def swap(manifest: Manifest) -> Manifest:
        first = rewrite(history, manifest.vectors[0], with_ids([0, 2, 1]))
        return dataclasses.replace(manifest, vectors=(first, *manifest.vectors[1:]))

    lie(history, swap)
    [problem] = verify_memory(history).problems
    assert "expected the fact ids of facts/" in problem


def test_an_id_in_two_parts_and_a_negative_id_are_reported(storage: Storage, write_memory: WriteMemory) -> None:
    write_memory(storage, range(9))

    def repeat(manifest: Manifest) -> Manifest:
        ids = {1: [3, 4, 1], 2: [6, -7, 8]}
        facts, vectors = list(manifest.facts), list(manifest.vectors)
        for number, new_ids in ids.items():
            facts[number] = rewrite(storage, facts[number], with_ids(new_ids))
            vectors[number] = rewrite(storage, vectors[number], with_ids(new_ids))
        return dataclasses.replace(manifest, facts=tuple(facts), vectors=tuple(vectors))

    lie(storage, repeat)
    problems = verify_memory(storage).problems
    assert len(problems) == 3
    assert any("expected every fact id once, found 1 again" in problem for problem in problems)
    assert sum("expected fact ids of at least 0, found -7" in problem for problem in problems) == 2


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "found nan in row 1, fact id"), (np.inf, "found inf in row 1")]
)
def test_vectors_that_are_not_finite_are_reported_by_row(history: Storage, value: float, message: str) -> None:
    def poison(table: pa.Table) -> pa.Table:
        vectors_ND = np.array(vectors_of(table))
        vectors_ND[1, 2] = value
        return vectors_table(fact_ids_of(table), vectors_ND)

    def change(manifest: Manifest) -> Manifest:
        return dataclasses.replace(
            manifest, vectors=(rewrite(history, manifest.vectors[0], poison), *manifest.vectors[1:])
        )

    lie(history, change)
    [problem] = verify_memory(history).problems
    assert message in problem


def test_a_norm_above_the_one_stated_is_reported(history: Storage) -> None:
    lie(history, lambda manifest: dataclasses.replace(manifest, max_norm=0.999))
    assert all(
        "expected norms of at most 0.999, which generation 3 states, found 1.0" in p
        for p in verify_memory(history).problems
    )
    assert not verify_memory(history).ok


def test_vectors_of_another_dimension_than_stated_are_reported(history: Storage) -> None:
    lie(history, lambda manifest: dataclasses.replace(manifest, dim=5))
    assert all("expected the columns" in problem for problem in verify_memory(history).problems)
    assert not verify_memory(history).ok


def test_a_rewritten_history_is_reported(history: Storage) -> None:
    lie(history, lambda manifest: dataclasses.replace(manifest, parent_commit="another"))
    [problem] = verify_memory(history).problems
    assert "generation 3 expected commit another as its parent 2" in problem


def test_facts_without_vectors_verify(history: Storage) -> None:
    manifest = read_manifest(history)
    bare = apply_change(manifest, ReplaceFacts(facts=manifest.facts, grouping=None, features=None), commit_id="bare")
    commit(history, bare, requires=ParentGeneration(3))
    assert verify_memory(history).ok


@pytest.mark.parametrize("use", [verify_memory, inspect_memory, sweep])
def test_upkeep_of_no_memory_says_so(storage: Storage, use: Callable[[Storage], object]) -> None:
    with pytest.raises(MemoryNotFound, match="make one with `hmn ingest`"):
        use(storage)


# Inspect


def test_inspect_tells_every_generation_its_parent_note_and_size(history: Storage) -> None:
    pin(history, "run-7", 1)
    report = inspect_memory(history)
    assert [generation.generation for generation in report.generations] == [1, 2, 3]
    assert [generation.current for generation in report.generations] == [False, False, True]
    first = report.generations[0]
    assert first.manifest == read_manifest(history, 1)
    assert first.manifest.note == "first"
    assert first.pins == ("run-7",)
    assert first.bytes == sum(part.bytes for part in first.manifest.facts + first.manifest.vectors)
    assert report.bytes == verify_memory(history).bytes
    assert (report.unnamed_files, report.unnamed_bytes) == (0, 0)
    json.dumps(dataclasses.asdict(report))  # what `hmn inspect --json` prints


def test_inspect_counts_files_that_nobody_names_and_reports_a_manifest_it_cannot_read(history: Storage) -> None:
    history.write_atomic("facts/orphan.arrow", b"12345")
    history.write_atomic(manifest_path(3), b"{}")
    report = inspect_memory(history)
    assert report.generations[2].manifest is None
    assert "expected format version 1" in str(report.generations[2].problem)
    assert report.unnamed_files == 1 + 4  # the orphan, and the vectors of the generation that cannot be read


# Pins


def test_a_pin_moves_is_listed_and_released(history: Storage) -> None:
    pin(history, "run-7", 1)
    pin(history, "run-7", 2)
    pin(history, "serving", 3)
    assert pins(history) == {"run-7": 2, "serving": 3}
    unpin(history, "run-7")
    unpin(history, "run-7")
    assert pins(history) == {"serving": 3}


def test_a_generation_that_is_not_there_cannot_be_pinned(history: Storage) -> None:
    with pytest.raises(GenerationNotFound, match="expected generation 9"):
        pin(history, "run-7", 9)
    assert pins(history) == {}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 300])
def test_a_pin_needs_a_plain_name(history: Storage, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a pin's name"):
        pin(history, name, 1)


class SweptMeanwhile(Storage):
    """A sweep deletes the oldest generation while a pin is being written."""

    def write_atomic(self, path: str, write: object) -> None:  # type: ignore[override]
        super().write_atomic(path, write)  # type: ignore[arg-type]
        if path.startswith("pins/"):
            self.delete(manifest_path(1))


def test_a_pin_on_a_generation_that_is_swept_at_that_moment_fails_and_vanishes(history: Storage) -> None:
    with pytest.raises(GenerationNotFound, match="expected generation 1"):
        pin(SweptMeanwhile(history.url), "run-7", 1)
    assert pins(history) == {}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"format_version": 2, "generation": 1}', b'{"generation": "1"}'])
def test_a_pin_that_cannot_be_read_stops_a_sweep(history: Storage, text: bytes) -> None:
    history.write_atomic("pins/run-7.json", text)
    before = files_in(history)
    with pytest.raises(CorruptFile, match=r"run-7.json: expected a pin of format version 1"):
        sweep(history)
    assert files_in(history) == before


# Sweep


def test_a_sweep_keeps_the_current_generation_whole_and_deletes_all_else(history: Storage) -> None:
    current = read_manifest(history)
    doomed = files_in(history) - named_by(current)
    bytes_before = inspect_memory(history).bytes
    report = sweep(history)
    assert report.generations == (1, 2)
    assert set(report.files) == {path for path in doomed if not path.startswith("manifests/")}
    assert files_in(history) == named_by(current)
    assert report.bytes == bytes_before - inspect_memory(history).bytes
    assert verify_memory(history).ok
    assert sweep(history).files == ()


@pytest.mark.parametrize("keep_last", [1, 2, 3, 10])
@pytest.mark.parametrize("pinned", [(), (1,), (2,), (1, 2), (3,)])
def test_kept_and_pinned_generations_survive_a_sweep_and_verify(
    history: Storage, keep_last: int, pinned: tuple[int, ...]
) -> None:
    for generation in pinned:
        pin(history, f"run-{generation}", generation)
    kept = sorted({*[1, 2, 3][-keep_last:], *pinned})
    manifests = [read_manifest(history, generation) for generation in kept]
    report = sweep(history, keep_last=keep_last, now_s=time.time() + LATER_S)
    assert generations(history) == kept
    assert files_in(history) == named_by(*manifests)
    assert report.generations == tuple(generation for generation in (1, 2, 3) if generation not in kept)
    assert verify_memory(history).ok


def test_a_sweep_of_ones_own_leaves_what_others_made(history: Storage) -> None:
    notes = {generation: read_manifest(history, generation).note for generation in (1, 2, 3)}
    assert sweep(history, only_note="of nobody").generations == ()
    assert sweep(history, only_note=notes[2]).generations == tuple(n for n in (1, 2) if notes[n] == notes[2])
    assert verify_memory(history).ok


def test_a_dry_run_reports_what_a_sweep_would_delete_and_deletes_nothing(history: Storage) -> None:
    before = files_in(history)
    planned = sweep(history, dry_run=True)
    assert files_in(history) == before
    assert sweep(history) == planned


def test_files_of_a_writer_at_work_are_not_swept_until_they_are_old(tmp_path: Path, write_memory: WriteMemory) -> None:
    storage = write_memory(Storage(tmp_path), range(5))
    storage.write_atomic("facts/unfinished-0.arrow", b"x")
    (tmp_path / "vectors" / "unfinished-0.arrow.0123.tmp").write_bytes(b"x")
    (tmp_path / "manifests" / "00000002.json.0123.tmp").write_bytes(b"x")
    storage.write_atomic("quarantine/rows.jsonl", b"{}")
    assert sweep(storage).files == ()
    assert sweep(storage, orphan_age_s=3600, now_s=time.time() + 3500).files == ()
    late = sweep(storage, orphan_age_s=3600, now_s=time.time() + 3700)
    assert set(late.files) == {
        "facts/unfinished-0.arrow",
        "vectors/unfinished-0.arrow.0123.tmp",
        "manifests/00000002.json.0123.tmp",
    }
    assert storage.exists("quarantine/rows.jsonl")
    assert verify_memory(storage).ok


def test_a_sweep_that_would_keep_nothing_is_wrong_usage(history: Storage) -> None:
    with pytest.raises(ConfigError, match="the current generation always stays"):
        sweep(history, keep_last=0)


def test_a_sweep_deletes_nothing_while_a_manifest_that_stays_cannot_be_read(history: Storage) -> None:
    history.write_atomic(manifest_path(3), b"{}")
    before = files_in(history)
    with pytest.raises(CorruptFile, match=r"00000003.json"):
        sweep(history)
    assert files_in(history) == before


def test_a_broken_superseded_generation_can_be_swept_away(history: Storage) -> None:
    history.write_atomic(manifest_path(1), b"{}")
    assert sweep(history).generations == (1, 2)
    assert verify_memory(history).ok
    sweep(history, now_s=time.time() + LATER_S)
    assert files_in(history) == named_by(read_manifest(history))


class BusyStorage(Storage):
    """Others act on the memory just before the sweep's n-th deletion."""

    def __init__(self, url: str, meanwhile: Iterator[Callable[[], object]]) -> None:
        super().__init__(url)
        self._meanwhile = meanwhile

    def delete(self, path: str) -> None:
        next(self._meanwhile, lambda: None)()
        super().delete(path)


def test_a_generation_committed_during_a_sweep_keeps_its_parts(history: Storage) -> None:
    def revert() -> None:  # a new generation with the vectors of the superseded second
        current, second = read_manifest(history), read_manifest(history, 2)
        change = ReplaceVectors(vectors=second.vectors, dim=4, dtype="float32", encoder=None, max_norm=second.max_norm)
        commit(history, apply_change(current, change, commit_id="back"), requires=ParentGeneration(3))

    sweep(BusyStorage(history.url, iter([revert])))
    assert read_manifest(history).commit_id == "back"
    assert verify_memory(history).ok


@pytest.mark.parametrize("looked_at", ["pins", "read_manifest", "_is_held"])
def test_a_sweep_that_another_one_overtakes_does_the_rest(
    history: Storage, monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    real = getattr(memory_store.upkeep, looked_at)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(memory_store.upkeep, looked_at, real)
        sweep(history)
        return real(*arguments)

    monkeypatch.setattr(memory_store.upkeep, looked_at, overtaken)
    sweep(history, keep_last=2)
    assert generations(history) == [3]
    assert inspect_memory(history).unnamed_files == 0
    assert verify_memory(history).ok


def test_a_generation_pinned_during_a_sweep_stays(history: Storage) -> None:
    sweep(BusyStorage(history.url, iter([lambda: pin(history, "late", 2)])))
    assert generations(history) == [2, 3]
    assert verify_memory(history).ok


def test_a_generation_that_is_pinned_or_opened_at_the_moment_it_is_deleted_comes_back(history: Storage) -> None:
    def opened() -> None:
        reader.hold([1])
        read_manifest(history, 1)  # as whoever opens it: the lease is there, and so is the generation

    reader = ReadLease(history, renew_s=0)
    for comes in (lambda: pin(history, "late", 1), opened):
        report = sweep(BusyStorage(history.url, iter([comes])))
        assert 1 not in report.generations
        assert generations(history)[0] == 1
        assert verify_memory(history).ok
        unpin(history, "late")
    reader.close()
    assert sweep(history).generations == (1,)


class StoppingStorage(Storage):
    """The process that sweeps dies before its n-th deletion."""

    def __init__(self, url: str, deletions: int) -> None:
        super().__init__(url)
        self._left = deletions

    def delete(self, path: str) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        super().delete(path)


def test_a_sweep_that_dies_at_any_deletion_leaves_whole_generations(memory_url: str, write_memory: WriteMemory) -> None:
    for deletions in range(20):
        storage = Storage(f"{memory_url}-{deletions}")
        write_memory(storage, range(5))
        write_memory(storage, range(5, 9))
        embed_again(storage)
        try:
            sweep(StoppingStorage(storage.url, deletions))
        except KeyboardInterrupt:
            pass
        else:
            assert deletions > 2
            break
        assert verify_memory(storage).ok
        sweep(storage, now_s=time.time() + LATER_S)
        assert files_in(storage) == named_by(read_manifest(storage))
    else:
        pytest.fail("the sweep never ran to its end")
