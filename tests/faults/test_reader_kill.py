"""A reader in another process: sweeps leave what it reads, also for a while after kill -9, and then take it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store import MemoryWriter
from memory_store.leases import LEASE_S, SKEW_S
from memory_store.manifest import generations
from memory_store.storage import Storage
from memory_store.upkeep import sweep

DIM = 4

READER = """
import sys
import numpy as np
from memory_store import open_memory
with open_memory(sys.argv[1], generation=1) as memory:
    print("ready", flush=True)
    for line in sys.stdin:
        print(memory.fetch([0])["subject"][0], memory.search(np.ones((1, 4)), 3).generation, flush=True)
"""


def test_what_a_reader_reads_stays_until_it_has_been_dead_for_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "kb")
    for first in (0, 10, 20):
        with MemoryWriter(url, dim=DIM) as writer:
            facts = pa.table({"fact_id": np.arange(first, first + 10), "subject": [f"s{n}" for n in range(10)]})
            writer.append(facts, np.ones((10, DIM), np.float32))
    storage = Storage(url)
    with subprocess.Popen(
        [sys.executable, "-c", READER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "ready\n"
            said = f"generation 1 stays: .*, process {reader.pid} reads it"
            assert run(hmn, ["sweep", url, "--keep-days", "0"]) == 0
            assert re.search(said, capsys.readouterr().out)
            assert run(hmn, ["inspect", url]) == 0
            assert f"process {reader.pid}" in capsys.readouterr().out
            assert generations(storage) == [1, 3]
            reader.stdin.write("go on\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "s0 1\n"
        finally:
            reader.send_signal(signal.SIGKILL)
    assert sweep(storage).generations == (), "it may be on a machine that cannot be reached for a while"
    assert sweep(storage, now_s=time.time() + LEASE_S + SKEW_S + 1).generations == (1,)
    assert storage.list("leases") == []
