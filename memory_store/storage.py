"""The files of one memory: atomic and exclusive writes, mapped reads, and errors that say what to do."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from memory_store.disk import TEMPORARY_SUFFIX, Disk, Entry, LocalFiles, WriteInto
from memory_store.errors import ConfigError, HmnError, StorageFailed
from memory_store.redaction import redact
from memory_store.remote import RemoteFiles, default_cache_dir, resolve

__all__ = ["Storage", "redact"]

_ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space or raise the quota, and run again",
    errno.EACCES: "give this user read and write rights there, or choose another place",
    errno.EPERM: "give this user read and write rights there, or choose another place",
    errno.EROFS: "choose a place that is not mounted read-only",
    errno.ENOTDIR: "a part of the path is a file; choose a directory",
    errno.ENODEV: "create it, or check the URL",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class _Files(Protocol):
    """What a place must offer; LocalFiles and RemoteFiles do."""

    def read_bytes(self, path: str) -> bytes: ...
    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def write(self, path: str, fill: WriteInto) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...
    def sync(self, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def open_input(self, path: str) -> pa.NativeFile: ...
    def open_stored(self, path: str) -> pa.NativeFile: ...
    def cached_bytes(self, path: str) -> bytes | None: ...
    def forget(self, path: str) -> None: ...


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
            filesystem, root = resolve(text)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"cannot open {redact(text)}: {redact(str(error))}; give a directory or a URL") from None
        self._files: _Files
        if filesystem is None:
            self.url: str = root  # absolute, so that workers in other directories open the same memory
            self._files = LocalFiles(Path(root), disk or Disk())
        else:
            self.url = text.rstrip("/")
            self._files = RemoteFiles(filesystem, root, cache_dir or default_cache_dir(), self.url)
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

    def open_stored(self, path: str) -> pa.NativeFile:
        """The same, but of a remote memory what it holds now, fetched for this call alone."""
        with self._explained("open", path):
            return self._files.open_stored(_inside(path))

    def cached_bytes(self, path: str) -> bytes | None:
        """What the local cache of a remote memory holds of a file, which may be gone or damaged there."""
        with self._explained("read the cached copy of", path):
            return self._files.cached_bytes(_inside(path))

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
        reason = " ".join(redact(error.strerror or str(error) or type(error).__name__).split())
        advice = _ADVICE.get(error.errno or 0, "check that the storage can be reached, and run again")
        if action == "create" and error.errno in _NO_LINKS:
            advice = "committing needs hard links there; use a local disk, NFS, or an object store URL such as s3://"
        failure = StorageFailed(f"cannot {action} {self.where(path)}: {reason}; {advice}")
        failure.errno = error.errno
        return failure


def _inside(path: str) -> str:
    """Paths come from manifests too, which anyone may have written: none may leave the memory."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise StorageFailed(
            f"expected a path inside the memory, found {path!r}; the manifest that names it is not ours"
        )
    return path
