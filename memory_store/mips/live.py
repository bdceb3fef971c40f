"""Which rows of an index may be found: the others are deleted, or were overwritten since it was built."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.mips.encode import GROUP_ROWS, padded

# N rows, M of them dead, G groups of g rows, P pairs of a query and a group

__all__ = ["LiveRows"]


@dataclass(frozen=True, eq=False)
class LiveRows:
    """mask_N: bool, False for rows that must not be found."""

    mask_N: NDArray[np.bool_]

    @classmethod
    def all_but(cls, dead_M: NDArray[np.int64], num_rows: int) -> "LiveRows":
        """dead_M: numbers of the rows that must not be found."""
        mask_N = np.ones(num_rows, dtype=np.bool_)
        mask_N[dead_M] = False
        return cls(mask_N)

    @cached_property
    def count(self) -> int:
        """How many rows may be found."""
        return int(np.count_nonzero(self.mask_N))

    @property
    def dead(self) -> int:
        """How many rows must not be found."""
        return len(self.mask_N) - self.count

    @cached_property
    def dead_rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that must not be found."""
        return np.flatnonzero(~self.mask_N)

    @cached_property
    def of_groups(self) -> NDArray[np.bool_]:
        """The mask by groups of rows; True past the last row."""
        mask_N = self.mask_N
        past = np.ones(padded(len(mask_N)) - len(mask_N), dtype=np.bool_)
        return (np.concatenate([mask_N, past]) if len(past) else mask_N).reshape(-1, GROUP_ROWS)

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """The mask as faiss reads it: bit i % 8 of byte i // 8."""
        return np.packbits(self.mask_N, bitorder="little")

    def selector(self) -> Any:
        """A selector of live rows for faiss; it reads `bits`, so this object must outlive it."""
        return faiss.IDSelectorBitmap(len(self.mask_N), faiss.swig_ptr(self.bits))
