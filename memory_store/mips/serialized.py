"""What faiss writes of an index, in an array of the right size: growing one by doubling would take twice the memory."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["serialized", "serialized_bytes"]

_BYTES_AT_ONCE = 2**20


def serialized_bytes(index: Any) -> int:
    """How many bytes `serialized` returns; nothing is kept of them."""
    total = 0

    def count(piece: bytes) -> None:
        nonlocal total
        total += len(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count, _BYTES_AT_ONCE))
    return total


def serialized(index: Any) -> NDArray[np.uint8]:
    """The bytes that faiss.deserialize_index makes the index of again: plain data, no code."""
    data = np.empty(serialized_bytes(index), dtype=np.uint8)
    written = 0

    def put(piece: bytes) -> None:
        nonlocal written
        data[written : written + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        written += len(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(put, _BYTES_AT_ONCE))
    return data
