"""Generations can be compared, gone back to, tagged and kept by age; a sweep never takes what somebody may need."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

import memory_store.history
from deploy import entry
from deploy.cli import hmn
from memory_store import open_memory
from memory_store.compaction import compact
from memory_store.errors import ConfigError, GenerationNotFound
from memory_store.history import diff_generations, rollback
from memory_store.leases import LEASE_S, SKEW_S, leases
from memory_store.manifest import (
    ParentGeneration,
    ReplaceVectors,
    apply_change,
    commit,
    generations,
    read_manifest,
)
from memory_store.parts import fact_ids_of, open_part, vectors_table, write_part
from memory_store.storage import Storage
from memory_store.upkeep import pin, pins, sweep, verify_memory
from memory_store.writes import delete_facts, locate_on_disk, upsert_facts

WriteMemory = Callable[..., Storage]


def upsert(storage: Storage, ids: list[int], value: float, subject: str = "s") -> None:
    facts = pa.table({"fact_id": pa.array(ids, pa.int64()), "subject": [subject] * len(ids)})
    vectors = np.full((len(ids), 4), value, np.float32)
    upsert_facts(storage, facts, vectors, locate=partial(locate_on_disk, storage))


def embed_again(storage: Storage) -> None:
    now = read_manifest(storage)
    parts = []
    for number, part in enumerate(now.vectors):
        ids_N = fact_ids_of(open_part(storage, part))
        path = f"vectors/again-{number}.arrow"
        parts.append(write_part(storage, path, vectors_table(ids_N, np.ones((len(ids_N), 4), np.float32))))
    change = ReplaceVectors(vectors=tuple(parts), dim=4, dtype="float32", encoder="again", max_norm=2.0)
    commit(storage, apply_change(now, change, commit_id="again"), requires=ParentGeneration(now.generation))


@pytest.fixture
def history(storage: Storage, write_memory: WriteMemory) -> Storage:
    """1: facts 0 to 8. 2: 1 and 20 upserted. 3: 0 deleted, 4: the same compacted, 5: other words for 1."""
    write_memory(storage, range(9))
    upsert(storage, [1, 20], 3.0)
    delete_facts(storage, [0], locate=partial(locate_on_disk, storage))
    compact(storage)
    upsert(storage, [1], 3.0, subject="other words")
    return storage


@pytest.mark.parametrize(
    ("before", "after", "added", "removed", "changed"),
    [
        (1, 1, [], [], []),
        (1, 2, [20], [], [1]),
        (2, 1, [], [20], [1]),
        (2, 3, [], [0], []),
        (3, 4, [], [], []),
        (4, 5, [], [], [1]),
        (1, 5, [20], [0], [1]),
    ],
)
def test_a_diff_names_what_was_added_removed_and_changed(
    history: Storage, before: int, after: int, added: list[int], removed: list[int], changed: list[int]
) -> None:
    found = diff_generations(history, before, after)
    assert found.added.tolist() == added
    assert found.removed.tolist() == removed
    assert found.changed.tolist() == changed
    assert not found.embedded_anew
    assert found.facts_after - found.facts_before == len(added) - len(removed)


def test_a_diff_of_new_vectors_says_so_and_compares_the_facts_only(history: Storage) -> None:
    embed_again(history)
    found = diff_generations(history, 4, 6)
    assert (found.embedded_anew, found.encoders) == (True, (None, "again"))
    assert (found.added.tolist(), found.removed.tolist(), found.changed.tolist()) == ([], [], [1])


def test_a_rollback_is_a_new_generation_with_the_old_content_and_can_be_rolled_back(history: Storage) -> None:
    query = np.ones((1, 4), np.float32)
    with open_memory(history.url, generation=2, shards=2) as memory:
        before = memory.search(query, 12)
    new = rollback(history, 2)
    assert (new.generation, new.operation, new.note) == (6, "rollback", "rollback to generation 2")
    assert verify_memory(history).problems == ()
    sweep(history, now_s=1e12)
    with open_memory(history.url, shards=2) as memory:
        after = memory.search(query, 12)
        np.testing.assert_array_equal(after.fact_ids_BK, before.fact_ids_BK)
        np.testing.assert_array_equal(after.scores_BK, before.scores_BK)
        memory.delete([20])
        assert memory.generation == 7
    assert rollback(history, 6).generation == 8
    assert rollback(history, 8).generation == 8, "there is nothing to roll back"
    assert pins(history) == {}
    with pytest.raises(GenerationNotFound, match="expected generation 2"):
        rollback(history, 2)


def test_what_a_rollback_holds_on_to_ends_with_its_process(history: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at right before the commit, where kill -9 would leave it as it is."""
    real = memory_store.history.commit_change

    def looked_at(*arguments: object, **options: object) -> object:
        assert pins(history) == {}, "a pin would stay for ever"
        assert list(sweep(history, keep_last=4).read) == [1]
        died_s = time.time() + LEASE_S + SKEW_S + 60
        assert sweep(history, keep_last=4, now_s=died_s, dry_run=True).generations == (1,)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_store.history, "commit_change", looked_at)
    assert rollback(history, 1).generation == 6
    assert leases(history) == ()
    with pytest.raises(GenerationNotFound, match="expected generation 9"):
        rollback(history, 9)
    assert leases(history) == ()


