"""A Ray cluster of three nodes on this machine: shards spread over them, nodes lost and added, a shard cut off."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store import MemoryWriter, open_memory, stop_memory
from memory_store.errors import ShardUnavailable
from memory_store.storage import Storage
from trainer.checkpoint import newest_checkpoint
from trainer.config import RunConfig
from trainer.loop import train
from trainer.metrics import read_metrics

DIM, ROWS = 8, 1200
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# A node whose processes were killed is missed after a few seconds instead of half a minute.
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 5}
# What a cluster starts besides its nodes, and these tests do not need.
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


class Nodes:
    """The cluster, and which node is which."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={**NODE, **BARE, "_system_config": NOTICE},
        )
        for _ in range(2):
            self.add()

    def add(self) -> str:
        return str(self.cluster.add_node(**NODE).node_id)

    def lose(self, node_id: str) -> None:
        """kill -9 all processes of a node."""
        node = next(node for node in self.cluster.worker_nodes if node.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)

    @property
    def workers(self) -> set[str]:
        return {str(node.node_id) for node in self.cluster.worker_nodes}


@pytest.fixture(scope="module")
def nodes(ray_ends: None) -> Iterator[Nodes]:
    """A head and two more nodes, joined by this process instead of the Ray of the session."""
    import ray

    ray.shutdown()
    # Ray then starts each node's agent without its dashboard, in a fraction of the time.
    with patch("ray._private.utils.get_dashboard_dependency_error", return_value=ImportError("not asked for")):
        yield from _joined()


def _joined() -> Iterator[Nodes]:
    import ray

    started = Nodes()
    try:
        ray.init(address=started.cluster.address, logging_level="ERROR", log_to_driver=False)
        yield started
    finally:
        ray.shutdown()
        started.cluster.shutdown()


@pytest.fixture
def url(tmp_path: Path, rng: np.random.Generator) -> str:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        writer.append(pa.table({"fact_id": np.arange(ROWS)}), rng.standard_normal((ROWS, DIM)).astype(np.float32))
    return str(tmp_path / "kb")


