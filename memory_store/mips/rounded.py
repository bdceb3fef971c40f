"""A few thousand vectors that are all scored at once: by rounded copies, which is quicker and nearly the same."""

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.calibrate import is_sound

# L vectors of D values, b queries

__all__ = ["RoundedVectors"]

_LEVELS = np.float32(127)
_LEAST = float(np.finfo(np.float32).tiny)  # below, values count as zeros
_MOST_SPREAD = 8  # times the largest value: a spread beyond decides alone, and its products must stay within int32
_MOST_PEAK = 4  # times the median vector's largest value: beyond, one scale for all leaves too few levels to most


class RoundedVectors:
    """int8 in one scale, where the processor adds such products without loss, else bfloat16.

    On processors that have these products, int8 takes half the time of bfloat16 and bfloat16 half that of float32.
    """

    def __init__(self, vectors_LD: NDArray[np.float32], spread_L: NDArray[np.float32] | None = None) -> None:
        """spread_L: what is added to a vector's product with a query, for each unit of the query's length."""
        peak_L = np.abs(vectors_LD).max(axis=1)
        most_spread = 0.0 if spread_L is None else float(spread_L.max())
        self._unit = np.float32(max(float(peak_L.max()), most_spread / _MOST_SPREAD, _LEAST)) / _LEVELS
        self._in_int8 = is_sound("int8", vectors_LD.shape[1]) and peak_L.max() <= _MOST_PEAK * np.median(peak_L)
        self._vectors_LD = (
            torch.from_numpy(np.rint(vectors_LD / self._unit).astype(np.int8))
            if self._in_int8
            else torch.from_numpy(vectors_LD).to(torch.bfloat16)
        )
        self._spread_L = None if spread_L is None else torch.from_numpy(spread_L)
        if self._in_int8 and spread_L is not None:
            self._spread_L = torch.from_numpy(np.rint(spread_L / self._unit).astype(np.int32))

    @property
    def nbytes(self) -> int:
        return self._vectors_LD.nbytes + (0 if self._spread_L is None else self._spread_L.nbytes)

    def products(self, queries_bD: NDArray[np.float32]) -> tuple[NDArray[np.int32 | np.float32], NDArray[np.float32]]:
        """(products [b, L] of each query with each vector, what a product of 1 is worth for each query [b, 1])."""
        length_b = np.linalg.norm(queries_bD, axis=1)
        if self._in_int8:
            unit_b1 = np.maximum(np.abs(queries_bD).max(axis=1, keepdims=True), _LEAST) / _LEVELS
            whole_bD = torch.from_numpy(np.rint(queries_bD / unit_b1).astype(np.int8))
            products_bL = torch._int_mm(whole_bD, self._vectors_LD.t())
            length_b = np.rint(length_b / unit_b1[:, 0]).astype(np.int32)
        else:
            unit_b1 = np.ones((len(queries_bD), 1), dtype=np.float32)
            products_bL = torch.mm(torch.from_numpy(queries_bD).to(torch.bfloat16), self._vectors_LD.t()).float()
        if self._spread_L is not None:
            products_bL.addr_(torch.from_numpy(length_b), self._spread_L)
        return products_bL.numpy(), unit_b1 * self._unit if self._in_int8 else unit_b1
