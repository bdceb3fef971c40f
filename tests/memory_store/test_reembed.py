"""New vectors are looked at before they are committed, and whoever makes them is noted, one at a time."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_store import open_memory
from memory_store.compaction import CompactionPolicy, compact
from memory_store.errors import (
    CommitUnknown,
    ConfigError,
    CorruptFile,
    GenerationNotFound,
    InvalidVectors,
    ReindexFailed,
    ReindexRunning,
    StorageFailed,
)
from memory_store.manifest import current_generation, propose, read_manifest, withdraw
from memory_store.reembed import Reembedding, reembed
from memory_store.reembed_claim import claim, refuse_beside_another
from memory_store.shard import Shard, ShardConfig
from memory_store.storage import Storage
from memory_store.trial import try_index
from memory_store.upkeep import verify_memory
from memory_store.writes import locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]
LOCK = "staging/reindex.json"


def encode(facts: pa.Table) -> np.ndarray:
    """Two dimensions, as no fixture has them."""
    ids_N = facts["fact_id"].to_numpy()
    return np.stack([ids_N % 7, ids_N % 5], axis=1).astype(np.float32)


@pytest.fixture
def thirty(storage: Storage, write_memory: WriteMemory) -> Storage:
    return write_memory(storage, range(30), part_rows=10)


def noted(storage: Storage) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(storage.read_bytes(LOCK))
    return fields


@pytest.mark.parametrize("change", [{}, {"shards": 3}, {"index": "ivf?nlist=2"}])
@pytest.mark.parametrize("fingerprint", ["mod", None])
def test_vectors_that_an_index_finds_too_little_of_are_never_committed(
    thirty: Storage, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], fingerprint: str | None
) -> None:
    parts = thirty.list("vectors")
    with open_memory(thirty.url, shards=2) as memory:
        with monkeypatch.context() as poor:
            poor.setattr("memory_store.engine.recall_of", lambda *_: 0.25)
            with pytest.raises(ReindexFailed, match=r"while verifying: .* found 0\.250"):
                memory.reindex(encode, fingerprint=fingerprint, least_recall=0.9, **change)
        assert current_generation(thirty) == memory.generation == 1
        assert all(line.generations_resident == (1,) for line in memory.stats().shards), "what was tried is let go"
        assert fingerprint or thirty.list("vectors") == parts, "nobody could go on with those of no name"
        assert memory.upsert(pa.table({"fact_id": [50]}), np.ones((1, 4), np.float32)) == 2
        assert memory.delete([50]) == 3
        assert memory.search(np.ones((1, 4), np.float32), 3).generation == 3
        assert memory.reindex(encode, fingerprint=fingerprint, least_recall=0.9, **change) == 4
        assert memory.dim == 2
    assert verify_memory(thirty).problems == ()
    assert thirty.list("staging") == []


def test_a_trial_on_new_vectors_comes_before_their_commit(thirty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.engine.recall_of", lambda *_: 0.25)
    with Reembedding(thirty, encode, fingerprint="mod") as embedding:
        proposed = embedding.embed()
        assert proposed is not None
        with pytest.raises(ReindexFailed):
            try_index(thirty.url, index="exact", shards=2, least_recall=0.9, generation=proposed.generation)
        trial = try_index(thirty.url, index="exact", shards=2, generation=proposed.generation)
        assert trial.recall == 0.25
    assert current_generation(thirty) == 1


def test_a_proposal_is_read_by_its_number_until_it_is_withdrawn(thirty: Storage) -> None:
    now = read_manifest(thirty)
    proposed = propose(thirty, now)
    assert proposed.generation < 0
    assert read_manifest(thirty, proposed.generation) == proposed
    assert read_manifest(thirty) == now, "nobody else sees it"
    other = propose(thirty, now)
    assert other.generation != proposed.generation
    withdraw(thirty, proposed.generation)
    with pytest.raises(GenerationNotFound):
        read_manifest(thirty, proposed.generation)
    with pytest.raises(GenerationNotFound), open_memory(thirty.url, generation=proposed.generation):
        pass
    withdraw(thirty)
    assert thirty.list("staging") == []


def test_a_shard_lets_a_proposal_go_before_the_generation_that_answers(thirty: Storage) -> None:
    shard = Shard(ShardConfig(url=thirty.url, shard=0, num_shards=1))
    shard.load(1)
    with Reembedding(thirty, encode, fingerprint="mod") as embedding:
        proposed = embedding.embed()
        assert proposed is not None
        shard.search(proposed.generation, np.ones((1, 2), np.float32), 3)  # used last
        assert shard.describe()["generations_resident"] == [proposed.generation, 1]
        new = embedding.commit()
    shard.load(new.generation)
    assert shard.describe()["generations_resident"] == [1, 2], "else searches of 1 would wait until it is loaded again"


def test_what_is_written_between_the_proposal_and_the_commit_is_carried_over(thirty: Storage) -> None:
    with Reembedding(thirty, encode, fingerprint="mod") as embedding:
        assert embedding.embed() is not None
        upsert_facts(
            thirty, pa.table({"fact_id": [77]}), np.ones((1, 4), np.float32), locate=partial(locate_on_disk, thirty)
        )
        assert embedding.commit().fact_count == 31
    with open_memory(thirty.url) as memory:
        np.testing.assert_array_equal(memory.vectors([77]), [[0, 2]])


def test_an_interrupted_one_frees_the_memory_and_is_gone_on_with(thirty: Storage) -> None:
    embedded: list[int] = []

    def interrupted(facts: pa.Table) -> np.ndarray:
        if embedded:
            raise KeyboardInterrupt
        embedded.append(len(facts))
        return encode(facts)

    def noting(facts: pa.Table) -> np.ndarray:
        embedded.append(len(facts))
        return encode(facts)

    with open_memory(thirty.url) as memory:
        with pytest.raises(KeyboardInterrupt):
            memory.reindex(interrupted, fingerprint="mod")
        refuse_beside_another(thirty)
        assert memory.reindex(noting, fingerprint="mod") == 2
    assert embedded == [10, 10, 10], "the first part is there"


def test_a_commit_that_may_have_happened_keeps_its_parts(thirty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise CommitUnknown("cannot tell")

    parts = thirty.list("vectors")
    monkeypatch.setattr("memory_store.reembed.commit_change", unknown)
    with pytest.raises(CommitUnknown):
        reembed(thirty, encode)
    assert len(thirty.list("vectors")) == 2 * len(parts)


def test_another_process_that_re_embeds_is_named_also_by_an_open_memory(thirty: Storage) -> None:
    theirs = claim(thirty, "theirs", "float32")
    with open_memory(thirty.url) as memory:
        with pytest.raises(ReindexRunning, match=rf"embedded with theirs by process {os.getpid()} on"):
            memory.reindex(encode, fingerprint="ours")
        with pytest.raises(ReindexRunning):
            refuse_beside_another(thirty)
        assert noted(thirty)["reindex_id"] == theirs.reindex_id, "it goes on"
        # The same number, but that process began at another time.
        thirty.write_atomic(LOCK, json.dumps(noted(thirty) | {"started": 1}).encode())
        assert memory.reindex(encode, fingerprint="ours") == 2


@pytest.mark.parametrize("found", [b"", b"[]", b'{"pid": 3}'])
def test_a_note_that_cannot_be_read_is_named(thirty: Storage, found: bytes) -> None:
    thirty.write_atomic(LOCK, found)
    with pytest.raises(CorruptFile, match=r"staging/reindex\.json: expected the note of a re-index"):
        reembed(thirty, encode, fingerprint="mod")


def test_a_receipt_that_cannot_be_read_is_made_anew(thirty: Storage) -> None:
    def fails_at_the_second_part(facts: pa.Table) -> np.ndarray:
        if 10 in facts["fact_id"].to_pylist():
            raise StorageFailed("gone")
        return encode(facts)

    with pytest.raises(StorageFailed):
        reembed(thirty, fails_at_the_second_part, fingerprint="mod")
    (receipt,) = (path for path in thirty.list("staging") if path != LOCK)
    thirty.write_atomic(receipt, b"")
    assert reembed(thirty, encode, fingerprint="mod").generation == 2
    assert verify_memory(thirty).problems == ()
    assert thirty.list("staging") == []


def test_another_encoder_forgets_what_one_that_failed_had_noted(thirty: Storage) -> None:
    def fails(facts: pa.Table) -> np.ndarray:
        if 20 in facts["fact_id"].to_pylist():
            raise StorageFailed("gone")
        return encode(facts)

    with pytest.raises(StorageFailed):
        reembed(thirty, fails, fingerprint="mod")
    assert len(thirty.list("staging")) == 3
    reembed(thirty, encode, fingerprint="another")
    assert thirty.list("staging") == []


def test_an_encoder_that_embedded_the_memory_before_embeds_what_changed_since(thirty: Storage) -> None:
    def double(facts: pa.Table) -> np.ndarray:
        return 2 * encode(facts)

    embedded: list[int] = []

    def noting(facts: pa.Table) -> np.ndarray:
        embedded.extend(facts["fact_id"].to_pylist())
        return encode(facts)

    with open_memory(thirty.url) as memory:
        memory.reindex(encode, fingerprint="mod")
        first = memory.vectors(range(30))
        memory.reindex(double, fingerprint="double")
        memory.upsert(pa.table({"fact_id": [5, 77], "subject": ["other", "new"]}), np.ones((2, 2), np.float32))
        memory.delete([8])
        memory.compact()
        memory.reindex(noting, fingerprint="mod")
        assert embedded == [5, 77]
        left = [n for n in range(30) if n != 8]
        np.testing.assert_array_equal(memory.vectors(left), first[left])
        np.testing.assert_array_equal(memory.vectors([77]), [[0, 2]])
    assert verify_memory(thirty).problems == ()


def test_two_parts_of_the_same_content_do_not_share_a_part_of_vectors(thirty: Storage) -> None:
    """As where what was upserted is deleted, and upserted again: the first part is there still, and dead."""
    with open_memory(thirty.url, compaction=None) as memory:
        fresh = pa.table({"fact_id": [77, 78]})
        memory.upsert(fresh, np.ones((2, 4), np.float32))
        memory.reindex(encode, fingerprint="mod")
        memory.reindex(encode, fingerprint="other")
        memory.delete([77, 78])
        memory.upsert(fresh, encode(fresh))
        assert len({part.checksum for part in memory.manifest.facts[-2:]}) == 1
        memory.reindex(encode, fingerprint="mod")
        assert len(memory) == 32
        np.testing.assert_array_equal(memory.vectors([77, 78]), encode(fresh))
    assert verify_memory(thirty).problems == ()


def test_what_was_compacted_between_the_proposal_and_the_commit_is_not_embedded_again(thirty: Storage) -> None:
    embedded: list[int] = []

    def noting(facts: pa.Table) -> np.ndarray:
        embedded.extend(facts["fact_id"].to_pylist())
        return encode(facts)

    upsert_facts(
        thirty,
        pa.table({"fact_id": [3, 60]}),
        np.ones((2, 4), np.float32),
        locate=partial(locate_on_disk, thirty),
    )
    with Reembedding(thirty, noting) as embedding:
        embedding.embed()
        made = len(embedded)
        compact(thirty, policy=CompactionPolicy(most_dead_share=0.0))
        embedding.commit()
    assert len(embedded) == made == 32, "a row that is overwritten is embedded too, as it lies in its part"
    assert verify_memory(thirty).problems == ()


class Fails:
    """An encoder that a process of the cluster can be sent, and that fails there."""

    def __call__(self, facts: pa.Table) -> np.ndarray:
        raise InvalidVectors("no vectors today")


@pytest.mark.usefixtures("ray_cluster")
def test_processes_of_the_cluster_embed_part_by_part(tmp_path: Path, write_memory: WriteMemory) -> None:
    thirty = write_memory(Storage(str(tmp_path / "memory")), range(30), part_rows=10)
    with open_memory(thirty.url) as memory:
        with pytest.raises(ReindexFailed, match="while building: no vectors today"):
            memory.reindex(Fails(), fingerprint="mod", backend="ray", workers=2)
        assert memory.generation == 1
        made_in = thirty.url + "/made-in"

        def noting(facts: pa.Table) -> np.ndarray:
            with Path(made_in).open("a") as file:
                file.write(f"{os.getpid()}\n")
            return encode(facts)

        assert memory.reindex(noting, fingerprint="mod", backend="ray", workers=2) == 2
        pids = Path(made_in).read_text().split()
        assert len(pids) == 3
        assert str(os.getpid()) not in pids
        np.testing.assert_array_equal(memory.vectors(range(30)), encode(pa.table({"fact_id": range(30)})))
        with pytest.raises(ConfigError, match="backend 'dask' is unknown"):
            memory.reindex(encode, backend="dask")
    assert verify_memory(thirty).problems == ()
