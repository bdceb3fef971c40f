"""Block scans: one pass of products over the rows leaves, per group of rows and query, an upper bound of the score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.mips.base import ShardVectors
from memory_store.mips.bounds import GroupBounds, QueryBounds, bfloat16_error, float32_error, scale_exponent
from memory_store.mips.encode import BAND_ROWS, COPY_DTYPES, GROUP_ROWS, CopyPrecision, copy_rows
from memory_store.mips.scratch import Scratch

# N rows, n rows and g groups in a block, G groups in all, D dimension, B queries (columns of a scan)

__all__ = ["FEW_QUERIES", "MOST_COLUMNS", "BlockScan", "CopyScan", "ScanQueries", "StoredScan", "whole_bands"]

FEW_QUERIES = 2  # up to here, reading the rows takes the time of a scan; beyond, multiplying does
MOST_COLUMNS = 128  # queries scanned at once: bound by arithmetic already, and 32 MiB hold the bounds of 1M rows
_COLUMN_STEP = 16  # a product with 3 queries takes as long as one with 16, and fewer shapes are fewer kernels to make
_PRODUCTS = 2**20  # products of one block: 4 MiB of results, read again at once for their maxima
_MOST_ROWS = 2**16
_STORED_VALUES = 2**18  # values of one block that are copied out of the mapped files first: 1 MiB


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanQueries:
    """Queries as one scan wants them: the matrix it multiplies with, and their side of the proof."""

    matrix_DB: Tensor
    bounds: QueryBounds


class BlockScan(ABC):
    """A scan in one precision. It answers bounds, never scores: whatever its precision, the search stays exact."""

    name: str

    def __init__(self, bounds: GroupBounds, dim: int, *, scaled: bool) -> None:
        self._dim = dim
        self.longest = bounds.longest
        self._exponent = scale_exponent(self.longest)
        scale_G1, self._residual_G1, self._norm_G1 = bounds.scaled(self._exponent, dim)
        self._scale_G1 = scale_G1 if scaled else None

    @property
    def num_groups(self) -> int:
        return len(self._norm_G1)

    @property
    def nbytes(self) -> int:
        """Bytes held for this scan alone."""
        small = [self._residual_G1, self._norm_G1, *([] if self._scale_G1 is None else [self._scale_G1])]
        return sum(tensor.nbytes for tensor in small)

    def block_rows(self, columns: int, at_most: int) -> int:
        """Rows that are best scanned at once: whole bands, and no more than at_most, rounded up."""
        return whole_bands(min(_PRODUCTS // columns, _MOST_ROWS, at_most))

    def most_columns(self, batch: int) -> int:
        """How many of the queries of a batch are best scanned at once."""
        return MOST_COLUMNS

    def padded_columns(self, batch: int) -> int:
        """Columns of a scan of so many queries, the last of them zero: at least as many."""
        return 1 if batch == 1 else -(-batch // _COLUMN_STEP) * _COLUMN_STEP

    @abstractmethod
    def prepare(self, queries_BD: NDArray[np.float64]) -> ScanQueries:
        """Bring non-zero queries (zero ones are allowed as padding) into the precision of the scan."""

    @abstractmethod
    def _multiply(self, rows: slice, queries: ScanQueries, scratch: Scratch) -> Tensor:
        """Products [n, B] of a block of whole groups with the queries, in any dtype."""

    def scan(self, groups: slice, queries: ScanQueries, scratch: Scratch, bounds_gB: Tensor) -> None:
        """Write into bounds_gB (float32) an upper bound, in units of the query, for each group of a block."""
        products_nB = self._multiply(slice(groups.start * GROUP_ROWS, groups.stop * GROUP_ROWS), queries, scratch)
        columns = products_nB.shape[1]
        largest_gB = scratch.take("largest", (len(bounds_gB), columns), products_nB.dtype)
        torch.amax(products_nB.view(-1, GROUP_ROWS, columns), dim=1, out=largest_gB)
        bounds_gB.copy_(largest_gB)
        if self._scale_G1 is not None:
            bounds_gB.mul_(self._scale_G1[groups])
        bounds_gB.addcmul_(self._residual_G1[groups], queries.bounds.residual_weight_B)
        bounds_gB.addcmul_(self._norm_G1[groups], queries.bounds.norm_weight_B)


class CopyScan(BlockScan):
    """A scan over a low-precision copy of the rows: int8 products summed in int32, or bfloat16 summed in float32."""

    def __init__(self, precision: CopyPrecision, rows_ND: Tensor, bounds: GroupBounds) -> None:
        super().__init__(bounds, rows_ND.shape[1], scaled=True)
        self.name = precision
        self._rows_ND = rows_ND

    def held_rows(self) -> Tensor:
        """The copy [padded N, D]."""
        return self._rows_ND

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._rows_ND.nbytes

    def most_columns(self, batch: int) -> int:
        # An int8 product with one column has a kernel of its own, three times as fast as the one for 2 to 16 columns.
        return 1 if self.name == "int8" and batch <= FEW_QUERIES else MOST_COLUMNS

    def prepare(self, queries_BD: NDArray[np.float64]) -> ScanQueries:
        peak_B = np.abs(queries_BD).max(axis=1, initial=0.0)
        if self.name == "int8":
            unit_B = np.where(peak_B > 0, peak_B, 1.0) / 127
            scaled_BD = queries_BD / unit_B[:, None]
            held = torch.from_numpy(np.rint(scaled_BD)).to(torch.int8)
        else:
            unit_B = np.ldexp(1.0, np.frexp(peak_B)[1])
            scaled_BD = queries_BD / unit_B[:, None]
            held = torch.from_numpy(scaled_BD).to(COPY_DTYPES[self.name])
        bounds = QueryBounds.of(
            scaled_BD, held.double().numpy(), kernel=self._kernel_error(), unit_B=np.ldexp(unit_B, self._exponent)
        )
        return ScanQueries(matrix_DB=held.t(), bounds=bounds)

    def keeps_its_promise(self, queries_BD: NDArray[np.float64]) -> bool:
        """Whether torch's products of these queries with all rows are as close as the proof takes them to be."""
        queries = self.prepare(queries_BD)
        products_NB = self._multiply(slice(0, len(self._rows_ND)), queries, Scratch()).double()
        rows_ND, held_DB = self._rows_ND.double(), queries.matrix_DB.double()
        allowed_NB = self._kernel_error() * torch.outer(rows_ND.norm(dim=1), held_DB.norm(dim=0))
        return bool(((products_NB - rows_ND @ held_DB).abs() <= allowed_NB).all())

    def _kernel_error(self) -> float:
        """`kernel` of the proof. Products of int8 and their sums are whole numbers below 2^31."""
        return 0.0 if self.name == "int8" else bfloat16_error(self._dim)

    def _multiply(self, rows: slice, queries: ScanQueries, scratch: Scratch) -> Tensor:
        block_nD = self._rows_ND[rows]
        dtype = torch.int32 if self.name == "int8" else COPY_DTYPES[self.name]
        products_nB = scratch.take("products", (len(block_nD), queries.matrix_DB.shape[1]), dtype)
        if self.name == "int8":
            torch._int_mm(block_nD, queries.matrix_DB, out=products_nB)
        else:
            torch.mm(block_nD, queries.matrix_DB, out=products_nB)
        return products_nB


