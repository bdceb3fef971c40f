"""The highest scores of each line of a table."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# b lines of W scores, G groups of columns, K of the highest

__all__ = ["highest_columns", "taken"]

Number = np.float32 | np.int32

_GROUP = 16  # columns that share a maximum
_WORTH_GROUPS = 2  # groups for every score wanted, and more: below, most groups are looked into anyway
_NARROW = 2**10  # columns whose numbers leave a float32 13 bits of its fraction
_LEAST = float(np.finfo(np.float32).min)  # -inf with a number in it would be NaN


def highest_columns(score_bW: NDArray[Number], count: int) -> NDArray[np.int64]:
    """Columns [b, count] of the `count` highest scores of each line, the highest first; count <= W.

    Scores are float32 or int32; those that differ by less than 2^-13 of themselves are taken for equal. In wide tables
    the groups of highest maximum are found first: the highest scores lie in as many groups at most.
    """
    batch, width = score_bW.shape
    num_groups = width // _GROUP
    if num_groups <= _WORTH_GROUPS * count:
        return _places(score_bW, count)
    # A group is every G-th column, so that maxima are taken over whole lines of G; torch does it at twice the speed.
    grouped = num_groups * _GROUP
    maximum_bG = torch.from_numpy(score_bW)[:, :grouped].view(batch, _GROUP, num_groups).amax(dim=1).numpy()
    group_bK = _places(maximum_bG, count)
    column_bX = np.empty((batch, _GROUP * count + width - grouped), dtype=np.int64)
    members_bgK = column_bX[:, : _GROUP * count].reshape(batch, _GROUP, count)
    np.add(group_bK[:, None, :], np.arange(0, grouped, num_groups)[:, None], out=members_bgK)
    column_bX[:, _GROUP * count :] = np.arange(grouped, width)
    return taken(column_bX, _places(taken(score_bW, column_bX), count))


def taken(values_bW: NDArray[Any], column_bK: NDArray[np.int64]) -> NDArray[Any]:
    """np.take_along_axis, which takes three times as long."""
    return torch.gather(torch.from_numpy(values_bW), 1, torch.from_numpy(column_bK)).numpy()


def _places(score_bW: NDArray[Number], count: int) -> NDArray[np.int64]:
    """Columns of the highest: each score carries its column's number in its last bits through numpy's partition.

    A partition of numbers runs within vector registers, one of numbers beside their columns does not.
    """
    width = score_bW.shape[1]
    narrow = width <= _NARROW
    packed_bW = np.maximum(score_bW, _LEAST, dtype=np.float32 if narrow else np.float64)
    bits_bW: NDArray[Any] = packed_bW.view(np.int32 if narrow else np.int64)
    mask = (1 << (width - 1).bit_length()) - 1
    bits_bW &= ~mask
    bits_bW |= np.arange(width, dtype=bits_bW.dtype)
    if count < width:
        packed_bW.partition(width - count, axis=1)
    packed_bW[:, width - count :].sort(axis=1)
    place_bK: NDArray[np.int64] = bits_bW[:, width - count :][:, ::-1].astype(np.int64) & mask
    return place_bK
