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
from memory_store.mips.maxima import by_bits, mostly_positive
from memory_store.mips.scratch import Scratch

# N rows, n rows and g groups in a block, G groups in all, D dimension, B queries (columns of a scan)

__all__ = ["FEW_QUERIES", "MOST_COLUMNS", "BlockScan", "CopyScan", "ScanQueries", "StoredScan", "whole_bands"]

FEW_QUERIES = 2  # up to here, reading the rows takes the time of a scan; beyond, multiplying does
MOST_COLUMNS = 128  # queries scanned at once: bound by arithmetic already, and 32 MiB hold the bounds of 1M rows
_COLUMN_STEP = 16  # a product with 3 queries takes as long as one with 16, and fewer shapes are fewer kernels to make
_PRODUCTS = 2**22  # of one block, whose maxima are turned into bounds together
_PIECE_BYTES = 2**20  # of products made at once: they stay in a core's cache until their maxima are taken
_MOST_ROWS = 2**16
_STORED_VALUES = 2**18  # values of one block that are copied out of the mapped files first: 1 MiB


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanQueries:
    """Queries as one scan wants them: the matrix it multiplies with, and their side of the proof.

    by_bits: whether products below 0 may count as 0.
    """

    matrix_DB: Tensor
    bounds: QueryBounds
    by_bits: bool = False


class BlockScan(ABC):
    """A scan in one precision. It answers bounds, never scores: whatever its precision, the search stays exact."""

    name: str

    def __init__(self, bounds: GroupBounds, dim: int, *, scaled: bool, products: torch.dtype) -> None:
        """products: in which type the kernel returns them."""
        self._dim = dim
        self._product_dtype = products
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

    def piece_groups(self, columns: int) -> int:
        """Groups of rows that are multiplied at once."""
        return max(_PIECE_BYTES // (columns * self._product_dtype.itemsize * GROUP_ROWS), 1)

    @abstractmethod
    def _multiply(self, first: int, queries: ScanQueries, products_nB: Tensor, scratch: Scratch) -> None:
        """Write the products of rows first, first + 1, ... with the queries."""

    def scan(self, groups: slice, queries: ScanQueries, scratch: Scratch, bounds_gB: Tensor) -> None:
        """Write into bounds_gB (float32) an upper bound, in units of the query, for each group of a block."""
        columns = bounds_gB.shape[1]
        piece_groups = self.piece_groups(columns)
        piece_rows = piece_groups * GROUP_ROWS
        largest_gB = scratch.take("largest", (len(bounds_gB), columns), self._product_dtype)
        products_nB = scratch.take("products", (piece_rows, columns), self._product_dtype)
        products, largest = (
            (by_bits(products_nB), by_bits(largest_gB)) if queries.by_bits else (products_nB, largest_gB)
        )
        products_prB = products.view(piece_groups, GROUP_ROWS, columns)
        # Every view of a tensor passes Python's lock to the other worker and waits for it; so few are made in the loop.
        first = groups.start * GROUP_ROWS
        for largest_pB in torch.split(largest, piece_groups):
            if len(largest_pB) < piece_groups:
                products_nB = products_nB[: len(largest_pB) * GROUP_ROWS]
                products_prB = products_prB[: len(largest_pB)]
            self._multiply(first, queries, products_nB, scratch)
            torch.amax(products_prB, dim=1, out=largest_pB)
            first += piece_rows
        if queries.by_bits:
            largest.clamp_(min=0)
        if self._scale_G1 is None:
            bounds_gB.copy_(largest_gB)
        else:
            torch.mul(largest_gB, self._scale_G1[groups], out=bounds_gB)
        bounds_gB.addcmul_(self._residual_G1[groups], queries.bounds.residual_weight_B)
        bounds_gB.addcmul_(self._norm_G1[groups], queries.bounds.norm_weight_B)


class CopyScan(BlockScan):
    """A scan over a low-precision copy of the rows: int8 products summed in int32, or bfloat16 summed in float32."""

    def __init__(self, precision: CopyPrecision, rows_ND: Tensor, bounds: GroupBounds) -> None:
        products = torch.int32 if precision == "int8" else COPY_DTYPES[precision]
        super().__init__(bounds, rows_ND.shape[1], scaled=True, products=products)
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
        return ScanQueries(matrix_DB=held.t(), bounds=bounds, by_bits=self._may_compare_bits(held.t()))

    def _may_compare_bits(self, held_DB: Tensor) -> bool:
        return self._product_dtype == torch.bfloat16 and mostly_positive(self._rows_ND, held_DB)

    def keeps_its_promise(self, queries_BD: NDArray[np.float64]) -> bool:
        """Whether torch's products of these queries with all rows are as close as the proof takes them to be."""
        queries = self.prepare(queries_BD)
        products_NB = torch.empty((len(self._rows_ND), len(queries_BD)), dtype=self._product_dtype)
        self._multiply(0, queries, products_NB, Scratch())
        rows_ND, held_DB = self._rows_ND.double(), queries.matrix_DB.double()
        allowed_NB = self._kernel_error() * torch.outer(rows_ND.norm(dim=1), held_DB.norm(dim=0))
        return bool(((products_NB.double() - rows_ND @ held_DB).abs() <= allowed_NB).all())

    def _kernel_error(self) -> float:
        """`kernel` of the proof. Products of int8 and their sums are whole numbers below 2^31."""
        return 0.0 if self.name == "int8" else bfloat16_error(self._dim)

    def _multiply(self, first: int, queries: ScanQueries, products_nB: Tensor, scratch: Scratch) -> None:
        rows_nD = self._rows_ND[first : first + len(products_nB)]
        if self.name == "int8":
            torch._int_mm(rows_nD, queries.matrix_DB, out=products_nB)
        elif products_nB.shape[1] == 1:  # a kernel of its own, which takes two thirds of the time
            torch.mv(rows_nD, queries.matrix_DB[:, 0], out=products_nB[:, 0])
        else:
            torch.mm(rows_nD, queries.matrix_DB, out=products_nB)


class StoredScan(BlockScan):
    """A float32 scan over the mapped rows themselves; no copy is kept, each block is scaled on its way in."""

    name = "float32"

    def __init__(self, vectors: ShardVectors, bounds: GroupBounds) -> None:
        # The rows themselves are scanned: their error is only what dividing them by a power of two can lose.
        exact_rows = GroupBounds(
            scale_G=bounds.scale_G, residual_G=np.zeros_like(bounds.residual_G), norm_G=bounds.norm_G
        )
        super().__init__(exact_rows, vectors.dim, scaled=False, products=torch.float32)
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

    def _multiply(self, first: int, queries: ScanQueries, products_nB: Tensor, scratch: Scratch) -> None:
        rows_nD = scratch.take("rows", (len(products_nB), self._dim), torch.float32)
        copy_rows(self._vectors, first, 2.0**-self._exponent, rows_nD.numpy())
        torch.mm(rows_nD, queries.matrix_DB, out=products_nB)


def whole_bands(rows: int) -> int:
    """Rows of whole bands, at least one."""
    return max(-(-rows // BAND_ROWS), 1) * BAND_ROWS
