"""What a caller asks of a memory, checked before any shard hears of it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import ConfigError, DimensionMismatch, InvalidVectors, UnknownFact
from memory_store.policy import Partial

# B queries, D dimension

__all__ = ["checked_ids", "checked_k", "checked_queries", "parse_partial"]


def parse_partial(value: str) -> Partial:
    """The setting as it is written, or ConfigError."""
    try:
        return Partial(value)
    except ValueError:
        raise ConfigError(f"expected partial='refuse' or 'allow', found {value!r}") from None


def checked_k(k: object) -> int:
    """How many facts to find, a whole number of at least 1, or ConfigError."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise ConfigError(f"expected k as a whole number, found {k!r:.80}")
    if k < 1:
        raise ConfigError(f"expected k >= 1, found {k}")
    return int(k)


def checked_queries(queries: ArrayLike, dim: int) -> NDArray[np.float32]:
    """Queries [B, dim] as finite float32, or InvalidVectors or DimensionMismatch."""
    given = np.asarray(queries)
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise InvalidVectors(f"expected queries as floats [B, {dim}], found {given.dtype} of shape {list(given.shape)}")
    if given.shape[1] != dim:
        raise DimensionMismatch(f"expected queries of dimension {dim}, found {given.shape[1]}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, and that is refused below
        queries_BD = np.ascontiguousarray(given, dtype=np.float32)
    finite_B = np.isfinite(queries_BD).all(axis=1)
    if not finite_B.all():
        raise InvalidVectors(f"expected finite queries, found NaN or infinity in query {int(np.argmin(finite_B))}")
    return queries_BD


def checked_ids(fact_ids: ArrayLike) -> NDArray[np.int64]:
    """Fact ids [n] as int64, or UnknownFact."""
    given = np.asarray(fact_ids)
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise UnknownFact(f"expected fact ids as integers [n], found {given.dtype} of shape {list(given.shape)}")
    return given.astype(np.int64)
