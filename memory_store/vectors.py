"""What vectors a memory accepts: shape, type, finite values; and the largest norm among them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import ConfigError, DimensionMismatch, InvalidVectors

# N rows, D dimension

__all__ = ["DTYPES", "StoredVectors", "dtype_name", "max_norm", "stored_vectors", "widened"]

StoredVectors = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
"""float32, float16, or the bits of bfloat16, which numpy has no type for: the upper half of a float32."""

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
_NAMES = {held: name for name, held in DTYPES.items()}

_BLOCK_VALUES = 1 << 18  # blocks of 1 MiB stay in the processor's cache


def stored_vectors(vectors: ArrayLike, dim: int, dtype: str) -> StoredVectors:
    """The vectors [N, dim] as they will be stored: C-contiguous, of the memory's dtype; no copy if they are so already.

    Raises DimensionMismatch for another width, InvalidVectors for other shapes and types. Does not look at values:
    max_norm does.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"expected dtype float32, float16 or bfloat16, found {dtype!r}")
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise InvalidVectors(f"expected vectors of float32, found {array.dtype}; convert them")
    if array.ndim != 2:
        raise InvalidVectors(f"expected vectors of shape [n, {dim}], found {list(array.shape)}; reshape them")
    if array.shape[1] != dim:
        raise DimensionMismatch(f"expected vectors of dimension {dim}, found {array.shape[1]}; embed with one encoder")
    with np.errstate(over="ignore"):  # overflow becomes infinity, which max_norm refuses with its row
        if dtype == "bfloat16":
            return _bfloat16_bits(np.ascontiguousarray(array, dtype=np.float32))
        return np.ascontiguousarray(array, dtype=DTYPES[dtype])


def dtype_name(vectors_ND: StoredVectors) -> str:
    """What the manifest calls the type of stored vectors."""
    return _NAMES[vectors_ND.dtype]


def widened(vectors_ND: StoredVectors) -> NDArray[np.float32]:
    """The stored values as float32, each exactly; no copy if they are so already."""
    if vectors_ND.dtype == np.uint16:
        wide_ND: NDArray[np.float32] = np.left_shift(vectors_ND, np.uint32(16), dtype=np.uint32).view(np.float32)
        return wide_ND
    return vectors_ND.astype(np.float32, copy=False)


def _bfloat16_bits(values_ND: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even; what lies beyond the largest becomes infinite."""
    bits_ND = values_ND.view(np.uint32)
    half_ND = np.uint32(0x7FFF) + ((bits_ND >> np.uint32(16)) & np.uint32(1))
    rounded_ND: NDArray[np.uint16] = ((bits_ND + half_ND) >> np.uint32(16)).astype(np.uint16)
    rounded_ND[np.isnan(values_ND)] = 0x7FC0  # rounding could carry a NaN into the sign
    return rounded_ND


def max_norm(vectors_ND: StoredVectors, fact_ids_N: NDArray[np.int64] | None = None) -> float:
    """The largest L2 norm, computed in float64; 0.0 for no rows.

    NaN or infinity raises InvalidVectors naming the first such row, and its fact id where the ids are given.
    """
    rows, dim = vectors_ND.shape
    block_rows = max(1, _BLOCK_VALUES // max(1, dim))
    largest = 0.0
    for start in range(0, rows, block_rows):
        block_ND = widened(vectors_ND[start : start + block_rows])
        squares_N = np.einsum("nd,nd->n", block_ND, block_ND, dtype=np.float64)
        # No float32 value overflows when squared in float64, so a sum that is not finite means a value that is not.
        if not np.isfinite(squares_N).all():
            row = int(np.flatnonzero(~np.isfinite(squares_N))[0])
            bad = block_ND[row][~np.isfinite(block_ND[row])][0]
            fact = "" if fact_ids_N is None else f", fact id {fact_ids_N[start + row]}"
            raise InvalidVectors(
                f"expected finite {dtype_name(vectors_ND)} values, found {bad} in row {start + row}{fact}; "
                "fix the encoder or leave the fact out"
            )
        largest = max(largest, float(squares_N.max()))
    return float(np.sqrt(largest))
