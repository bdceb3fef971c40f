"""Rows in low precision: a scaled int8 or bfloat16 copy per group of rows, with the errors that the proof needs."""

import ctypes
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.mips.base import SavedArrays, ShardVectors
from memory_store.mips.bounds import GroupBounds
from memory_store.mips.workers import Workers
from memory_store.vectors import widened

# N rows, padded to a multiple of GROUP_ROWS; n rows and g groups in a block, G groups in all, D dimension

__all__ = [
    "BAND_GROUPS",
    "BAND_ROWS",
    "COPY_DTYPES",
    "GROUP_ROWS",
    "CopyPrecision",
    "copy_rows",
    "encode",
    "never_written",
    "padded",
    "read_copy",
    "saved_copy",
]

CopyPrecision = Literal[
    "int8", "bfloat16", "float32"
]  # the last on a device only: here the rows themselves are scanned
COPY_DTYPES: dict[str, torch.dtype] = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}

GROUP_ROWS = 16  # rows that share a scale, a bound and a maximum; their exact scores are computed together
BAND_GROUPS = 64  # a band's largest bound lets most of its groups be passed over without being looked at
BAND_ROWS = BAND_GROUPS * GROUP_ROWS
_BLOCK_VALUES = 2**18  # float32 values worked on at once: 1 MiB stays in a core's cache through all the steps
_SMALLEST_PEAK = 2.0**-118  # 127 / peak must be a float32; groups below become zeros, and their bounds say so


