"""Files of raw data on any fsspec filesystem: found, opened decompressed, cut into segments of whole lines."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from memory_store.errors import HmnError, InputError
from memory_store.storage import redact

__all__ = [
    "MAX_LINE_BYTES",
    "SEGMENT_BYTES",
    "Segment",
    "SourceFile",
    "cut_segments",
    "find_files",
    "open_stream",
    "read_segment",
]

SEGMENT_BYTES = 16 * 2**20
"""Decompressed bytes that are parsed at once: what one piece of work holds in memory, a few times over."""

MAX_LINE_BYTES = 8 * 2**20
"""A longer line is no data; it is rejected without ever being held whole."""

_CODECS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_DATA_SUFFIXES = {".tsv", ".txt", ".tab", ".csv", ".jsonl", ".ndjson", ".parquet", ".pq", ".nt", ".ntriples"}
_VERSION_KEYS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
_NOT_DATA = re.compile(r"[._]|(readme|licen[cs]e|copying|changelog|notice)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of raw data. version: whatever its filesystem says changes when the file does."""

    url: str
    bytes: int
    version: str

    @property
    def shown(self) -> str:
        """The name for people: no credentials."""
        return redact(self.url)

    @property
    def codec(self) -> str | None:
        """How the file is compressed ("gzip", "zstd"), by its name."""
        return _CODECS.get(PurePosixPath(self.url).suffix.lower())

    @property
    def suffix(self) -> str:
        """What kind of data the name promises: ".tsv" for facts.tsv.gz, "" if it has no suffix."""
        path = PurePosixPath(self.url)
        return (PurePosixPath(path.stem).suffix if self.codec else path.suffix).lower()

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Whole lines of a text file. cut_short: the last line is longer than MAX_LINE_BYTES and its end is missing."""

    index: int
    data: bytes
    cut_short: bool = False


def find_files(source: str) -> list[SourceFile]:
    """The data files that a path, glob, directory or URL names, sorted by name.

    A directory means the files in it whose names end like data (also .gz and .zst); read-me files are left out.
    InputError if there is nothing.
    """
    with _explained(source):
        filesystem, path = fsspec.core.url_to_fs(source)
        if any(char in path for char in "*?["):
            found = [info for info in filesystem.glob(path, detail=True).values() if info["type"] == "file"]
            chosen = [info for info in found if not _NOT_DATA.match(PurePosixPath(info["name"]).name)]
        elif filesystem.isdir(path):
            found = [info for info in filesystem.ls(path, detail=True) if info["type"] == "file"]
            chosen = [info for info in found if _looks_like_data(PurePosixPath(info["name"]).name)]
        else:
            found = chosen = [filesystem.info(path)]
    if not chosen:
        ends = ", ".join(sorted(_DATA_SUFFIXES))
        raise InputError(f"no data files at {redact(source)}; expected files that end in {ends}, plain, .gz or .zst")
    files = [_source_file(filesystem, info) for info in chosen]
    return sorted(files, key=lambda file: file.url)


@contextmanager
def open_stream(file: SourceFile) -> Iterator[pa.NativeFile]:
    """The decompressed bytes of a file. A file that is damaged or cut short is an InputError that says so."""
    with _explained(file.url), fsspec.open(file.url, "rb") as raw:
        native = pa.PythonFile(raw, mode="r")
        yield pa.CompressedInputStream(native, file.codec) if file.codec else native


def cut_segments(file: SourceFile, wanted: Callable[[int], bool], segment_bytes: int) -> Iterator[Segment]:
    """The wanted segments of a file; segment i holds the lines that start at byte i * segment_bytes or later.

    Counts decompressed bytes, so that the cut is the same for every reader. An uncompressed file is entered at any
    segment (see `read_segment`); a compressed one is decompressed from its start, which costs little beside parsing.
    """
    with open_stream(file) as stream:
        index, starts_line = 0, True
        block = _read_fully(stream, segment_bytes)
        while block:
            following = _read_fully(stream, segment_bytes)
            if wanted(index):
                yield _segment(index, starts_line, block, following, segment_bytes)
            starts_line = block.endswith(b"\n")
            index, block = index + 1, following


def read_segment(file: SourceFile, index: int, segment_bytes: int) -> Segment:
    """One segment of an uncompressed file, without reading what stands before it."""
    start = index * segment_bytes
    with _explained(file.url), fsspec.open(file.url, "rb") as raw:
        raw.seek(max(start - 1, 0))
        before = raw.read(1) if start else b"\n"
        block = raw.read(segment_bytes)
        following = b"" if block.endswith(b"\n") else raw.read(min(MAX_LINE_BYTES, segment_bytes))
    return _segment(index, before == b"\n", block, following, segment_bytes)


def _segment(index: int, starts_line: bool, block: bytes, following: bytes, segment_bytes: int) -> Segment:
    start = 0 if starts_line else block.find(b"\n") + 1
    if start == 0 and not starts_line:  # the whole block is the middle of one line
        return Segment(index=index, data=b"")
    if block.endswith(b"\n"):
        return Segment(index=index, data=block[start:])
    longest = min(MAX_LINE_BYTES, segment_bytes)
    end = following.find(b"\n")
    if end < 0 and len(following) < longest:  # the file ends here, without a newline
        end = len(following)
    if end < 0 or len(block) - block.rfind(b"\n") - 1 + end > longest:
        return Segment(index=index, data=block[start:], cut_short=True)
    return Segment(index=index, data=block[start:] + following[: end + 1])


def _read_fully(stream: pa.NativeFile, wanted_bytes: int) -> bytes:
    """Decompressors return what they have; a segment needs all it asked for, except at the end of the file."""
    pieces = []
    while wanted_bytes > 0 and (piece := stream.read(wanted_bytes)):
        pieces.append(piece)
        wanted_bytes -= len(piece)
    return b"".join(pieces)


def _looks_like_data(name: str) -> bool:
    path = PurePosixPath(name)
    if path.suffix.lower() in _CODECS:
        path = PurePosixPath(path.stem)
    return path.suffix.lower() in _DATA_SUFFIXES and not _NOT_DATA.match(name)


def _source_file(filesystem: Any, info: dict[str, Any]) -> SourceFile:
    version = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None), "")
    return SourceFile(
        url=filesystem.unstrip_protocol(info["name"]).removeprefix("file://"),
        bytes=int(info["size"] or 0),
        version=version,
    )


@contextmanager
def _explained(source: str) -> Iterator[None]:
    shown = redact(source)
    try:
        yield
    except HmnError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {shown}; check the path") from None
    except PermissionError:
        raise InputError(f"cannot read {shown}: permission denied; give this user the right to read it") from None
    except EOFError:
        raise InputError(f"{shown} is cut short; copy or download it again") from None
    except (OSError, ValueError, ImportError) as error:
        text = redact(str(error))
        if "Truncated" in text:
            raise InputError(f"{shown} is cut short; copy or download it again") from None
        if "inflate" in text or "decompress" in text:
            raise InputError(f"{shown} is damaged or not compressed ({text}); copy or download it again") from None
        raise InputError(f"cannot read {shown}: {text}") from None
