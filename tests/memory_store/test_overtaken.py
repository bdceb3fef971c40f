"""Commits while other writers go on and sweep: what has landed is never written again, and never taken apart."""

from collections.abc import Callable

import pytest

from memory_store.disk import Entry
from memory_store.errors import CommitUnknown, GenerationConflict
from memory_store.manifest import (
    AppendParts,
    Manifest,
    ParentGeneration,
    Part,
    RestoreContent,
    apply_change,
    commit,
    generations,
    read_manifest,
)
from memory_store.storage import Storage
from memory_store.upkeep import sweep


def append(name: str) -> AppendParts:
    """One part of two facts, of which only the size is ever looked at."""
    facts, vectors = (
        Part(path=f"{folder}/{name}.arrow", rows=2, bytes=7, checksum="xxh3-128:" + "0" * 32)
        for folder in ("facts", "vectors")
    )
    return AppendParts(facts=(facts,), vectors=(vectors,), dim=4, dtype="float32", max_norm=1.0)


def with_parts(storage: Storage, manifest: Manifest) -> Manifest:
    for written in manifest.facts + manifest.vectors:
        storage.write_atomic(written.path, b"7 bytes")
    return manifest


def begun(storage: Storage) -> tuple[Manifest, Manifest]:
    """Generation 1 of a new memory, and the one that we are about to commit."""
    first = with_parts(storage, apply_change(None, append("a"), commit_id="first"))
    stored = commit(storage, first, requires=ParentGeneration(None))
    return stored, with_parts(storage, apply_change(stored, append("b"), commit_id="ours"))


class OvertakenStorage(Storage):
    """Storage on which other writers go on just after a creation has landed, before its writer looks again."""

    meanwhile: Callable[[Storage], None] | None = None

    def create_exclusive(self, path: str, data: bytes) -> None:
        super().create_exclusive(path, data)
        if self.meanwhile is not None:
            others, self.meanwhile = self.meanwhile, None
            others(self)


def commits_on(storage: Storage, names: list[str]) -> None:
    """Another writer commits one part after the other, and sweeps what they supersede."""
    for name in names:
        now = read_manifest(storage)
        commit(
            storage,
            with_parts(storage, apply_change(now, append(name), commit_id=name)),
            requires=ParentGeneration(now.generation),
        )
    sweep(storage)


@pytest.mark.parametrize("names", [["c"], ["c", "d"], ["c", "d", "e"]])
def test_a_commit_that_others_build_on_and_sweep_at_once_has_landed(memory_url: str, names: list[str]) -> None:
    storage = OvertakenStorage(memory_url)
    _, ours = begun(storage)
    storage.meanwhile = lambda here: commits_on(here, names)
    assert commit(storage, ours, requires=ParentGeneration(1)).generation == 2
    assert generations(storage) == [2 + len(names)]
    assert set(ours.facts) <= set(read_manifest(storage).facts)


def test_a_commit_that_others_sweep_and_leave_nothing_of_is_unknown(memory_url: str) -> None:
    storage = OvertakenStorage(memory_url)
    stored, ours = begun(storage)

    def others(here: Storage) -> None:
        now = read_manifest(here)
        commit(here, apply_change(now, RestoreContent(manifest=stored), commit_id="back"), requires=ParentGeneration(2))
        commits_on(here, ["c"])

    storage.meanwhile = others
    with pytest.raises(CommitUnknown, match=r"generation 2 .* superseded and swept, or never was"):
        commit(storage, ours, requires=ParentGeneration(1))
    assert generations(storage) == [4]


def test_a_commit_is_refused_whose_parent_was_superseded_while_its_parts_were_looked_for(memory_url: str) -> None:
    class Listing(Storage):
        meanwhile: Callable[[Storage], None] | None = None

        def entries(self, prefix: str) -> tuple[Entry, ...]:
            if prefix == "facts" and self.meanwhile is not None:
                others, self.meanwhile = self.meanwhile, None
                others(self)
            return super().entries(prefix)

    storage = Listing(memory_url)
    _, ours = begun(storage)
    storage.meanwhile = lambda here: commits_on(here, ["c", "d", "e"])
    with pytest.raises(GenerationConflict, match=r"expected generation 1 .* found generation 4"):
        commit(storage, ours, requires=ParentGeneration(1))
    assert generations(storage) == [4]
