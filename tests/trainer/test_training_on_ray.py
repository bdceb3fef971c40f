"""Runs whose memory lives in shard actors: the same results, also when an actor is killed on the way."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from memory_store.errors import HmnError
from memory_store.storage import Storage
from trainer.checkpoint import newest_checkpoint
from trainer.config import RunConfig
from trainer.evaluation import evaluate
from trainer.loop import train
from trainer.metrics import read_metrics

MakeConfig = Callable[..., RunConfig]


def on_ray(config: RunConfig) -> RunConfig:
    return replace(config, memory=replace(config.memory, backend="ray", shards=2))


def ended_with(config: RunConfig) -> tuple[object, ...]:
    checkpoint = newest_checkpoint(Storage(config.run_dir))
    assert checkpoint is not None
    lines = [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(Path(config.run_dir))]
    return checkpoint.fingerprint, checkpoint.step, lines


def shard_processes() -> list[int]:
    """The processes of this session's shard actors, whatever they are doing now."""
    return [
        child.pid for child in psutil.Process().children(recursive=True) if "ShardActor" in " ".join(child.cmdline())
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_training_ends_with_the_same_metrics_when_shards_are_killed_on_the_way(run_config: MakeConfig) -> None:
    undisturbed, killed = run_config("whole", "m1"), on_ray(run_config("killed", "m2"))
    train(undisturbed)
    struck: list[int] = []

    def kill_one_at_each_report(task: str, done: int, total: int | None = None, **_: str) -> None:
        if task == "train" and done < 25:
            pid = shard_processes()[done // 10 % 2]
            os.kill(pid, signal.SIGKILL)
            struck.append(pid)

    train(killed, progress=kill_one_at_each_report)
    assert len(set(struck)) >= 2
    assert ended_with(killed) == ended_with(undisturbed)


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_learn_together_also_where_paths_are_relative(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(run_config(memory={"url": "memory"}, train={"workers": 2, "epochs": 6}), run_dir="run")
    result = train(config)
    assert result.steps == 6 * 15
    assert (result.asked.questions, result.asked.missing, result.asked.held_out) == (493, 0, True)
    assert evaluate(config.run_dir).overall.path_accuracy >= 0.9


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("wait", ["late", "never"])
def test_two_workers_take_the_same_vectors_over_when_drift_asked_for_them(run_config: MakeConfig, wait: str) -> None:
    train_section = {
        "workers": 2,
        "max_steps": 24,
        "refresh_every_steps": 24,
        "refresh_drift": 1e-6,
        "refresh_check_steps": 4,
        "refresh_wait": wait,
        "refresh_lag_steps": 3,
    }
    config = run_config(train=train_section)
    result = train(config)
    refreshed = [line["step"] for line in read_metrics(Path(config.run_dir)) if line["kind"] == "refresh"]
    assert refreshed[0] == 0
    assert refreshed[-1] == result.steps == 24
    assert len(refreshed) > 2, "by drift"
    if wait == "late":
        assert refreshed == [0, 7, 11, 15, 19, 23, 24]
    checkpoint = newest_checkpoint(Storage(config.run_dir))
    assert checkpoint is not None
    assert checkpoint.generation == result.generation


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_worker_meets_is_said_as_by_a_run_of_one(run_config: MakeConfig, tmp_path: Path) -> None:
    sections = {"data": {"questions": str(tmp_path / "nowhere")}}
    said = []
    for workers in (1, 2):
        with pytest.raises(HmnError) as failed:
            train(run_config(f"run{workers}", train={"workers": workers}, **sections))
        said.append((type(failed.value), str(failed.value)))
    assert said[0] == said[1]
