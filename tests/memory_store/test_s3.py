"""A memory on S3, served by moto in this process: commits by real conditional writes, parts through the local cache."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from memory_store import MemoryWriter, open_memory
from memory_store.errors import CorruptFile, GenerationConflict, MemoryNotFound, StorageFailed
from memory_store.leases import leases
from memory_store.manifest import generations, manifest_path, read_manifest
from memory_store.parts import open_part
from memory_store.remote import _creates_exclusively
from memory_store.repair import repair_memory
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory
from memory_store.writes import locate_on_disk, upsert_facts

pytest.importorskip("s3fs", reason="S3 is not tested: s3fs is not installed (`pip install s3fs 'moto[s3]' flask-cors`)")
server = pytest.importorskip("moto.server", reason="S3 is not tested: moto or flask-cors is not installed")

# botocore looks at the clock in a way that Python announces to end
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

DIM = 3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    serving = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    host, port = serving.get_host_and_port()
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://{host}:{port}",
        "key": "moto",
        "secret": "moto-secret",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    try:
        urlopen(Request(f"http://{host}:{port}/hmn-tests", method="PUT")).close()  # moto lets everybody make a bucket
        yield "s3://hmn-tests"
    finally:
        serving.stop()
        fsspec.config.conf.pop("s3") if before is None else fsspec.config.conf.update(s3=before)


@pytest.fixture
def storage(bucket: str, tmp_path: Path) -> Storage:
    return Storage(f"{bucket}/{tmp_path.name}", cache_dir=tmp_path / "cache")


def facts(ids: list[int]) -> pa.Table:
    return pa.table({"fact_id": pa.array(ids, pa.int64())})


def write(storage: Storage, ids: list[int]) -> None:
    with MemoryWriter(storage, dim=DIM, part_rows=4) as writer:
        writer.append(facts(ids), np.arange(len(ids) * DIM, dtype=np.float32).reshape(-1, DIM))


def test_a_memory_lives_on_s3(storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write(storage, list(range(6)))
    with open_memory(storage.url, shards=2, index="exact") as memory:
        assert memory.search(np.ones((1, DIM)), 2).fact_ids_BK.tolist() == [[5, 4]]
        assert memory.upsert(facts([9]), np.full((1, DIM), 100.0, np.float32)) == 2
        assert memory.delete([5]) == 3
        assert memory.search(np.ones((1, DIM)), 2).fact_ids_BK.tolist() == [[9, 4]]
        assert memory.compact() == 4
        assert memory.search(np.ones((1, DIM)), 2).fact_ids_BK.tolist() == [[9, 4]]
    sweep(storage, now_s=1e12)
    assert generations(storage) == [4]
    assert inspect_memory(storage).unnamed_files == 0
    assert verify_memory(storage).problems == ()


def test_a_bucket_that_is_not_there_is_named_by_whoever_writes(bucket: str) -> None:
    nowhere = Storage(f"{bucket}-nowhere/kb")
    for write in (nowhere.write_atomic, nowhere.create_exclusive):
        with pytest.raises(StorageFailed, match=r"tests-nowhere/kb/a: there is no such bucket .*; create it"):
            write("a", b"1")
    with pytest.raises(MemoryNotFound):
        read_manifest(nowhere)


def test_a_reader_on_s3_keeps_its_generation_from_a_sweep_until_it_closes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for first in (0, 6, 12):
        write(storage, list(range(first, first + 6)))
    with open_memory(storage.url, generation=1) as reader:
        (lease,) = leases(storage)
        assert lease.generations == (1,)
        assert lease.modified_s is not None, "S3 says when it was written"
        assert lease.is_live(time.time())
        assert sweep(storage).generations == (2,)
        assert reader.fetch([2])["fact_id"].to_pylist() == [2]
    assert leases(storage) == ()
    assert sweep(storage).generations == (1,)


def test_a_manifest_is_created_by_a_conditional_write_that_only_one_writer_wins(storage: Storage) -> None:
    write(storage, [0])
    path = "manifests/00000077.json"

    def create(number: int) -> bool:
        try:
            Storage(storage.url).create_exclusive(path, b"%d" % number)
        except FileExistsError:
            return False
        return True

    assert _creates_exclusively(fsspec.filesystem("s3")), "the driver would look and then write"
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(path) == b"%d" % won.index(True)
    storage.delete(path)


def test_two_writers_that_race_both_get_their_facts_in(storage: Storage) -> None:
    write(storage, [0])

    def upsert(fact_id: int) -> None:
        for _ in range(20):
            try:
                upsert_facts(
                    storage, facts([fact_id]), np.ones((1, DIM), np.float32), locate=partial(locate_on_disk, storage)
                )
            except GenerationConflict:
                continue
            return
        raise AssertionError("twenty conflicts in a row")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(upsert, range(10, 16)))
    assert read_manifest(storage).fact_count == 7
    assert generations(storage) == list(range(1, 8))
    assert verify_memory(storage, current_only=True).ok


def test_a_part_that_the_bucket_lost_is_repaired_from_the_cache(storage: Storage) -> None:
    write(storage, list(range(6)))
    part = read_manifest(storage).vectors[1]
    storage.open_input(part.path).close()
    fsspec.filesystem("s3").rm_file(f"{storage.url}/{part.path}")
    assert [file.source for file in repair_memory(storage).restored] == ["this machine's cache"]
    assert Storage(storage.url).read_bytes(part.path)
    assert verify_memory(storage).ok
    assert storage.exists(manifest_path(1))


def overwritten(storage: Storage, path: str) -> None:
    """As many bytes as there were in the bucket, and one of them another."""
    data = bytearray(storage.read_bytes(path))
    data[-100] ^= 1
    fsspec.filesystem("s3").pipe_file(f"{storage.url}/{path}", bytes(data))


def test_verify_reads_what_the_bucket_holds_and_not_what_is_cached_of_it(storage: Storage, tmp_path: Path) -> None:
    write(storage, list(range(6)))
    part = read_manifest(storage).vectors[1]
    for path in [part.path for part in read_manifest(storage).vectors]:
        storage.open_input(path).close()
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    overwritten(storage, part.path)
    for _ in range(2):
        (problem,) = verify_memory(storage).problems
        assert f"{part.path}: expected checksum" in problem
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == sorted(cached), "none is added"
    assert [file.source for file in repair_memory(storage).restored] == ["this machine's cache"]
    report = verify_memory(storage)
    assert report.ok
    assert report.dropped_copies == ()


def test_a_damaged_copy_in_the_cache_is_dropped_by_verify_which_says_so(storage: Storage, tmp_path: Path) -> None:
    write(storage, list(range(6)))
    part = read_manifest(storage).facts[0]
    storage.open_input(part.path).close()
    (cached,) = (tmp_path / "cache").rglob(part.path.partition("/")[2])
    cached.write_bytes(cached.read_bytes()[:-1])
    report = verify_memory(storage)
    assert report.ok, "the bucket is sound"
    assert report.dropped_copies == (part.path,)
    assert not cached.exists()
    assert verify_memory(storage).dropped_copies == ()


def test_a_reader_that_finds_the_bucket_damaged_leaves_the_sound_copy_in_the_cache_to_the_repair(
    storage: Storage,
) -> None:
    write(storage, list(range(6)))
    part = read_manifest(storage).vectors[0]
    storage.open_input(part.path).close()
    fsspec.filesystem("s3").pipe_file(f"{storage.url}/{part.path}", b"short")
    with pytest.raises(CorruptFile, match="found 5"):
        open_part(storage, part)
    assert [file.source for file in repair_memory(storage).restored] == ["this machine's cache"]
