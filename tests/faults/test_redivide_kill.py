"""kill -9 of a job while it divides a shared memory anew: nobody notices, and what it leaves over is ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from deploy.cli import hmn
from deploy.entry import run
from memory_store import Memory, MemoryWriter, open_memory, stop_memory
from memory_store.actors import named_shards
from memory_store.marks import marks
from memory_store.shared import MAKES

DIM, ROWS, NAME = 4, 60, "divided"
PATIENCE_S = 60.0  # for Ray to see that a process is gone; it takes a tenth of a second on an idle machine

MAKER = """
import sys
from unittest.mock import patch
from memory_store.opening import open_shared

def stand(*_, **__):
    print("here", flush=True)
    sys.stdin.read()

with patch("memory_store." + sys.argv[1], stand), open_shared(sys.argv[2]) as memory:
    memory.reindex(shards=3)
"""


@pytest.fixture
def job(ray_cluster: None, tmp_path: Path) -> Iterator[Memory]:
    """A job that shares a memory, on two shards."""
    url = str(tmp_path / "kb")
    with MemoryWriter(url, dim=DIM) as writer:
        writer.append(pa.table({"fact_id": np.arange(ROWS)}), np.ones((ROWS, DIM), np.float32))
    with open_memory(url, shards=2, backend="ray", name=NAME) as memory:
        try:
            yield memory
        finally:
            stop_memory(NAME)


@contextmanager
def a_job_that_divides_it_anew_and_stands_at(step: str) -> Iterator[None]:
    """It is killed at the end."""
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, step, NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | address,
    ) as maker:
        try:
            assert maker.stdout is not None
            assert maker.stdout.readline() == "here\n"
            yield
        finally:
            maker.send_signal(signal.SIGKILL)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running() -> set[str]:
    return {shard for shard, memory in named_shards().items() if memory == NAME}


def states(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(hmn, ["cluster", "status", "--json"]) == 0
    shards = json.loads(capsys.readouterr().out.splitlines()[-1])["shards"]
    return sorted(line["state"] for line in shards if line["memory"] == NAME)


def finds_all(memory: Memory) -> bool:
    return bool((np.sort(memory.search(np.ones((1, DIM)), ROWS).fact_ids_BK) == np.arange(ROWS)).all())


def test_killed_before_the_switch_its_shards_end_when_the_memory_is_opened_next(
    job: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running()
    with a_job_that_divides_it_anew_and_stands_at("editions.Editions.publish"):
        with open_memory(job.url, shards=2, backend="ray", name=NAME) as other:
            assert finds_all(other)
        assert len(running()) == 5, "whoever makes the other three lives, and may take hours"
        assert states(capsys) == ["serving"] * 5
    until(lambda: not marks(MAKES))
    assert states(capsys) == ["left over"] * 3 + ["serving"] * 2
    assert run(hmn, ["cluster", "status"]) == 0
    assert f"{NAME}: shards of another division are left over" in capsys.readouterr().out
    assert finds_all(job)
    with open_memory(job.url, shards=2, backend="ray", name=NAME):
        until(lambda: running() == before)
    assert job.reindex(shards=1) == 1
    assert finds_all(job)


def test_killed_after_the_switch_the_old_shards_serve_who_is_on_them_and_end_when_one_goes_over(
    job: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running()
    with a_job_that_divides_it_anew_and_stands_at("engine.Engines.retire"):
        assert len(running()) == 5
    assert states(capsys) == ["left over"] * 2 + ["serving"] * 3
    assert finds_all(job)
    assert running() >= before, "searches go on where they are"
    assert job.refresh() == 1
    until(lambda: len(running()) == 3)
    assert not running() & before
    assert finds_all(job)
    assert len(job.stats().shards) == 3
