"""What our processes set and load: threads of OpenMP that wait give their core away soon; no pandas in a shard."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import MemoryWriter

LOADED = "import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize("package", ["memory_store", "pipeline", "trainer", "deploy"])
def test_every_package_says_so_before_torch_is_loaded(package: str) -> None:
    assert _loaded(package, without="GOMP_SPINCOUNT") == ["2000", "False"]


def test_what_the_user_has_set_stays() -> None:
    assert _loaded("trainer", GOMP_SPINCOUNT="7") == ["7", "False"]


def test_a_shard_that_starts_loads_no_pandas(tmp_path: Path) -> None:
    with MemoryWriter(str(tmp_path / "kb"), dim=4) as writer:
        writer.append(pa.table({"fact_id": np.arange(500)}), np.ones((500, 4), np.float32))
    code = (
        "import sys, numpy as np; from memory_store.actors import Shard, ShardConfig; "
        f"shard = Shard(ShardConfig(url={str(tmp_path / 'kb')!r}, shard=0, num_shards=1)); "
        "found = shard.search(1, np.ones((1, 4), np.float32), 3); "
        "print(shard.load(1), found.fact_ids_BK.shape[1], 'pandas' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["500", "3", "False"]


def _loaded(package: str, *, without: str = "", **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != without}
    command = [sys.executable, "-c", LOADED.format(package=package)]
    return subprocess.check_output(command, env=inherited | environment, text=True).split()
