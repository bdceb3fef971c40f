"""Ingest and embed hold a bounded amount of memory: proven by a limit on the process that all facts together exceed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED_BYTES = 48 * 2**20
TRIPLES = 120_000

PROGRAM = """
import json, resource, sys
import numpy as np
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from pipeline.embed import embed
from pipeline.ingest import ingest

folder, triples, allowed_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def data_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:"))

def build(name, count):
    path = f"{folder}/{name}.tsv"
    with open(path, "w") as file:
        for n in range(count):
            print(f"s {n}", f"Name of {n}", f"relation {n % 7}", f"o {n}", f"Object {n}", sep="\\t", file=file)
    url = f"{folder}/{name}"
    ingest(path, url, segment_bytes=2**18, rows_per_part=4096)
    encode = lambda facts: np.full((facts.num_rows, 128), 0.5, dtype=np.float32)
    embed(url, lambda: encode, fingerprint="half", dim=128)
    with open(path, "w") as file:
        print("another", "Another", "relation", "o", "Object", sep="\\t", file=file)
    ingest(path, url, segment_bytes=2**18, rows_per_part=4096)
    summary = embed(url, lambda: encode, fingerprint="half", dim=128)
    assert (summary.computed, summary.reused) == (1, count), summary
    return read_manifest(Storage(url))

build("warm", 5000)  # libraries are loaded, threads have their stacks
before = data_bytes()
resource.setrlimit(resource.RLIMIT_DATA, (before + allowed_bytes, resource.RLIM_INFINITY))
manifest = build("many", triples)
total = sum(part.bytes for part in [*manifest.facts, *manifest.vectors])
print(json.dumps({"facts": manifest.fact_count, "bytes": total, "grown": data_bytes() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what a process allocates")
def test_ingest_and_embed_of_more_than_the_memory_they_may_take_succeed(tmp_path: Path) -> None:
    # Allocators that reserve far more than they use would be stopped for what they do not use.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(TRIPLES), str(ALLOWED_BYTES)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["facts"] == TRIPLES + 1
    assert found["bytes"] > 1.5 * ALLOWED_BYTES, "all at once would not have fitted"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what a process allocates")
def test_the_limit_of_these_tests_stops_what_exceeds_it() -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**26, -1)); bytearray(2**27)"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)
    assert "MemoryError" in done.stderr
