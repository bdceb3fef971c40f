"""Jobs submitted to a real Ray head, as a person does it: with the token that the cluster asks for, and without any."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from memory_store.manifest import read_manifest
from memory_store.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLACES = "builtin:geonames?min_population=3000000&max_questions=600"  # real, and few
START_S = 240.0
PATIENCE = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200"}  # of a busy machine


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """`ray start --head` in a process of its own; ends with all that it started."""

    def __init__(self, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hmn-", dir="/tmp"))  # sockets below it: paths must be short
        self.port = free_port()
        # A home without a token of somebody's, and no code but what a job brings.
        own = ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        self.environment = kept | PATIENCE | {"HOME": str(self.folder)} | environment
        self.environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # the `python` of a job
        start = ["start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={self.port}", "--num-cpus=2"]
        start += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self.folder}/ray"]
        self.process = subprocess.Popen(
            [str(BIN / "ray"), *start, f"--object-store-memory={80 * 2**20}"],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await_jobs()

    def _await_jobs(self) -> None:
        deadline = time.monotonic() + START_S
        while self.ray("job", "list").returncode != 0:
            assert self.process.poll() is None, "the head ended"
            assert time.monotonic() < deadline, "the head takes no jobs"

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.port}"} | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def submit(self, module: str, *arguments: str) -> str:
        """`ray job submit` of a module of deploy.jobs; what it printed."""
        done = self.ray(
            "job", "submit", "--working-dir", ".", "--", "python", "-m", f"deploy.jobs.{module}", *arguments
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module", params=["token", "disabled"])
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    token = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4} if request.param == "token" else {}
    started = Head(RAY_AUTH_MODE=request.param, **token)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def trained(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A memory and a run, both of a submitted job."""
    folder = tmp_path_factory.mktemp("job")
    memory, run = folder / "memory", folder / "run"
    small = ["model.feature_bits=14", "model.entity_dim=32", "model.relation_dim=16", "train.max_steps=2"]
    settings = [*small, f'data.facts=["{PLACES}"]', f"data.questions={PLACES}", "memory.backend=ray", "memory.shards=2"]
    said = head.submit(
        "train",
        *("--config", "deploy/configs/geonames.toml", "--memory", str(memory), "--run", str(run)),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert "Trained 2 steps" in said
    return memory, run


def test_a_job_trains_on_a_cluster_that_asks_for_a_token_or_does_not(trained: tuple[Path, Path]) -> None:
    memory, run = trained
    manifest = read_manifest(Storage(str(memory)))
    assert manifest.encoder
    assert manifest.fact_count > 1000
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("head", ["token"], indirect=True)  # without one, training has shown that jobs get through
def test_jobs_reindex_the_memory_and_evaluate_the_run_of_another_job(head: Head, trained: tuple[Path, Path]) -> None:
    memory, run = trained
    before = read_manifest(Storage(str(memory)))
    said = head.submit("reindex", "--memory", str(memory), "--model", str(run), "--index", "exact", "--json")
    assert f'"facts": {before.fact_count}' in said
    assert '"embedded": false' in said
    assert read_manifest(Storage(str(memory))) == before, "it was embedded by this model already"
    head.submit("evaluate", str(run))
    found = json.loads((run / "evaluation-valid.json").read_text())
    assert found["overall"]["questions"] > 10


@pytest.mark.parametrize("head", ["token"], indirect=True)
def test_a_cluster_that_asks_for_a_token_takes_no_job_without_it(head: Head) -> None:
    for wrong in ("", "f" * 64):
        refused = head.ray("job", "submit", "--", "true", RAY_AUTH_TOKEN=wrong)
        assert refused.returncode != 0
        assert "uthentication" in refused.stdout + refused.stderr
