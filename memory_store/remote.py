"""The only file of the memory store that knows fsspec: remote files, and the local cache they are mapped from."""

import errno
import hashlib
import inspect
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from memory_store.disk import TEMPORARY_SUFFIX, Entry, WriteInto
from memory_store.errors import HmnError
from memory_store.mapped_files import map_file

__all__ = ["RemoteFiles", "default_cache_dir", "resolve"]

# Object stores show a new object whole or not at all; other remote filesystems get a temporary name and a move.
_WHOLE_OBJECT_PROTOCOLS = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}

_MODIFIED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "created")

# memory:// checks for a file and stores it in two steps; nobody outside this process can see that store.
_IN_PROCESS_CREATE = threading.Lock()


def resolve(url: str) -> tuple[AbstractFileSystem | None, str]:
    """The filesystem of a URL and the root within it; None and an absolute path for the local disk.

    ValueError for an unknown protocol, ImportError for a driver that is not installed.
    """
    filesystem, root = fsspec.core.url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return None, root
    return filesystem, root.rstrip("/")


def default_cache_dir() -> Path:
    """Where parts of remote memories are kept for mapping: $XDG_CACHE_HOME/hmn, or ~/.cache/hmn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmn"


class RemoteFiles:
    """Files below one root of a fsspec filesystem. Raises OSError; Storage explains it."""

    def __init__(self, filesystem: AbstractFileSystem, root: str, cache_dir: Path, url: str) -> None:
        self._fs = filesystem
        self._root = root
        self._in_process = "memory" in _protocols(filesystem)
        self._cache = cache_dir / hashlib.sha256(url.encode()).hexdigest()[:16]

    def read_bytes(self, path: str) -> bytes:
        with _driver_errors():
            return cast(bytes, self._fs.cat_file(self._full(path)))

    def exists(self, path: str) -> bool:
        with _driver_errors():
            self._fs.invalidate_cache()  # listings may be cached, and other writers exist
            return bool(self._fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        with _driver_errors():
            self._fs.invalidate_cache()
            return int(self._fs.info(self._full(path))["size"])

    def entries(self, prefix: str) -> Iterator[Entry]:
        with _driver_errors():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._full(prefix), detail=True)
            except FileNotFoundError:
                return
            for name, info in found.items():
                path = name[name.index(self._root) + len(self._root) :].lstrip("/")
                yield Entry(path=path, bytes=int(info["size"]), modified_s=_modified_s(info))

    def write(self, path: str, fill: WriteInto) -> None:
        if self._in_process:
            buffer = BytesIO()
            fill(buffer)
            with _driver_errors(writing=True):
                self._fs.pipe_file(self._full(path), buffer.getvalue())
            return
        # Closing an fsspec file after an error uploads half of it, so the file is finished here before it leaves.
        with tempfile.TemporaryDirectory(prefix="hmn-") as folder:
            spool = Path(folder) / "part"
            with spool.open("wb") as file:
                fill(file)
            with _driver_errors(writing=True):
                if _WHOLE_OBJECT_PROTOCOLS & _protocols(self._fs):
                    self._fs.put_file(str(spool), self._full(path))
                else:
                    temporary = f"{self._full(path)}.{uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
                    self._fs.makedirs(temporary.rpartition("/")[0], exist_ok=True)
                    self._fs.put_file(str(spool), temporary)
                    self._fs.mv(temporary, self._full(path))
        self.forget(path)

    def create(self, path: str, data: bytes) -> None:
        with _driver_errors(writing=True):
            if self._in_process:
                with _IN_PROCESS_CREATE:
                    self._fs.pipe_file(self._full(path), data, mode="create")
            elif _creates_exclusively(self._fs):
                self._fs.pipe_file(self._full(path), data, mode="create")
            elif self.exists(path):
                raise FileExistsError(path)
            else:
                self.write(path, lambda file: file.write(data))

    def sync(self, path: str) -> None:
        """Remote filesystems acknowledge only what they hold."""

    def delete(self, path: str) -> None:
        self.forget(path)
        with _driver_errors():
            try:
                self._fs.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def open_input(self, path: str) -> pa.NativeFile:
        if self._in_process:
            return self._aligned(path)
        cached = self._cache / path
        if not cached.exists():
            with self._fetched(path) as fetched:
                fetched.replace(cached)
        return map_file(cached)

    def open_stored(self, path: str) -> pa.NativeFile:
        if self._in_process:
            return self._aligned(path)
        with self._fetched(path) as fetched:
            return map_file(fetched)  # what is mapped stays until it is let go, without a name

    @contextmanager
    def _fetched(self, path: str) -> Iterator[Path]:
        """A copy beside those that are kept; gone at the end unless it was given a name."""
        cached = self._cache / path
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f"{cached.name}.{uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
        try:
            with _driver_errors():
                self._fs.get_file(self._full(path), str(temporary))
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _aligned(self, path: str) -> pa.NativeFile:
        data = self.read_bytes(path)
        aligned = pa.allocate_buffer(len(data))  # to 64 bytes, which Python's own bytes are not
        pa.FixedSizeBufferWriter(aligned).write(data)
        return pa.BufferReader(aligned)

    def cached_bytes(self, path: str) -> bytes | None:
        """The copy of a file that is kept here, whatever the filesystem holds now."""
        try:
            return (self._cache / path).read_bytes()
        except FileNotFoundError:
            return None

    def forget(self, path: str) -> None:
        (self._cache / path).unlink(missing_ok=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


@contextmanager
def _driver_errors(*, writing: bool = False) -> Iterator[None]:
    """Drivers raise errors of their own (botocore, aiohttp, ...); Storage understands OSError.

    writing: what is not found is then where to write, and not a file.
    """
    try:
        yield
    except FileNotFoundError:
        if writing:
            raise OSError(errno.ENODEV, "there is no such bucket or container") from None
        raise
    except (OSError, HmnError):
        raise
    except Exception as error:  # noqa: BLE001 - no driver shares a base class with another
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from None


def _creates_exclusively(filesystem: AbstractFileSystem) -> bool:
    """Whether the driver itself honours mode="create"; the base class only checks and then writes."""
    method: Any = getattr(filesystem, "_pipe_file", None) or filesystem.pipe_file
    if getattr(method, "__func__", None) is AbstractFileSystem.pipe_file:
        return False
    return "mode" in inspect.signature(method).parameters


def _protocols(filesystem: AbstractFileSystem) -> set[str]:
    protocol = filesystem.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _modified_s(info: dict[str, Any]) -> float | None:
    for key in _MODIFIED_KEYS:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).timestamp()
            except ValueError:
                continue
    return None