def test_an_open_memory_follows_a_rollback_and_keeps_its_index_where_the_main_parts_are_the_same(
    history: Storage,
) -> None:
    with open_memory(history.url, shards=2) as memory:
        rollback(history, 2)
        assert memory.refresh() == 6
        assert set(memory.search(np.zeros((1, 4)), 12).fact_ids_BK[0]) == {*range(9), 20, -1}
        rollback(history, 5)
        memory.refresh()
        assert set(memory.search(np.zeros((1, 4)), 12).fact_ids_BK[0]) == {*range(1, 9), 20, -1}
        assert memory.fetch([1], ["subject"])["subject"].to_pylist() == ["other words"]


def test_rows_that_a_rollback_brings_back_to_life_have_their_ids_again(
    storage: Storage, write_memory: WriteMemory
) -> None:
    write_memory(storage, range(4))
    upsert(storage, [2], 5.0)
    with open_memory(storage.url) as memory:
        embedded = memory.reindex(lambda facts: np.ones((facts.num_rows, 4), np.float32))
    upsert(storage, [2], 7.0)  # now two rows of fact 2 are dead among the main parts, and the third is fresh
    with open_memory(storage.url) as memory:
        assert memory.search(np.ones((1, 4), np.float32), 5).fact_ids_BK.tolist() == [[2, 0, 1, 3, -1]]
        rollback(storage, embedded)
        memory.refresh()
        assert memory.search(np.ones((1, 4), np.float32), 5).fact_ids_BK.tolist() == [[0, 1, 2, 3, -1]]
        assert memory.fetch([2])["fact_id"].to_pylist() == [2]


def test_a_sweep_keeps_what_was_superseded_lately_what_is_newest_and_what_is_tagged(history: Storage) -> None:
    made_s = datetime.fromisoformat(read_manifest(history, 5).created_at).timestamp()
    pin(history, "tag=first", 1)
    assert sweep(history, keep_s=3600, now_s=made_s + 1800).generations == ()
    report = sweep(history, keep_last=3, keep_s=60, now_s=made_s + 7200)
    assert (report.generations, report.pinned) == ((2,), {1: ("tag=first",)})
    assert sweep(history, keep_s=60, now_s=made_s - 7200).generations == (), "a clock that went back deletes nothing"
    assert sweep(history, keep_s=60, now_s=made_s + 7200).generations == (3, 4)
    assert generations(history) == [1, 5]
    assert verify_memory(history).problems == ()
    with pytest.raises(ConfigError, match="keep_s of at least 0"):
        sweep(history, keep_s=-1)


def test_the_commands_of_the_history_work_on_a_memory(tmp_path: object, write_memory: WriteMemory, capsys) -> None:
    url = str(tmp_path)
    storage = write_memory(Storage(url), range(9))

    def run(*args: str) -> dict:
        assert entry.run(hmn, [*args, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert run("delete", "--memory", url, "--fact", "3", "--note", "wrong")["generation"] == 2
    assert run("diff", url, "1", "2")["removed"] == {"count": 1, "fact_ids": [3]}
    assert run("tag", url, "good", "--generation", "1")["generation"] == 1
    assert run("rollback", url, "1") == {"memory": url, "generation": 3, "committed": True, "facts": 9}
    assert run("compact", url)["committed"] is False
    swept = run("sweep", url, "--keep-days", "0", "--dry-run")
    assert (swept["generations"], swept["pinned"]) == ([2], {"1": ["tag=good"]})
    assert entry.run(hmn, ["sweep", url, "--keep-days", "0", "--dry-run"]) == 0
    assert "generation 1 stays: pinned by tag=good\n" in capsys.readouterr().out
    assert run("sweep", url, "--keep-days", "0")["generations"] == [2]
    assert run("tag", url, "good", "--remove")["removed"] is True
    assert run("sweep", url)["generations"] == [], "superseded a moment ago"
    assert [report["manifest"]["operation"] for report in run("inspect", url)["generations"]] == ["append", "rollback"]
    assert generations(storage) == [1, 3]
    for args in (["inspect", url, "--parts"], ["diff", url, "1", "3"], ["rollback", url, "1"], ["compact", url]):
        assert entry.run(hmn, args) == 0
    shown = capsys.readouterr().out
    assert "rollback to generation 1" in shown
    assert "Nothing to do" in shown
