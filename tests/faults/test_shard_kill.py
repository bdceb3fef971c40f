"""kill -9 of shard actors: the memory waits, answers in full, or says what it left out."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_store import Memory, MemoryWriter, open_memory, stop_memory
from memory_store.actors import start_shards
from memory_store.calls import CallFailed
from memory_store.errors import ShardUnavailable, VersionMismatch
from memory_store.policy import Decision, Failure, Partial, ShardPolicy, ShardReport
from memory_store.shard import ShardConfig

DIM, ROWS = 8, 2000


@pytest.fixture
def url(tmp_path: Path, rng: np.random.Generator) -> str:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        writer.append(
            pa.table({"fact_id": np.arange(ROWS), "subject": [str(i) for i in range(ROWS)]}),
            rng.standard_normal((ROWS, DIM)).astype(np.float32),
        )
    return str(tmp_path / "kb")


class NoRetries(ShardPolicy):
    """Whatever fails fails the call: with replicas no call may need more."""

    def decide(self, report: ShardReport, partial: Partial) -> Decision:
        return Decision.FAIL


def kill(memory: Memory, shard: int) -> int:
    """kill -9 the process of one shard; returns its pid."""
    pid = memory.stats().shards[shard].pid
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_shard_comes_back_and_no_answer_is_wrong_or_lost(url: str, rng: np.random.Generator) -> None:
    queries_BD = rng.standard_normal((5, DIM))
    with open_memory(url) as undisturbed:
        expected = undisturbed.search(queries_BD, 10)
    with open_memory(url, shards=2, backend="ray") as memory:
        for shard in (0, 1, 0):
            pid = kill(memory, shard)
            answer = memory.search(queries_BD, 10)
            np.testing.assert_array_equal(answer.fact_ids_BK, expected.fact_ids_BK)
            np.testing.assert_array_equal(answer.scores_BK, expected.scores_BK)
            assert answer.coverage == 1.0
            assert memory.fetch([0, ROWS - 1])["subject"].to_pylist() == ["0", str(ROWS - 1)]
            assert memory.stats().shards[shard].pid != pid
        assert [line.restarts for line in memory.stats().shards] == [2, 1]


@pytest.mark.usefixtures("ray_cluster")
def test_a_handle_hears_that_its_process_died_without_a_call_that_fails(url: str) -> None:
    (handle,) = start_shards([ShardConfig(url=url, shard=0, num_shards=1)], cpus=0, shared=None)
    try:
        pid = handle.start("describe").result(60)["pid"]
        os.kill(pid, signal.SIGKILL)
        heard: CallFailed | None = None
        while heard is None:
            try:
                handle.start("describe")
            except CallFailed as failed:
                heard = failed
        assert heard.failure is Failure.RESTARTING
        assert "started again" in str(heard)
        answer: dict[str, Any] | None = None
        while answer is None:
            try:
                answer = handle.start("describe").result(60)
            except CallFailed:
                time.sleep(0.01)
        assert answer["pid"] != pid
    finally:
        handle.stop()


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_that_hangs_fails_a_write_at_the_deadline_and_writes_go_on_once_it_answers(url: str) -> None:
    with open_memory(url, shards=1, backend="ray", deadline_s=2.0) as memory:
        pid = memory.stats().shards[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            started_s = time.monotonic()
            with pytest.raises(ShardUnavailable, match="did not answer `locate`"):
                memory.delete([1])
            with pytest.raises(ShardUnavailable, match="did not answer `locate`"):
                memory.upsert(pa.table({"fact_id": [1]}), np.ones((1, DIM)))
            assert time.monotonic() - started_s < 60
        finally:
            os.kill(pid, signal.SIGCONT)
        assert memory.newest_generation() == 1
    with open_memory(url, shards=1, backend="ray") as memory:
        assert memory.delete([1]) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_shard_may_be_left_out_and_coverage_says_so(url: str) -> None:
    with open_memory(url, shards=2, backend="ray", partial="allow") as memory:
        kill(memory, 1)
        answer = memory.search(np.ones((1, DIM)), ROWS)
        while answer.coverage == 1.0:  # the search was faster than the signal
            answer = memory.search(np.ones((1, DIM)), ROWS)
        assert answer.coverage == 0.5
        assert (answer.fact_ids_BK >= 0).sum() == ROWS / 2
        deadline = time.monotonic() + 60
        while memory.search(np.ones((1, DIM)), 1).coverage < 1.0:
            assert time.monotonic() < deadline, "the shard did not come back"
            time.sleep(0.05)


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_whose_parts_are_gone_says_so_instead_of_answering(url: str) -> None:
    with open_memory(url, shards=2, backend="ray") as memory:
        for part in (Path(url) / "vectors").iterdir():
            part.write_bytes(part.read_bytes()[:-1])
        kill(memory, 0)
        with pytest.raises(Exception, match=r"truncated|expected .* bytes"):
            memory.search(np.ones((1, DIM)))


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_stopped_for_good_is_replaced(url: str) -> None:
    import ray

    with open_memory(url, shards=2, backend="ray") as memory:
        ray.kill(memory._engines.now.coordinator.shards[1]._actor, no_restart=True)
        assert (memory.search(np.ones((1, DIM)), ROWS).fact_ids_BK >= 0).sum() == ROWS


@pytest.mark.usefixtures("ray_cluster")
def test_with_replicas_searches_go_on_while_one_copy_after_the_other_is_killed(
    url: str, rng: np.random.Generator
) -> None:
    queries_BD = rng.standard_normal((5, DIM))
    with open_memory(url) as undisturbed:
        expected = undisturbed.search(queries_BD, 10)

    def right() -> bool:
        answer = memory.search(queries_BD, 10)
        return answer.coverage == 1.0 and np.array_equal(answer.fact_ids_BK, expected.fact_ids_BK)

    with open_memory(url, shards=1, replicas=2, backend="ray", policy=NoRetries()) as memory:
        memory.stats()
        for victim in (0, 1, 0):
            copies = memory.stats().shards[0].copies
            pid = copies[victim].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            searches_meanwhile = 0
            while (copy := memory.stats().shards[0].copies[victim]).pid in (pid, None):
                assert right(), "answers by the other copy, without a retry"
                searches_meanwhile += not copy.serving
                assert memory.fetch([7])["subject"].to_pylist() == ["7"]
            assert searches_meanwhile > 0, "no search waited until the copy was back"
            assert copy.serving
        assert [copy.restarts for copy in memory.stats().shards[0].copies] == [2, 1]
        assert memory.upsert(pa.table({"fact_id": [ROWS]}), np.ones((1, DIM), np.float32)) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_named_memory_is_shared_and_refuses_other_options(url: str) -> None:
    try:
        with open_memory(url, shards=2, backend="ray", name="shared") as first:
            with open_memory(url, shards=2, backend="ray", name="shared") as second:
                pids = [line.pid for line in first.stats().shards]
                assert [line.pid for line in second.stats().shards] == pids
            assert first.search(np.ones((1, DIM))).coverage == 1.0, "closing one user's end leaves the others served"
            with pytest.raises(VersionMismatch, match=r"threads=1 instead of 2; .* `hmn cluster stop shared`"):
                open_memory(url, shards=2, backend="ray", name="shared", threads=2)
            with pytest.MonkeyPatch.context() as job:
                job.setattr("memory_store.actors.code_version", lambda: "0.2.0+0123456789ab")
                with pytest.raises(
                    VersionMismatch, match=r"code of this job, 0\.2\.0\+0123456789ab, found .* stop it with"
                ):
                    open_memory(url, shards=2, backend="ray", name="shared")
        with open_memory(url, shards=2, backend="ray", name="shared") as third:
            assert [line.pid for line in third.stats().shards] == pids, "the shards outlive their first user"
    finally:
        assert stop_memory("shared") == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_cannot_place_a_shard_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.actors.START_DEADLINE_S", 2.0)
    with pytest.raises(ShardUnavailable, match="did not start within 2 s"):
        open_memory(url, shards=1, backend="ray", shard_cpus=500)
