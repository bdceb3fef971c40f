"""An open memory never goes over to another encoder's vectors by itself: whoever searches makes queries for one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import memory_store.memory
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import GenerationConflict
from memory_store.manifest import Manifest, read_manifest
from memory_store.reindex_steps import MemoryReindex
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory

WriteMemory = Callable[..., Storage]


def encode(facts: pa.Table) -> np.ndarray:
    ids_N = facts["fact_id"].to_numpy()
    return np.stack([ids_N, 100 - ids_N], axis=1).astype(np.float32)


def embed_elsewhere(storage: Storage, fingerprint: str = "other") -> int:
    """What another process does."""
    with open_memory(storage.url) as other:
        return other.reindex(encode, fingerprint=fingerprint)


@pytest.fixture
def nine(storage: Storage, write_memory: WriteMemory) -> Storage:
    """Facts 0 to 8, embedded by "first". Generation 2."""
    write_memory(storage, range(9))
    with open_memory(storage.url) as memory:
        memory.reindex(lambda facts: np.sin(np.outer(facts["fact_id"].to_numpy(), [1, 2, 3, 4])), fingerprint="first")
    return storage


def found(memory: Memory) -> list[int]:
    return memory.search(np.ones((1, 4), np.float32), 9).fact_ids_BK[0].tolist()


def test_a_delete_is_refused_once_another_encoder_embedded_the_memory_and_works_after_a_refresh(nine: Storage) -> None:
    with open_memory(nine.url) as memory:
        before = found(memory)
        assert embed_elsewhere(nine) == 3
        with pytest.raises(
            GenerationConflict, match=r"expected vectors of first, .* those of other: .* call refresh\(\)"
        ):
            memory.delete([1])
        assert (memory.newest_generation(), memory.generation, found(memory)) == (3, 2, before)
        assert memory.refresh() == 3
        assert memory.delete([1]) == memory.generation == 4
    assert inspect_memory(nine).unnamed_files == 0


def test_a_delete_is_refused_if_the_other_encoder_is_faster_than_its_commit(
    nine: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_memory(nine.url) as memory:
        locate = memory._locate

        def overtaken(manifest: Manifest, ids_C: np.ndarray) -> Any:
            monkeypatch.setattr(memory, "_locate", locate)
            places = locate(manifest, ids_C)
            embed_elsewhere(nine)
            return places

        monkeypatch.setattr(memory, "_locate", overtaken)
        with pytest.raises(GenerationConflict, match="nothing is deleted"):
            memory.delete([1])
        assert (memory.newest_generation(), memory.generation) == (3, 2)
    assert inspect_memory(nine).unnamed_files == 0
    assert verify_memory(nine).problems == ()


def test_a_compaction_merges_what_another_encoder_embedded_and_serves_on_what_it_served(nine: Storage) -> None:
    with open_memory(nine.url) as memory:
        embed_elsewhere(nine)
        with open_memory(nine.url) as other:
            other.delete([0, 1, 2])
        before = found(memory)
        assert memory.compact() == memory.generation == 2
        assert found(memory) == before
        assert (read_manifest(nine).operation, read_manifest(nine).generation) == ("compact", 5)
        assert memory.compact() == 2, "there is nothing to merge, and nothing to go over to"
        assert memory.refresh() == 5
        assert memory.manifest.encoder == "other"


def test_a_compaction_in_the_background_does_not_go_over_either(
    nine: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def overtaken(storage: Storage, **options: Any) -> Any:
        embed_elsewhere(nine)
        with open_memory(nine.url) as other:
            other.delete([3])
        return compact(storage, **options)

    monkeypatch.setattr(memory_store.memory, "compact", overtaken)
    policy = CompactionPolicy(most_dead_share=0.0, least_rows=1)
    with open_memory(nine.url, compaction=policy) as memory:
        assert memory.delete([8]) == 3
        assert memory._background._thread is not None
        memory._background.join()
        assert (memory.generation, memory.manifest.encoder) == (3, "first")
    assert read_manifest(nine).operation == "compact"
    assert "embedded by other: generation 3, by first, goes on serving until refresh()" in caplog.text


def test_what_was_deleted_is_not_shown_by_the_vectors_of_an_encoder_that_came_after_it(
    nine: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation that was written is swept before it is served; the newest one is another encoder's."""
    real = memory_store.memory.read_manifest

    def overtaken(*arguments: Any) -> Manifest:
        monkeypatch.setattr(memory_store.memory, "read_manifest", real)
        embed_elsewhere(nine)
        sweep(nine)
        return real(*arguments)

    with open_memory(nine.url) as memory:
        monkeypatch.setattr(memory_store.memory, "read_manifest", overtaken)
        assert memory.delete([1]) == 3
        assert (memory.generation, memory.manifest.encoder) == (2, "first")
        assert memory.refresh() == 4
        assert memory.holds([0, 1]).tolist() == [True, False]


def test_vectors_that_no_encoder_made_are_no_conflict(
    storage: Storage, write_memory: WriteMemory, facts_of: Any, vectors_for: Any
) -> None:
    write_memory(storage, range(9))
    with open_memory(storage.url) as memory:
        with MemoryWriter(storage, dim=4) as elsewhere:
            elsewhere.append(facts_of([20]), vectors_for([20]))
        assert memory.delete([1, 20]) == memory.generation == 3
        with open_memory(storage.url) as other:
            other.upsert(facts_of([21]), vectors_for([21]))
        assert memory.compact() == memory.generation == 5


def test_facts_are_deleted_while_this_memory_itself_goes_over_to_another_encoder(
    nine: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryReindex._read_by_others

    def write_after_the_commit(steps: MemoryReindex) -> list[int]:
        assert steps.memory.delete([1]) == 4, "writes never stop"
        return real(steps)

    monkeypatch.setattr(MemoryReindex, "_read_by_others", write_after_the_commit)
    with open_memory(nine.url) as memory:
        assert memory.reindex(encode, fingerprint="other") == 4
        assert memory.holds([0, 1]).tolist() == [True, False]
