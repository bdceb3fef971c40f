"""kill -9 of an ingesting process at random instants: the rerun completes, and the memory is the undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory

ROUNDS = int(os.environ.get("HMN_CHAOS_ROUNDS", "3"))

PROGRAM = """
import sys
from pipeline.ingest import ingest
print("ready", flush=True)
sources, names, url, backend = sys.argv[1:]
ingest(sources, url, names=names, backend=backend, segment_bytes=1 << 18, rows_per_part=20_000)
"""

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start an ingest of 60,000 triples and 20,000 names in a process of its own; it is at work on return."""
    folder = tmp_path_factory.mktemp("input")
    triples = "".join(f"s{n % 9973}\trelation {n % 7}\to{n % 12007}\n" for n in range(60_000))
    (folder / "a.tsv").write_text(triples)
    (folder / "names.tsv").write_text(
        "".join(f"{kind}{n}\tname of {kind} {n}\n" for n in range(10_000) for kind in "so")
    )

    def run(url: str, backend: str = "local") -> subprocess.Popen[bytes]:
        arguments = [str(folder / "a.tsv"), str(folder / "names.tsv"), url, backend]
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    return run


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], float]:
    """The checksums of the parts of an ingest that nobody kills, and its duration in seconds."""
    url = str(tmp_path_factory.mktemp("undisturbed") / "memory")
    started_s = time.monotonic()
    with start(url) as process:
        assert process.wait(timeout=120) == 0
    return checksums(url), time.monotonic() - started_s


def checksums(url: str) -> list[str]:
    return [part.checksum for part in read_manifest(Storage(url)).facts]


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_killed_ingest_is_completed_by_its_rerun(
    start: Start, undisturbed: tuple[list[str], float], tmp_path: Path, round_: int
) -> None:
    expected, duration_s = undisturbed
    generator = np.random.default_rng([2, round_])
    url = str(tmp_path / "memory")
    kills = 0
    for _ in range(int(generator.integers(1, 4))):
        with start(url) as process:
            try:
                process.wait(timeout=float(generator.uniform(0, duration_s)))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait(timeout=60)
    with start(url) as process:
        assert process.wait(timeout=120) == 0, f"the rerun after {kills} kills failed"
    assert checksums(url) == expected
    assert read_manifest(Storage(url)).generation == 1
    assert verify_memory(url).ok
    assert list((Path(url) / "staging").iterdir()) == []
