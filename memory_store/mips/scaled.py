"""The rows as an approximate index is built from them: scaled so that no float32 product overflows or vanishes."""

from collections.abc import Iterator
from copy import copy
from typing import cast

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import scale_exponent
from memory_store.mips.encode import copy_rows
from memory_store.mips.in_place import products_in_place

# N rows, n rows in a block, D dimension, E of its columns, B queries, b of them, C rows for each, p queries at once

__all__ = ["ScaledRows", "scaled_queries", "unit_rows"]

_BLOCK_VALUES = 2**21  # 8 MiB of float32
_FACTOR = 2.0**-126  # the least that a float32 row can be multiplied with, and the most is its inverse
_SAFE_FACTOR = 2.0**-40  # from here to its inverse, queries can be multiplied with it as well: what vanishes is nothing
_FEW_CHUNKS = 64  # in which rows are looked up where they lie: each asks for a pass over all of their numbers
_VALUES_AT_ONCE = 2**18  # of rows that are copied out: 1 MiB stays in a core's cache until they are scored


class ScaledRows:
    """The rows times one power of two, which brings the longest near norm 1; the order of scores stays as it was.

    norms_N: float32 norms of the scaled rows. low_D, high_D: the least and the largest value of each column.
    """

    norms_N: NDArray[np.float32]
    low_D: NDArray[np.float32]
    high_D: NDArray[np.float32]

    @classmethod
    def of_factor(cls, vectors: ShardVectors, factor: float) -> "ScaledRows":
        """Rows whose factor is known, to be read without looking at all of them first; without norms and ends."""
        rows = cls.__new__(cls)
        rows.num_rows, rows.dim = vectors.num_rows, vectors.dim
        rows.block_rows = max(_BLOCK_VALUES // vectors.dim, 1)
        rows._vectors, rows._rows_n, rows._columns_E, rows._factor = vectors, None, None, factor
        return rows

    @property
    def factor(self) -> float:
        """The power of two that rows are multiplied with."""
        return self._factor

    def __init__(self, vectors: ShardVectors) -> None:
        self.num_rows, self.dim = vectors.num_rows, vectors.dim
        self.block_rows = max(_BLOCK_VALUES // vectors.dim, 1)
        self._vectors = vectors
        self._rows_n: NDArray[np.int64] | None = None
        self._columns_E: NDArray[np.int64] | None = None
        self._factor = 1.0
        longest = max((float(np.abs(block_nD).max(initial=0.0)) for _, block_nD in self.blocks()), default=0.0)
        # Column values decide: a norm is at most sqrt(D) times as large, which leaves room enough.
        self._factor = float(np.clip(2.0 ** -float(scale_exponent(longest)), _FACTOR, 1 / _FACTOR))
        self.norms_N = np.empty(self.num_rows, dtype=np.float32)
        self.low_D = np.full(self.dim, np.inf, dtype=np.float32)
        self.high_D = np.full(self.dim, -np.inf, dtype=np.float32)
        for rows, block_nD in self.blocks():
            self.norms_N[rows] = np.linalg.norm(block_nD, axis=1)
            np.minimum(self.low_D, block_nD.min(axis=0), out=self.low_D)
            np.maximum(self.high_D, block_nD.max(axis=0), out=self.high_D)

    def narrowed(self, columns_E: NDArray[np.int64], rows_n: NDArray[np.int64] | None = None) -> "ScaledRows":
        """Some columns, of some rows or of all, in the scale of these; norms_N stay those of all columns and rows."""
        part = copy(self)
        part._columns_E, part._rows_n = columns_E, rows_n
        part.dim = len(columns_E)
        part.num_rows = self.num_rows if rows_n is None else len(rows_n)
        part.low_D, part.high_D = self.low_D[columns_E], self.high_D[columns_E]
        return part

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start, start + 1, ..., stop - 1, scaled: float32 [stop - start, D], a copy."""
        if self._rows_n is not None:
            return self.take(np.arange(start, stop))
        block_nD = np.empty((stop - start, self._vectors.dim), dtype=np.float32)
        if len(block_nD):
            copy_rows(self._vectors, start, self._factor, block_nD)
        return block_nD if self._columns_E is None else np.ascontiguousarray(block_nD[:, self._columns_E])

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Every block of rows, with the slice of rows that it holds."""
        for start in range(0, self.num_rows, self.block_rows):
            rows = slice(start, min(start + self.block_rows, self.num_rows))
            yield rows, self.block(rows.start, rows.stop)

    def take(self, rows_n: NDArray[np.int64]) -> NDArray[np.float32]:
        """These rows, scaled: float32 [n, D]."""
        taken_nD = self._vectors.gather(rows_n if self._rows_n is None else self._rows_n[rows_n])
        taken_nD *= np.float32(self._factor)
        return taken_nD if self._columns_E is None else np.ascontiguousarray(taken_nD[:, self._columns_E])

    def scores(self, row_bC: NDArray[np.int64], queries_bD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Products of each query with rows of its own, all columns of them: float32 [b, C]; -inf for a row of -1."""
        chunks = self._vectors.chunks
        in_place = len(chunks) <= _FEW_CHUNKS and _SAFE_FACTOR <= self._factor <= 1 / _SAFE_FACTOR
        if in_place and all(chunk.dtype == np.float32 and chunk.flags.c_contiguous for chunk in chunks):
            return self._scores_in_place(row_bC, queries_bD * np.float32(self._factor))
        score_bC = np.empty(row_bC.shape, dtype=np.float32)
        step = max(_VALUES_AT_ONCE // (row_bC.shape[1] * self.dim), 1)
        for start in range(0, len(row_bC), step):
            part = slice(start, start + step)
            row_pC = np.maximum(row_bC[part], 0)
            taken_pCD = self.take(row_pC.ravel()).reshape(*row_pC.shape, -1)
            # numpy's product of a matrix and a vector, line by line, is 17 times as fast here as torch.bmm
            score_bC[part] = np.matmul(taken_pCD, queries_bD[part, :, None])[:, :, 0]
        score_bC[row_bC < 0] = -np.inf
        return score_bC

    def _scores_in_place(self, row_bC: NDArray[np.int64], queries_bD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Without a copy of the rows, and of that half the time: faiss reads them where they lie."""
        score_bC = np.full(row_bC.shape, -np.inf, dtype=np.float32)
        starts = self._vectors.starts
        found_bC = np.empty_like(score_bC)
        for chunk_nD, start in zip(self._vectors.chunks, starts, strict=False):
            place_bC = row_bC - start
            # As an unsigned number, a place before the chunk lies far behind it.
            here_bC = np.where(place_bC.view(np.uint64) < len(chunk_nD), place_bC, -1)
            products_in_place(cast(NDArray[np.float32], chunk_nD), here_bC, queries_bD, found_bC)
            np.maximum(score_bC, found_bC, out=score_bC)  # of a row of -1, -inf
        return score_bC

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Row numbers of at most `count` rows, drawn without repetition, in ascending order."""
        if count >= self.num_rows:
            return np.arange(self.num_rows)
        return np.sort(rng.choice(self.num_rows, count, replace=False))


def unit_rows(rows_nD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows divided by their norms; zero rows stay zero."""
    norms_n1: NDArray[np.float32] = np.linalg.norm(rows_nD, axis=1, keepdims=True).astype(np.float32)
    norms_n1[norms_n1 == 0] = 1
    units_nD: NDArray[np.float32] = rows_nD / norms_n1
    return units_nD


def scaled_queries(queries_BD: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each query times the power of two that brings its largest value to between 1/2 and 1: the same rows win."""
    exponent_B1 = np.frexp(np.abs(queries_BD).max(axis=1, keepdims=True, initial=0.0))[1]
    scaled_BD: NDArray[np.float32] = np.ldexp(queries_BD, -exponent_B1).astype(np.float32)
    return scaled_BD
