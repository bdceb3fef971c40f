"""Two Ray clusters that know nothing of each other serve, write, compact and sweep one memory: nothing is lost."""

import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from memory_store import MemoryWriter, open_memory
from memory_store.mips.oracle import exhaustive_search
from memory_store.parts import scan_facts, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory

DIM, ROUNDS = 16, 6

# Vectors of length 1: a fact that is asked for by its own vector comes first.
CLUSTER = """
import sys
import numpy as np, pyarrow as pa, ray
from memory_store import open_memory
from memory_store.compaction import compact
from memory_store.errors import GenerationConflict
from memory_store.storage import Storage
from memory_store.upkeep import sweep
url, first, rounds, dim = sys.argv[1], *map(int, sys.argv[2:])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
draw = np.random.default_rng(first)
with open_memory(url, shards=2, backend="ray") as memory:
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
    for number in range(rounds):
        ids = first + 5 * number + np.arange(5)
        vectors = draw.standard_normal((5, dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        memory.upsert(pa.table({"fact_id": ids}), vectors)
        found = memory.search(vectors, k=3)
        assert found.coverage == 1.0
        assert (found.fact_ids_BK[:, 0] == ids).all(), (found.generation, found.fact_ids_BK, ids)
        try:
            compact(Storage(url))
        except GenerationConflict:
            pass  # the other one was first
        sweep(url, keep_last=1)
        memory.refresh()
        assert (memory.search(vectors, k=3).fact_ids_BK[:, 0] == ids).all()
    print("done", flush=True)
"""


@pytest.mark.timeout(240)
def test_two_clusters_on_one_memory_lose_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "memory")
    base_ND = np.eye(DIM, dtype=np.float32)
    with MemoryWriter(url, dim=DIM, part_rows=6) as writer:
        writer.append(pa.table({"fact_id": np.arange(DIM)}), base_ND)
    firsts = (1000, 2000)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER, url, str(first), str(ROUNDS), str(DIM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in firsts
    ]
    try:
        clusters = {cast(str, process.stdout and process.stdout.readline()) for process in processes}
        assert len(clusters) == 2, "each process has a cluster of its own"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            said, errors = process.communicate(timeout=200)
            assert (process.returncode, said) == (0, "done\n"), errors[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    storage = Storage(url)
    assert verify_memory(storage).problems == ()
    written = [np.arange(first, first + 5 * ROUNDS) for first in firsts]
    with open_memory(url) as memory:
        tables = list(zip(scan_facts(storage, memory.manifest), scan_vectors(storage, memory.manifest), strict=True))
        ids_N = np.concatenate([facts["fact_id"].to_numpy() for facts, _ in tables])
        vectors_ND = np.concatenate([vectors_of(vectors) for _, vectors in tables])
        assert sorted(ids_N.tolist()) == np.concatenate([np.arange(DIM), *written]).tolist()
        found = memory.search(base_ND, k=5)
        expected = exhaustive_search(ids_N, vectors_ND, base_ND, 5)
        np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
    sweep(storage, orphan_age_s=0)  # the parts of a compaction that the other one overtook wait for their age
    assert inspect_memory(storage).unnamed_files == 0
    assert verify_memory(storage).problems == ()
