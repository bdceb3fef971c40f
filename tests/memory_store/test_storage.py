"""Storage: atomic and exclusive files on the local disk, in memory and on remote filesystems; errors that help."""

import errno
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from memory_store.disk import Disk
from memory_store.errors import ConfigError, StorageFailed
from memory_store.storage import Storage, redact


class RefusingDisk(Disk):
    """A disk on which the named calls fail with one error number."""

    def __init__(self, code: int, *calls: str) -> None:
        self._error = OSError(code, os.strerror(code))
        for call in calls:
            setattr(self, call, self._refuse)

    def _refuse(self, *_: object) -> Any:
        raise self._error


class BucketFileSystem(MemoryFileSystem):
    """An object store: nothing is local, an object appears whole, creation can be exclusive."""

    protocol = ("bucket", "s3")
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's way to share a store
    pseudo_dirs = [""]  # noqa: RUF012
    fail: Callable[[str], None] | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.split("://")[-1].rpartition("@")[2].strip("/")

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        if BucketFileSystem.fail is not None:
            BucketFileSystem.fail(rpath)
        Path(lpath).write_bytes(self.cat_file(rpath))


class ServerFileSystem(BucketFileSystem):
    """A file server: files grow while they are written, and the driver knows no exclusive creation."""

    protocol = "server"

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:  # type: ignore[override]
        raise UnsupportedOperation("mode")


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Callable[[str], Storage]]:
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    fsspec.register_implementation("server", ServerFileSystem, clobber=True)
    yield lambda url: Storage(url, cache_dir=tmp_path / "cache")
    BucketFileSystem.store.clear()
    BucketFileSystem.fail = None


def test_what_is_written_is_read_back_and_replaced_whole(storage: Storage) -> None:
    storage.write_atomic("facts/a.arrow", b"one")
    storage.write_atomic("facts/a.arrow", lambda file: file.write(b"second"))
    assert storage.read_bytes("facts/a.arrow") == b"second"
    assert storage.size("facts/a.arrow") == 6
    assert storage.exists("facts/a.arrow")
    assert not storage.exists("facts/b.arrow")
    assert storage.open_input("facts/a.arrow").read() == b"second"


def test_listing_is_sorted_relative_and_empty_for_a_folder_that_is_not_there(storage: Storage) -> None:
    for name in ("facts/b.arrow", "facts/a.arrow", "facts/deep/c.arrow", "vectors/a.arrow"):
        storage.write_atomic(name, b"x")
    assert storage.list("facts") == ["facts/a.arrow", "facts/b.arrow", "facts/deep/c.arrow"]
    assert storage.list("manifests") == []
    assert [(entry.path, entry.bytes) for entry in storage.entries("vectors")] == [("vectors/a.arrow", 1)]


