"""The only file that knows fsspec: atomic and exclusive writes, mapped reads, a local cache, errors that help."""

import errno
import hashlib
import inspect
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from memory_store.disk import TEMPORARY_SUFFIX, Disk, Entry, LocalFiles, WriteInto
from memory_store.errors import ConfigError, HmnError, StorageFailed

__all__ = ["Storage", "default_cache_dir", "redact"]

_ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space or raise the quota, and run again",
    errno.EACCES: "give this user read and write rights there, or choose another place",
    errno.EPERM: "give this user read and write rights there, or choose another place",
    errno.EROFS: "choose a place that is not mounted read-only",
    errno.ENOTDIR: "a part of the path is a file; choose a directory",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

# Object stores show a new object whole or not at all; other remote filesystems get a temporary name and a move.
_WHOLE_OBJECT_PROTOCOLS = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}

_MODIFIED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "created")

# memory:// checks for a file and stores it in two steps; nobody outside this process can see that store.
_IN_PROCESS_CREATE = threading.Lock()


class _Files(Protocol):
    """What a place must offer; LocalFiles and _RemoteFiles do."""

    def read_bytes(self, path: str) -> bytes: ...
    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def write(self, path: str, fill: WriteInto) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...
    def sync(self, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def open_input(self, path: str) -> pa.NativeFile: ...
    def forget(self, path: str) -> None: ...


def redact(text: str) -> str:
    """The text with the user and password of every URL replaced by ***."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def default_cache_dir() -> Path:
    """Where parts of remote memories are kept for mapping: $XDG_CACHE_HOME/hmn, or ~/.cache/hmn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmn"


class Storage:
    """The files of one memory, named by paths relative to its URL.

    FileNotFoundError and FileExistsError are answers and pass through; every other failure becomes StorageFailed with
    one line that says what to do. Credentials in the URL never reach a message: use `shown` where a person reads it.
    """

    def __init__(self, url: str | os.PathLike[str], *, disk: Disk | None = None, cache_dir: Path | None = None) -> None:
        text = os.fspath(url)
        if not text:
            raise ConfigError("the URL of a memory is empty; give a directory or a URL such as s3://bucket/memory")
        try:
            filesystem, root = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"cannot open {redact(text)}: {redact(str(error))}; give a directory or a URL") from None
        self._files: _Files
        if isinstance(filesystem, LocalFileSystem):
            self.url = root  # absolute, so that workers in other directories open the same memory
            self._files = LocalFiles(Path(root), disk or Disk())
        else:
            self.url = text.rstrip("/")
            self._files = _RemoteFiles(filesystem, root.rstrip("/"), cache_dir or default_cache_dir(), self.url)
        self.shown = redact(self.url)

    def __repr__(self) -> str:
        return f"Storage({self.shown!r})"

    def where(self, path: str) -> str:
        """The full name of a file, for people: no credentials."""
        return f"{self.shown}/{path}"

    def read_bytes(self, path: str) -> bytes:
        with self._explained("read", path):
            return self._files.read_bytes(_inside(path))

    def exists(self, path: str) -> bool:
        with self._explained("look for", path):
            return self._files.exists(_inside(path))

    def size(self, path: str) -> int:
        """Bytes; FileNotFoundError if it is not there."""
        with self._explained("look at", path):
            return self._files.size(_inside(path))

    def entries(self, prefix: str) -> tuple[Entry, ...]:
        """Every finished file in the folder and below, sorted by path; none if there is no such folder."""
        return tuple(entry for entry in self._all_entries(prefix) if not entry.path.endswith(TEMPORARY_SUFFIX))

    def temporaries(self, prefix: str) -> tuple[Entry, ...]:
        """Unfinished files: of writers at work now, or of writers that died."""
        return tuple(entry for entry in self._all_entries(prefix) if entry.path.endswith(TEMPORARY_SUFFIX))

    def write_atomic(self, path: str, write: WriteInto | bytes) -> None:
        """Write a file that readers see whole or not at all, durable on return; replaces a file of that name.

        write: the bytes, or a function that writes them into the open binary file it is given.
        """
        content = write
        fill: WriteInto = (lambda file: file.write(content)) if isinstance(content, bytes) else content
        with self._explained("write", path):
            self._files.write(_inside(path), fill)

    def create_exclusive(self, path: str, data: bytes) -> None:
        """Write a file that must not exist yet: FileExistsError if it does. Visible whole or not at all.

        Where a filesystem offers no such operation (neither hard links nor fsspec's mode="create") the check and the
        write are two steps, and the memory must have one writer at a time.
        """
        with self._explained("create", path):
            self._files.create(_inside(path), data)

    def sync(self, path: str) -> None:
        """Make sure that an existing file and its name survive a power loss."""
        with self._explained("sync", path):
            self._files.sync(_inside(path))

    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is not an error."""
        with self._explained("delete", path):
            self._files.delete(_inside(path))

    def open_input(self, path: str) -> pa.NativeFile:
        """The file mapped into memory: from the local disk itself, from the local cache of a remote memory."""
        with self._explained("open", path):
            return self._files.open_input(_inside(path))

    def forget(self, path: str) -> None:
        """Drop the cached copy of a remote file, so that the next open_input fetches it again."""
        with self._explained("forget", path):
            self._files.forget(_inside(path))

    def list(self, prefix: str) -> list[str]:
        """The paths of every finished file in the folder and below, sorted, relative to the memory."""
        return [entry.path for entry in self.entries(prefix)]

    def _all_entries(self, prefix: str) -> Iterable[Entry]:
        with self._explained("list", prefix):
            return sorted(self._files.entries(_inside(prefix)), key=lambda entry: entry.path)

    @contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such file", self.where(path)) from None
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, "the file exists", self.where(path)) from None
        except HmnError:
            raise
        except OSError as error:
            raise self._failure(action, path, error) from None

    def _failure(self, action: str, path: str, error: OSError) -> StorageFailed:
        reason = redact(error.strerror or str(error) or type(error).__name__)
        advice = _ADVICE.get(error.errno or 0, "check that the storage can be reached, and run again")
        if action == "create" and error.errno in _NO_LINKS:
            advice = "committing needs hard links there; use a local disk, NFS, or an object store URL such as s3://"
        failure = StorageFailed(f"cannot {action} {self.where(path)}: {reason}; {advice}")
        failure.errno = error.errno
        return failure


class _RemoteFiles:
    """Files of any fsspec filesystem that is not the local disk."""

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
            with _driver_errors():
                self._fs.pipe_file(self._full(path), buffer.getvalue())
            return
        # Closing an fsspec file after an error uploads half of it, so the file is finished here before it leaves.
        with tempfile.TemporaryDirectory(prefix="hmn-") as folder:
            spool = Path(folder) / "part"
            with spool.open("wb") as file:
                fill(file)
            with _driver_errors():
                if _WHOLE_OBJECT_PROTOCOLS & _protocols(self._fs):
                    self._fs.put_file(str(spool), self._full(path))
                else:
                    temporary = f"{self._full(path)}.{uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
                    self._fs.makedirs(temporary.rpartition("/")[0], exist_ok=True)
                    self._fs.put_file(str(spool), temporary)
                    self._fs.mv(temporary, self._full(path))
        self.forget(path)

    def create(self, path: str, data: bytes) -> None:
        with _driver_errors():
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
            data = self.read_bytes(path)
            aligned = pa.allocate_buffer(len(data))  # to 64 bytes, which Python's own bytes are not
            pa.FixedSizeBufferWriter(aligned).write(data)
            return pa.BufferReader(aligned)
        cached = self._cache / path
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            temporary = cached.with_name(f"{cached.name}.{uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
            try:
                with _driver_errors():
                    self._fs.get_file(self._full(path), str(temporary))
                temporary.replace(cached)
            finally:
                temporary.unlink(missing_ok=True)
        return pa.memory_map(str(cached), "r")

    def forget(self, path: str) -> None:
        (self._cache / path).unlink(missing_ok=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


@contextmanager
def _driver_errors() -> Iterator[None]:
    """Drivers raise errors of their own (botocore, aiohttp, ...); Storage understands OSError."""
    try:
        yield
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


def _inside(path: str) -> str:
    """Paths come from manifests too, which anyone may have written: none may leave the memory."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise StorageFailed(
            f"expected a path inside the memory, found {path!r}; the manifest that names it is not ours"
        )
    return path
