"""What vectors a memory accepts: shape, type, finite values; and the largest norm among them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import ConfigError, DimensionMismatch, InvalidVectors

# N rows, D dimension

__all__ = ["DTYPES", "StoredVectors", "max_norm", "stored_vectors"]

StoredVectors = NDArray[np.float32] | NDArray[np.float16]

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}

_BLOCK_VALUES = 1 << 17  # float64 blocks of 1 MiB stay in the processor's cache


def stored_vectors(vectors: ArrayLike, dim: int, dtype: str) -> StoredVectors:
    """The vectors [N, dim] as they will be stored: C-contiguous, of the memory's dtype; no copy if they are so already.

    Raises DimensionMismatch for another width, InvalidVectors for other shapes and types. Does not look at values:
    max_norm does.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"expected dtype float32 or float16, found {dtype!r}")
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise InvalidVectors(f"expected vectors of float32, found {array.dtype}; convert them")
    if array.ndim != 2:
        raise InvalidVectors(f"expected vectors of shape [n, {dim}], found {list(array.shape)}; reshape them")
    if array.shape[1] != dim:
        raise DimensionMismatch(f"expected vectors of dimension {dim}, found {array.shape[1]}; embed with one encoder")
    with np.errstate(over="ignore"):  # overflow becomes infinity, which max_norm refuses with its row
        return np.ascontiguousarray(array, dtype=DTYPES[dtype])


def max_norm(vectors_ND: StoredVectors, fact_ids_N: NDArray[np.int64] | None = None) -> float:
    """The largest L2 norm, computed in float64; 0.0 for no rows.

    NaN or infinity raises InvalidVectors naming the first such row, and its fact id where the ids are given.
    """
    rows, dim = vectors_ND.shape
    block_rows = max(1, _BLOCK_VALUES // max(1, dim))
    largest = 0.0
    for start in range(0, rows, block_rows):
        block_ND = vectors_ND[start : start + block_rows].astype(np.float64)
        squares_N = np.einsum("nd,nd->n", block_ND, block_ND)
        # No float32 value overflows when squared in float64, so a sum that is not finite means a value that is not.
        if not np.isfinite(squares_N).all():
            row = int(np.flatnonzero(~np.isfinite(squares_N))[0])
            bad = block_ND[row][~np.isfinite(block_ND[row])][0]
            fact = "" if fact_ids_N is None else f", fact id {fact_ids_N[start + row]}"
            raise InvalidVectors(
                f"expected finite {vectors_ND.dtype} values, found {bad} in row {start + row}{fact}; "
                "fix the encoder or leave the fact out"
            )
        largest = max(largest, float(squares_N.max()))
    return float(np.sqrt(largest))
