"""Columns in which few different values stand: what all facts of one relation share, and where that is found."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.scaled import ScaledRows

# N rows, n rows in a sample or block, D dimension, F columns, V different values

__all__ = ["Values", "shared_columns", "values_of"]

_SAMPLE_ROWS = 2**14
_LEAST_COLUMNS = 4  # of a block of columns: as bfloat16, any one or two columns have few values
_MOST_BLOCKS = 64
_MOST_SHARE = 4  # at least so many sampled rows share a value, on average
_LEAST_ROWS = 2**12  # with fewer, chance decides
_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """The different values of some columns. first_V: a row that has each; value_N: which value each row has.

    Values are held to be equal where they are equal as bfloat16: rounding in the last bits is no difference. A rare
    value may so be torn in two or two be taken for one, which costs a search some recall and no truth.
    """

    first_V: NDArray[np.int64]
    value_N: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.first_V)


def shared_columns(rows: ScaledRows) -> NDArray[np.bool_] | None:
    """Which columns [D] hold values that many rows have in common; None where there are none, or where all do.

    Blocks of columns are joined, those with the fewest values first, as long as the values of all of them together
    stay few. Vectors that were put together of an entity's and a relation's part give the relation's, in blocks of
    four columns or more.
    """
    if rows.num_rows < _LEAST_ROWS or rows.dim < 2 * _LEAST_COLUMNS:
        return None
    sample_nD = rows.take(rows.sample(_SAMPLE_ROWS, np.random.default_rng(_SEED)))
    width = max(_LEAST_COLUMNS, -(-rows.dim // _MOST_BLOCKS))
    blocks = [slice(start, min(start + width, rows.dim)) for start in range(0, rows.dim, width)]
    multipliers_D = _multipliers(rows.dim)
    hashes = [_hashes(sample_nD[:, block], multipliers_D[block]) for block in blocks]
    counts = [len(np.unique(hash_n)) for hash_n in hashes]
    most = len(sample_nD) // _MOST_SHARE
    joined_n = np.zeros(len(sample_nD), dtype=np.uint64)
    shared_D = np.zeros(rows.dim, dtype=np.bool_)
    for number in np.argsort(counts, kind="stable").tolist():
        with_it_n = joined_n + hashes[number]  # a hash is a sum over columns
        if counts[number] <= most and len(np.unique(with_it_n)) <= most:
            joined_n = with_it_n
            shared_D[blocks[number]] = True
    if shared_D.all() or len(np.unique(joined_n)) < 2:
        return None
    return shared_D


def values_of(rows: ScaledRows, columns_F: NDArray[np.int64]) -> Values:
    """The different values of these columns over all rows."""
    multipliers_F = _multipliers(rows.dim)[columns_F]
    hash_N = np.empty(rows.num_rows, dtype=np.uint64)
    for part, block_nD in rows.blocks():
        hash_N[part] = _hashes(block_nD[:, columns_F], multipliers_F)
    _, first_V, value_N = np.unique(hash_N, return_index=True, return_inverse=True)
    return Values(first_V=first_V, value_N=value_N.astype(np.int64, copy=False))


def _hashes(rows_nF: NDArray[np.float32], multipliers_F: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each row, the sum of one per value, so that hashes of blocks of columns can be added."""
    words = torch.from_numpy(np.ascontiguousarray(rows_nF) + np.float32(0)).to(torch.bfloat16).view(torch.int16)
    hash_n: NDArray[np.uint64] = (words.numpy().astype(np.uint64) * multipliers_F).sum(axis=1, dtype=np.uint64)
    return hash_n


def _multipliers(dim: int) -> NDArray[np.uint64]:
    return np.random.default_rng(_SEED).integers(2**64, size=dim, dtype=np.uint64) | np.uint64(1)
