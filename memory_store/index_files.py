"""Built indexes, saved beside the parts they are over and read again instead of being built again."""

import json
import logging
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, StorageFailed
from memory_store.index_names import index_name
from memory_store.mips.base import IndexSpec, MipsIndex, SavedArrays, ShardVectors, parse_index
from memory_store.mips.registry import INDEXES, build_index
from memory_store.storage import Storage

__all__ = ["IndexedRows", "index_path", "open_index"]

# Part of every file's name. To be raised whenever an index is built or read in another way: older files are then left
# to `sweep`, and indexes are built anew.
_FORMAT_VERSION = 2
_CHECKSUM_BYTES = 16
_ALIGNMENT = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IndexedRows:
    """Which rows an index is over: (checksum of a part, first row, end) for each slice, in order.

    main: the name of the main parts that they are of. An upsert or a delete leaves it as it is, so that a shard that
    starts after it reads the index that was saved before.
    """

    main: str
    slices: tuple[tuple[str, int, int], ...]


def index_path(text: str, rows: IndexedRows) -> str:
    """Where the index of this name over these rows is kept; options that only searches use make no difference."""
    spec = parse_index(text, INDEXES)
    searching = INDEXES[spec.name].search_options
    building = sorted((option, value) for option, value in spec.options.items() if option not in searching)
    key = json.dumps([_FORMAT_VERSION, spec.name, spec.argument, building, rows.slices])
    return index_name(rows.main, xxhash.xxh3_128_hexdigest(key.encode()))


def open_index(storage: Storage, text: str, vectors: ShardVectors, threads: int, rows: IndexedRows) -> MipsIndex:
    """The index over these rows: read if it was saved, else built and saved.

    A file that is damaged, or that this version cannot read, is built anew with a warning in the log, and so is one
    that cannot be written: neither ever changes an answer.
    """
    spec = parse_index(text, INDEXES)
    if INDEXES[spec.name].restore is None:
        return build_index(text, vectors, threads)
    path = index_path(text, rows)
    found = _restored(storage, path, spec, vectors, threads)
    if found is not None:
        return found
    built = build_index(text, vectors, threads)
    arrays: SavedArrays | None = getattr(built, "saved_arrays", None)
    if arrays is not None:
        try:
            storage.write_atomic(path, lambda file: _write(file, arrays))
        except StorageFailed as failed:
            _log.warning("the index is not saved and will be built again: %s", failed)
    return built


def _restored(storage: Storage, path: str, spec: IndexSpec, vectors: ShardVectors, threads: int) -> MipsIndex | None:
    restore = INDEXES[spec.name].restore
    assert restore is not None
    try:
        return restore(vectors, spec, threads, _read(storage, path))
    except FileNotFoundError:
        return None
    except (CorruptFile, StorageFailed, KeyError, RuntimeError, ValueError) as failed:
        _log.warning("the index is built again: %s: %s", storage.where(path), failed)
        storage.forget(path)
        return None


def _write(file: BinaryIO, arrays: SavedArrays) -> None:
    """As in safetensors: 8 bytes of header length, a JSON header, the raw arrays; and then the checksum of it all."""
    header: dict[str, Any] = {"__metadata__": {"format": "hmn-index", "format_version": str(_FORMAT_VERSION)}}
    pieces: list[Any] = []
    offset = 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        header[name] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + raw.nbytes],
        }
        padding = np.zeros(-raw.nbytes % _ALIGNMENT, dtype=np.uint8)
        pieces += [raw.data, padding.data]
        offset += raw.nbytes + padding.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-(len(head) + 8) % _ALIGNMENT)
    digest = xxhash.xxh3_128()
    for piece in (struct.pack("<Q", len(head)), head, *pieces):
        digest.update(piece)
        file.write(piece)
    file.write(digest.digest())


def _read(storage: Storage, path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file, as read-only views of the mapped bytes. Raises FileNotFoundError, CorruptFile."""
    with storage.open_input(path) as file:
        data = np.frombuffer(file.read_buffer(), dtype=np.uint8)
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:].tobytes()
    if len(body) < 8 or xxhash.xxh3_128_digest(body.data) != checksum:
        raise CorruptFile(f"expected {len(data):,} bytes with their checksum at the end, found others")
    start = 8 + struct.unpack("<Q", body[:8].tobytes())[0]
    header = json.loads(body[8:start].tobytes())
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            found[name] = body[start + first : start + end].view(np.dtype(about["dtype"])).reshape(about["shape"])
    return found