def padded(num_rows: int) -> int:
    """Rows of whole groups: the last row is repeated to fill the last group."""
    return -(-num_rows // GROUP_ROWS) * GROUP_ROWS


def copy_rows(vectors: ShardVectors, start: int, scale: float, out_nD: NDArray[np.float32]) -> None:
    """Write rows start, start + 1, ... times scale, as float32; past the end, the last row again."""
    stop = min(start + len(out_nD), vectors.num_rows)
    first = int(np.searchsorted(vectors.starts, start, side="right")) - 1
    at, factor = start, np.float32(scale)  # a float32 factor widens float16 rows before it multiplies
    for chunk, chunk_start in zip(vectors.chunks[first:], vectors.starts[first:], strict=False):
        if at >= stop:
            break
        piece_nD = chunk[at - chunk_start : stop - chunk_start]
        if piece_nD.dtype == np.uint16:  # the bits of bfloat16
            piece_nD = widened(piece_nD)
        np.multiply(piece_nD, factor, out=out_nD[at - start : at - start + len(piece_nD)], dtype=np.float32)
        at += len(piece_nD)
    out_nD[stop - start :] = out_nD[stop - start - 1]


def encode(
    vectors: ShardVectors, precision: CopyPrecision | None, workers: Workers
) -> tuple[Tensor | None, GroupBounds]:
    """One pass over the rows: their low-precision copy [padded N, D] (None without a precision) and their bounds."""
    num_rows, dim = padded(vectors.num_rows), vectors.dim
    copy_ND = None if precision is None else torch.empty((num_rows, dim), dtype=COPY_DTYPES[precision])
    num_groups = num_rows // GROUP_ROWS
    bounds = GroupBounds(scale_G=np.empty(num_groups), residual_G=np.empty(num_groups), norm_G=np.empty(num_groups))
    block_groups = max(_BLOCK_VALUES // (dim * GROUP_ROWS), 1)
    starts = iter(range(0, num_groups, block_groups))

    def work(_worker: int) -> None:
        block_nD = torch.empty((block_groups * GROUP_ROWS, dim), dtype=torch.float32)
        spare_nD = torch.empty_like(block_nD)
        for start in starts:  # the interpreter hands each value of a range iterator to one thread only
            groups = slice(start, min(start + block_groups, num_groups))
            rows = slice(groups.start * GROUP_ROWS, groups.stop * GROUP_ROWS)
            used = rows.stop - rows.start
            copy_rows(vectors, rows.start, 1.0, block_nD[:used].numpy())
            target_nD = None if copy_ND is None else copy_ND[rows]
            scale_g, residual_g, norm_g = _encode_block(block_nD[:used], spare_nD[:used], target_nD)
            bounds.scale_G[groups], bounds.residual_G[groups], bounds.norm_G[groups] = scale_g, residual_g, norm_g

    workers.run(work)
    return copy_ND, bounds


def saved_copy(copy_ND: Tensor | None, bounds: GroupBounds) -> SavedArrays:
    """What `encode` returned, as arrays for a file; bfloat16, which numpy does not know, as its bits."""
    arrays: dict[str, NDArray[Any]] = {"scale": bounds.scale_G, "residual": bounds.residual_G, "norm": bounds.norm_G}
    if copy_ND is not None:
        arrays["int8" if copy_ND.dtype == torch.int8 else "bfloat16"] = (
            copy_ND if copy_ND.dtype == torch.int8 else copy_ND.view(torch.int16)
        ).numpy()
    return arrays


def read_copy(arrays: SavedArrays, num_rows: int, dim: int) -> tuple[Tensor | None, GroupBounds]:
    """What `saved_copy` was given, the copy as a view of the array; KeyError or ValueError for arrays of other rows."""
    bounds = GroupBounds(scale_G=arrays["scale"], residual_G=arrays["residual"], norm_G=arrays["norm"])
    num_groups = padded(num_rows) // GROUP_ROWS
    held: tuple[CopyPrecision, ...] = ("int8", "bfloat16")
    precision = next((name for name in held if name in arrays), None)
    shapes = [values_G.shape for values_G in (bounds.scale_G, bounds.residual_G, bounds.norm_G)]
    if shapes != [(num_groups,)] * 3 or (precision and arrays[precision].shape != (padded(num_rows), dim)):
        raise ValueError(f"expected the copy of {num_rows:,} rows of {dim} values, found {shapes}")
    if precision is None:
        return None, bounds
    copy_ND = never_written(arrays[precision])
    return copy_ND if precision == "int8" else copy_ND.view(torch.bfloat16), bounds


def never_written(array: NDArray[Any]) -> Tensor:
    """A tensor over read-only memory, without torch's warning that it could be written: nobody writes to the copy."""
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    memory.of = array  # type: ignore[attr-defined]  # the memory must not go before the tensor does
    return torch.from_numpy(np.frombuffer(memoryview(memory).cast("B"), dtype=array.dtype).reshape(array.shape))


def _encode_block(
    block_nD: Tensor, spare_nD: Tensor, copy_nD: Tensor | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scale a block in place, store it, and return (scale, residual, norm) per group; overwrites both buffers."""
    dim = block_nD.shape[1]
    levels = 127.0 if copy_nD is not None and copy_nD.dtype == torch.int8 else 1.0
    peak_g = torch.abs(block_nD, out=spare_nD).view(-1, GROUP_ROWS * dim).amax(dim=1).clamp_(min=_SMALLEST_PEAK)
    factor_g = levels / peak_g
    block_nD.view(-1, GROUP_ROWS * dim).mul_(factor_g.unsqueeze(1))
    # Every value is now within +-levels. What follows is in these units; the scale leads back to true ones.
    if copy_nD is None:
        largest_residual_g = torch.zeros_like(peak_g)
        largest_norm_g = _largest_norm(block_nD)
    else:
        if levels > 1:
            copy_nD.copy_(torch.round(block_nD, out=spare_nD))
        else:
            spare_nD.copy_(copy_nD.copy_(block_nD))
        largest_norm_g = _largest_norm(spare_nD)
        largest_residual_g = _largest_norm(block_nD.sub_(spare_nD))
    # The float32 steps above are themselves inexact: the scaling by 2^-24 per value, the sums by 2^-24 per term.
    loosen = 1 + (dim + 16) * 2.0**-22
    scale_g = 1 / factor_g.numpy().astype(np.float64)
    norm_g = largest_norm_g.numpy().astype(np.float64) * loosen
    residual_g = largest_residual_g.numpy().astype(np.float64) * loosen + norm_g * 2.0**-20
    return scale_g, scale_g * residual_g, scale_g * (norm_g + residual_g)


def _largest_norm(block_nD: Tensor) -> Tensor:
    norms_n = torch.linalg.vector_norm(block_nD, dim=1)
    largest_g: Tensor = norms_n.view(-1, GROUP_ROWS).amax(dim=1)
    return largest_g