def status(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `hmn cluster status --json` says."""
    assert run(hmn, ["cluster", "status", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_shards_spread_over_the_nodes_and_the_status_says_where(
    nodes: Nodes, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_memory(url, shards=3, backend="ray", name="shared"), open_memory(url, backend="ray"):
        found = status(capsys)
        assert [node["head"] for node in found["nodes"]] == [True, False, False]
        assert all(node["alive"] for node in found["nodes"])
        shared = [line for line in found["shards"] if line["memory"] == "shared"]
        assert {line["node"] for line in shared} == {node["node"] for node in found["nodes"]}
        assert [(line["shard"], line["num_shards"], line["rows"]) for line in shared] == [
            (0, 3, ROWS / 3),
            (1, 3, ROWS / 3),
            (2, 3, ROWS / 3),
        ]
        assert {(line["generation"], line["url"], line["state"]) for line in shared} == {(1, url, "serving")}
        assert all(line["same_code"] and line["bytes"] and line["resident_bytes"] for line in shared)
        (own,) = (line for line in found["shards"] if line["memory"] == "")
        assert own["rows"] == ROWS
    assert [line["memory"] for line in status(capsys)["shards"]] == ["shared"] * 3, "named shards outlive their job"
    assert run(hmn, ["cluster", "status"]) == 0
    assert "0 of 3, exact" in capsys.readouterr().out
    assert run(hmn, ["cluster", "stop", "shared"]) == 0
    assert status(capsys)["shards"] == []
    assert run(hmn, ["cluster", "stop", "shared"]) == 2
    assert "found 'shared'" in capsys.readouterr().err


def ended_with(config: RunConfig) -> tuple[object, ...]:
    checkpoint = newest_checkpoint(Storage(config.run_dir))
    assert checkpoint is not None
    lines = [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(Path(config.run_dir))]
    return checkpoint.fingerprint, checkpoint.step, lines


def test_training_that_loses_a_node_ends_with_the_metrics_of_the_undisturbed_run(
    nodes: Nodes, run_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, disturbed = run_config("whole", "m1"), run_config("lost", "m2")
    train(undisturbed)
    disturbed = replace(disturbed, memory=replace(disturbed.memory, backend="ray", shards=3))
    lost: list[str] = []

    def lose_a_node_with_a_shard(task: str, done: int, total: int | None = None, **_: str) -> None:
        if task == "train" and not lost:
            lost.append(next(line["node"] for line in status(capsys)["shards"] if line["node"] in nodes.workers))
            nodes.lose(lost[0])

    train(disturbed, progress=lose_a_node_with_a_shard)
    assert ended_with(disturbed) == ended_with(undisturbed)
    assert [node["node"] for node in status(capsys)["nodes"] if not node["alive"]] == lost


def test_a_node_that_is_added_takes_shards_at_the_next_reindex(
    nodes: Nodes, url: str, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    queries_BD = rng.standard_normal((4, DIM))
    with open_memory(url, shards=len(nodes.workers) + 1, backend="ray") as memory:
        before = memory.search(queries_BD, 10)
        added = nodes.add()
        memory.reindex(shards=len(nodes.workers) + 1)
        assert added in {line["node"] for line in status(capsys)["shards"]}
        np.testing.assert_array_equal(memory.search(queries_BD, 10).fact_ids_BK, before.fact_ids_BK)


def test_a_node_that_is_drained_gives_its_shards_to_the_others_while_jobs_search_on(
    nodes: Nodes, url: str, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    queries_BD = rng.standard_normal((4, DIM))
    leaving, shards = min(nodes.workers), len(nodes.workers) + 1
    with open_memory(url, shards=shards, backend="ray", name="leaving") as memory:
        try:
            before = memory.search(queries_BD, 10)
            assert leaving in {line["node"] for line in status(capsys)["shards"]}
            assert run(hmn, ["cluster", "drain", leaving[:12]]) == 0
            said = capsys.readouterr().out
            assert "leaving: moved 1 shard to other nodes" in said
            assert "it can be taken away" in said
            found = status(capsys)
            assert [node["node"] for node in found["nodes"] if node["drained"]] == [leaving]
            held = [line["node"] for line in found["shards"] if line["state"] == "serving"]
            assert len(held) == shards
            assert leaving not in held
            np.testing.assert_array_equal(memory.search(queries_BD, 10).fact_ids_BK, before.fact_ids_BK)
        finally:
            stop_memory("leaving")
    assert run(hmn, ["cluster", "drain", leaving, "--undo"]) == 0
    assert not any(line["drained"] for line in status(capsys)["nodes"])


def test_what_cannot_be_drained_is_refused(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hmn, ["cluster", "drain", min(nodes.workers), "--undo"]) == 2
    assert "expected a node that was drained" in capsys.readouterr().err
    assert run(hmn, ["cluster", "drain", "none-such"]) == 2
    assert "see `hmn cluster status`" in capsys.readouterr().err


def test_a_shard_that_cannot_be_reached_for_a_while_is_reported_and_comes_back(
    nodes: Nodes, url: str, rng: np.random.Generator
) -> None:
    queries_BD = rng.standard_normal((4, DIM))
    with open_memory(url, shards=2, backend="ray") as memory:
        whole = memory.search(queries_BD, 10)
        pid = memory.stats().shards[1].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ShardUnavailable, match=r"shard 1 of 2 did not answer .* timed out"):
                memory.search(queries_BD, 10, deadline_s=1.0)
            assert memory.search(queries_BD, 10, deadline_s=4.0, partial="allow").coverage == 0.5
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        again = memory.search(queries_BD, 10)
        assert again.coverage == 1.0
        np.testing.assert_array_equal(again.fact_ids_BK, whole.fact_ids_BK)
        assert memory.stats().shards[1].pid == pid