def test_exclusive_creation_refuses_a_name_that_exists_and_leaves_its_content(storage: Storage) -> None:
    storage.create_exclusive("manifests/00000001.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("manifests/00000001.json", b"second")
    assert storage.read_bytes("manifests/00000001.json") == b"first"
    assert storage.temporaries("manifests") == ()


def test_of_many_threads_that_create_one_name_exactly_one_succeeds(memory_url: str) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        storage = Storage(memory_url)
        start.wait()
        for round_number in range(20):
            try:
                storage.create_exclusive(f"manifests/{round_number:08d}.json", str(number).encode())
            except FileExistsError:
                continue
            won.append(round_number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_a_writer_that_fails_halfway_leaves_the_old_file_and_nothing_beside_it(storage: Storage) -> None:
    storage.write_atomic("facts/a.arrow", b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        raise RuntimeError("the rest is missing")

    with pytest.raises(RuntimeError, match="the rest is missing"):
        storage.write_atomic("facts/a.arrow", half)
    assert storage.read_bytes("facts/a.arrow") == b"old"
    assert storage.list("facts") == ["facts/a.arrow"]
    assert storage.temporaries("facts") == ()


def test_temporary_files_of_dead_writers_are_listed_apart(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_atomic("facts/a.arrow", b"whole")
    (tmp_path / "facts" / "b.arrow.0123456789ab.tmp").write_bytes(b"half")
    assert storage.list("facts") == ["facts/a.arrow"]
    assert [entry.path for entry in storage.temporaries("facts")] == ["facts/b.arrow.0123456789ab.tmp"]


def test_deleting_twice_is_not_an_error_and_reading_what_is_not_there_names_the_file(storage: Storage) -> None:
    storage.write_atomic("facts/a.arrow", b"x")
    storage.delete("facts/a.arrow")
    storage.delete("facts/a.arrow")
    for read in (storage.read_bytes, storage.size, storage.open_input):
        with pytest.raises(FileNotFoundError, match=r"a.arrow"):
            read("facts/a.arrow")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "facts/../../x", "facts//x", "", ".", "facts/.", "a\\b", "a\0b"]
)
def test_no_path_leaves_the_memory(storage: Storage, path: str) -> None:
    for use in (storage.read_bytes, storage.exists, storage.delete, storage.list, storage.open_input):
        with pytest.raises(StorageFailed, match="inside the memory"):
            use(path)
    with pytest.raises(StorageFailed, match="inside the memory"):
        storage.write_atomic(path, b"x")


def test_a_relative_directory_becomes_absolute_so_that_workers_elsewhere_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("some/memory/").url == str(tmp_path / "some/memory")
    assert Storage(f"file://{tmp_path}/m").url == str(tmp_path / "m")


def test_a_storage_travels_to_another_process_whole(storage: Storage) -> None:
    storage.write_atomic("facts/a.arrow", b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.url, copy.list("facts"), copy.read_bytes("facts/a.arrow")) == (storage.url, ["facts/a.arrow"], b"x")


def test_a_link_that_leads_back_up_does_not_trap_a_listing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_atomic("facts/a.arrow", b"x")
    (tmp_path / "facts" / "loop").symlink_to(tmp_path)
    assert storage.list("facts") == ["facts/a.arrow"]


def test_open_input_maps_a_local_file_instead_of_reading_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_atomic("facts/a.arrow", b"x" * 4096)
    first, second = (storage.open_input("facts/a.arrow").read_buffer() for _ in range(2))
    assert first.address % 4096 == 0
    assert first.address != second.address  # two mappings of one file
    assert not first.is_mutable


REFUSALS = [
    (errno.ENOSPC, "create", "No space left on device; free some space"),
    (errno.ENOSPC, "sync", "No space left on device; free some space"),
    (errno.EDQUOT, "create", "quota"),
    (errno.EACCES, "mkdir", "Permission denied; give this user read and write rights"),
    (errno.EROFS, "create", "Read-only file system; choose a place"),
    (errno.EIO, "rename", "Input/output error; check that the storage can be reached"),
    (errno.EIO, "sync_dir", "Input/output error"),
]


@pytest.mark.parametrize(("code", "call", "message"), REFUSALS)
def test_a_refused_write_is_one_line_that_says_what_to_do(tmp_path: Path, code: int, call: str, message: str) -> None:
    storage = Storage(tmp_path / "memory", disk=RefusingDisk(code, call))
    with pytest.raises(StorageFailed, match=message) as caught:
        storage.write_atomic("facts/a.arrow", b"x")
    assert caught.value.errno == code
    assert str(tmp_path / "memory" / "facts" / "a.arrow") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Storage(tmp_path / "memory").temporaries("facts") == ()


@pytest.mark.parametrize(
    ("call", "use"), [("read", "read_bytes"), ("scan", "list"), ("stat", "size"), ("map", "open_input")]
)
def test_a_directory_without_read_rights_is_refused_with_the_way_out(tmp_path: Path, call: str, use: str) -> None:
    storage = Storage(tmp_path, disk=RefusingDisk(errno.EACCES, call))
    with pytest.raises(StorageFailed, match="Permission denied; give this user read and write rights"):
        getattr(storage, use)("facts/a.arrow")


def test_a_filesystem_without_hard_links_is_refused_with_the_alternatives(tmp_path: Path) -> None:
    storage = Storage(tmp_path, disk=RefusingDisk(errno.EOPNOTSUPP, "link"))
    with pytest.raises(StorageFailed, match="needs hard links there; use a local disk, NFS, or an object store"):
        storage.create_exclusive("manifests/00000001.json", b"x")
    assert storage.temporaries("manifests") == ()


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file")
    with pytest.raises(StorageFailed, match="choose a directory"):
        Storage(tmp_path / "memory").write_atomic("facts/a.arrow", b"x")


@pytest.mark.parametrize(
    ("url", "message"),
    [("nosuch://x/y", "Protocol not known"), ("", "is empty"), ("nosuch://me:secret@x/y", r"nosuch://\*\*\*@x/y")],
)
def test_a_url_that_cannot_be_opened_is_wrong_usage(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Storage(url)
    assert caught.value.exit_status == 2
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("sftp://me:secret@host/a", "sftp://***@host/a"),
        ("failed at https://token@host/a and ftp://u:p@ss@h/b", "failed at https://***@host/a and ftp://***@h/b"),
        ("sftp://me:sec/ret@host/a", "sftp://***@host/a"),
        (
            "http://host/a?sv=1&sig=abc%3D&X-Amz-Security-Token=t/+k",
            "http://host/a?sv=1&sig=***&X-Amz-Security-Token=***",
        ),
        ("http://127.0.0.1:9000/bucket refused", "http://127.0.0.1:9000/bucket refused"),
        ("/home/me@work/a", "/home/me@work/a"),
        ("s3://bucket/me@work", "s3://bucket/me@work"),
    ],
)
def test_credentials_are_redacted_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_credentials_never_reach_an_error_or_a_name_for_people(remote: Callable[[str], Storage]) -> None:
    def unreachable(path: str) -> None:
        raise ConnectionError(f"cannot reach bucket://me:secret@host{path}")

    storage = remote("bucket://me:secret@host/memory")
    storage.write_atomic("facts/a.arrow", b"x")
    BucketFileSystem.fail = unreachable
    with pytest.raises(StorageFailed, match="cannot reach") as caught:
        storage.open_input("facts/a.arrow")
    for text in (str(caught.value), repr(storage), storage.shown, storage.where("facts/a.arrow")):
        assert "secret" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(FileNotFoundError) as missing:
        storage.read_bytes("facts/b.arrow")
    assert "secret" not in str(missing.value)


@pytest.mark.parametrize("url", ["bucket://host/memory", "server://host/memory"])
def test_remote_files_are_whole_exclusive_and_listed_like_local_ones(
    remote: Callable[[str], Storage], url: str
) -> None:
    storage = remote(url)
    storage.write_atomic("facts/a.arrow", lambda file: file.write(b"remote"))
    assert storage.list("facts") == ["facts/a.arrow"]
    assert storage.read_bytes("facts/a.arrow") == b"remote"
    assert storage.temporaries("facts") == ()
    storage.create_exclusive("manifests/00000001.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("manifests/00000001.json", b"second")
    assert storage.read_bytes("manifests/00000001.json") == b"first"


def test_a_remote_writer_that_fails_halfway_uploads_nothing(remote: Callable[[str], Storage]) -> None:
    def half(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("the rest is missing")

    storage = remote("bucket://host/memory")
    with pytest.raises(RuntimeError, match="the rest is missing"):
        storage.write_atomic("facts/a.arrow", half)
    assert not storage.exists("facts/a.arrow")


def test_a_remote_file_is_fetched_once_and_again_after_it_was_forgotten_or_rewritten(
    remote: Callable[[str], Storage],
) -> None:
    fetched: list[str] = []
    BucketFileSystem.fail = fetched.append
    storage = remote("bucket://host/memory")
    storage.write_atomic("facts/a.arrow", b"one")
    assert [storage.open_input("facts/a.arrow").read() for _ in range(3)] == [b"one"] * 3
    assert len(fetched) == 1
    storage.forget("facts/a.arrow")
    assert storage.open_input("facts/a.arrow").read() == b"one"
    storage.write_atomic("facts/a.arrow", b"two")
    assert storage.open_input("facts/a.arrow").read() == b"two"
    assert len(fetched) == 3
    storage.delete("facts/a.arrow")
    with pytest.raises(FileNotFoundError):
        storage.open_input("facts/a.arrow")


def test_a_driver_with_errors_of_its_own_still_gives_one_helpful_line(remote: Callable[[str], Storage]) -> None:
    class DriverError(Exception):
        pass

    def fail(path: str) -> None:
        raise DriverError("no\n  credentials")

    storage = remote("bucket://host/memory")
    storage.write_atomic("facts/a.arrow", b"x")
    BucketFileSystem.fail = fail
    with pytest.raises(StorageFailed, match="DriverError: no credentials; check that the storage can be reached"):
        storage.open_input("facts/a.arrow")
