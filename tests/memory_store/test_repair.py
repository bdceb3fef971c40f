"""Damaged files are restored from whatever holds their bytes, and what nobody holds is named."""

import shutil
from pathlib import Path

import fsspec
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store.errors import MemoryNotFound
from memory_store.index_names import index_name
from memory_store.manifest import manifest_path, read_manifest
from memory_store.remote import RemoteFiles
from memory_store.repair import repair_memory
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_sound_memory_is_left_alone(storage: Storage, write_memory) -> None:
    write_memory(storage, range(7))
    report = repair_memory(storage)
    assert (report.restored, report.dropped, report.lost) == ((), (), ())


def test_parts_and_manifests_come_back_from_a_copy(tmp_path: Path, write_memory) -> None:
    storage = write_memory(Storage(tmp_path / "kb"), range(7))
    write_memory(storage, range(7, 9))
    shutil.copytree(tmp_path / "kb", tmp_path / "copy")
    parts = read_manifest(storage).vectors
    damage(tmp_path / "kb" / parts[0].path)
    (tmp_path / "kb" / parts[1].path).unlink()
    damage(tmp_path / "kb" / manifest_path(1))
    assert not verify_memory(storage).ok
    report = repair_memory(storage, copies=[tmp_path / "copy"])
    assert {file.path for file in report.restored} == {parts[0].path, parts[1].path, manifest_path(1)}
    assert all(file.source.startswith(str(tmp_path / "copy")) for file in report.restored)
    assert report.lost == ()
    assert verify_memory(storage).problems == ()


def test_content_counts_and_not_the_name(tmp_path: Path, write_memory) -> None:
    storage = write_memory(Storage(tmp_path), range(7))
    part = read_manifest(storage).facts[0]
    (tmp_path / "staging").mkdir()
    shutil.copy(tmp_path / part.path, tmp_path / "staging" / "left-by-a-killed-run.arrow")
    (tmp_path / part.path).write_bytes(b"")
    report = repair_memory(storage)
    assert [file.source for file in report.restored] == [f"{storage.shown}/staging/left-by-a-killed-run.arrow"]
    assert verify_memory(storage).ok


def test_what_nobody_holds_is_named_with_what_to_do_and_nothing_is_made_up(tmp_path: Path, write_memory) -> None:
    storage = write_memory(Storage(tmp_path), range(7))
    manifest = read_manifest(storage)
    for part in (manifest.facts[0], manifest.vectors[1]):
        damage(tmp_path / part.path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.arrow")}
    report = repair_memory(storage)
    assert report.restored == ()
    facts, vectors = report.lost
    assert "ingest the sources again" in facts
    assert "`hmn embed`" in vectors
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.arrow")} == before


def test_a_damaged_index_is_dropped_to_be_built_again(tmp_path: Path, write_memory) -> None:
    storage = write_memory(Storage(tmp_path), range(7))
    path = index_name("0123456789abcdef", "k")
    storage.write_atomic(path, b"not an index at all")
    assert repair_memory(storage).dropped == (path,)
    assert storage.list("indexes") == []


def test_the_cache_of_this_machine_restores_a_remote_part(tmp_path: Path, write_memory) -> None:
    url = f"memory://hmn-repair/{tmp_path.name}"
    storage = write_memory(Storage(url, cache_dir=tmp_path / "cache"), range(7))
    part = read_manifest(storage).vectors[0]
    files = storage._files
    assert isinstance(files, RemoteFiles)
    cached = files._cache / part.path  # what mapping it would have left here, were the filesystem not in this process
    cached.parent.mkdir(parents=True)
    cached.write_bytes(storage.read_bytes(part.path))
    fsspec.filesystem("memory").pipe_file(f"/hmn-repair/{tmp_path.name}/{part.path}", b"torn")
    report = repair_memory(storage)
    assert [(file.path, file.source) for file in report.restored] == [(part.path, "this machine's cache")]
    assert verify_memory(storage).ok


def test_where_there_is_no_memory_there_is_nothing_to_repair(tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound):
        repair_memory(tmp_path / "nothing")


def test_a_copy_that_is_none_is_refused_before_anything_is_repaired(
    tmp_path: Path, write_memory, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = write_memory(Storage(tmp_path / "kb"), range(7))
    damage(tmp_path / "kb" / read_manifest(storage).vectors[0].path)
    shutil.copytree(tmp_path / "kb" / "vectors", tmp_path / "parts-alone" / "vectors")
    (tmp_path / "empty").mkdir()
    for missing in ("no-such", "empty"):
        url = str(tmp_path / missing)
        with pytest.raises(MemoryNotFound, match=rf"expected a copy of the memory at {url}, found no file of one"):
            repair_memory(storage, copies=[tmp_path / "parts-alone", url])
        assert run(hmn, ["verify", storage.url, "--repair", "--copy", url]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith(f"error: expected a copy of the memory at {url}")
    assert len(repair_memory(storage, copies=[tmp_path / "parts-alone"]).lost) == 1