class StoredScan(BlockScan):
    """A float32 scan over the mapped rows themselves; no copy is kept, each block is scaled on its way in."""

    name = "float32"

    def __init__(self, vectors: ShardVectors, bounds: GroupBounds) -> None:
        # The rows themselves are scanned: their error is only what dividing them by a power of two can lose.
        exact_rows = GroupBounds(
            scale_G=bounds.scale_G, residual_G=np.zeros_like(bounds.residual_G), norm_G=bounds.norm_G
        )
        super().__init__(exact_rows, vectors.dim, scaled=False)
        self._vectors = vectors

    def block_rows(self, columns: int, at_most: int) -> int:
        return whole_bands(min(_PRODUCTS // columns, _STORED_VALUES // self._dim, at_most))

    def prepare(self, queries_BD: NDArray[np.float64]) -> ScanQueries:
        unit_B = np.ldexp(1.0, np.frexp(np.abs(queries_BD).max(axis=1, initial=0.0))[1])
        scaled_BD = queries_BD / unit_B[:, None]
        held = torch.from_numpy(scaled_BD).to(torch.float32)
        bounds = QueryBounds.of(
            scaled_BD,
            held.double().numpy(),
            kernel=float32_error(self._dim),
            unit_B=np.ldexp(unit_B, self._exponent),
        )
        return ScanQueries(matrix_DB=held.t(), bounds=bounds)

    def _multiply(self, rows: slice, queries: ScanQueries, scratch: Scratch) -> Tensor:
        num_rows, columns = rows.stop - rows.start, queries.matrix_DB.shape[1]
        block_nD = scratch.take("rows", (num_rows, self._dim), torch.float32)
        copy_rows(self._vectors, rows.start, 2.0**-self._exponent, block_nD.numpy())
        products_nB = scratch.take("products", (num_rows, columns), torch.float32)
        return torch.mm(block_nD, queries.matrix_DB, out=products_nB)


def whole_bands(rows: int) -> int:
    """Rows of whole bands, at least one."""
    return max(-(-rows // BAND_ROWS), 1) * BAND_ROWS
