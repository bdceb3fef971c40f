"""One service in a cluster: the second is refused, and what a killed one left is ended by the next."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from deploy.serve.claim import Claim, ServiceRunning, end_left_over
from deploy.serve.settings import SHARED_PREFIX, ServeSettings, Source
from memory_store import MemoryWriter, open_memory, stop_memory
from memory_store.actors import named_shards

PATIENCE_S = 60.0  # for Ray to see that a process is gone; it takes a tenth of a second on an idle machine

OTHER = """
import ray, sys
from deploy.serve.claim import Claim
ray.init(log_to_driver=False)
held = Claim("runs/other")
print("here", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claim(ray_cluster: None) -> Iterator[Claim]:
    claim = Claim("runs/first")
    yield claim
    claim.release()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, when Ray Serve's schemas load
def test_a_second_service_is_refused_by_the_name_of_the_first_and_ends_nothing(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.serve import replica

    for touched in ("start", "run", "delete", "shutdown"):
        monkeypatch.delattr(replica.serve, touched)
    settings = ServeSettings(source=Source(run_dir="runs/second", name="shared"))
    with pytest.raises(ServiceRunning, match=f"found one of runs/first .process {os.getpid()} on"):
        replica.serve_run(settings, host="127.0.0.1", port=1, replicas=1, started=lambda: None, local=False)


def test_a_service_that_was_killed_stands_in_nobodys_way(ray_cluster: None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "here\n"
            with pytest.raises(ServiceRunning, match="runs/other"):
                Claim("runs/next")
        finally:
            other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            Claim("runs/next").release()
            return
        except ServiceRunning:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_shards_of_a_killed_service_end_and_nobody_elses(ray_cluster: None, tmp_path: Path) -> None:
    url = str(tmp_path / "kb")
    with MemoryWriter(url, dim=2) as writer:
        writer.append(pa.table({"fact_id": np.arange(3)}), np.ones((3, 2), np.float32))
    names = [f"{SHARED_PREFIX}killed", f"{SHARED_PREFIX}mine", "a-job's"]
    try:
        for name in names:
            open_memory(url, shards=1, backend="ray", name=name).close()
        end_left_over(names[1])
        deadline = time.monotonic() + PATIENCE_S
        while names[0] in named_shards().values():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert set(names[1:]) <= set(named_shards().values())
    finally:
        for name in names:
            stop_memory(name)
