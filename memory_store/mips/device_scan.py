"""A scan on a device of torch's: copy, products and bounds stay there; what settling asks about them comes back."""

import threading
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.mips.bounds import GroupBounds, bfloat16_error, float32_error
from memory_store.mips.encode import BAND_GROUPS, BAND_ROWS, COPY_DTYPES, GROUP_ROWS, CopyPrecision
from memory_store.mips.scan import MOST_COLUMNS, CopyScan, ScanQueries, whole_bands
from memory_store.mips.scratch import Scratch
from memory_store.mips.shortlist import UpperBounds

# N rows, G groups of rows in a band, S bands, D dimension, B queries (columns of a scan), b queries,
# q of them asked about, m groups per query, P pairs of a query and a group

__all__ = ["DeviceScan", "DeviceUpperBounds", "block_products", "device_bytes"]

_LEAST_COLUMNS = 16  # cuBLAS multiplies int8 only where all sizes are multiples of 8
_PRODUCTS = 2**26  # of one block: each is a few kernels, whose start costs as much as 2^20 products
_PRODUCTS_HERE = 2**20  # where the device is this processor, which only tests ask for
_SPARE_BYTES = 2**28  # what torch and its libraries take beside
_BOUND_COPIES = 2  # the bounds of one scan, and as much again while they are asked about


class DeviceScan(CopyScan):
    """A scan over a copy of the rows in the memory of a device; the same steps as here, over larger blocks.

    Nothing in it is CUDA's own: with torch's CPU device it is tested wherever torch runs. Only one search at a time may
    use it, from the scan to its last question about the bounds, and must hold `one_at_a_time` meanwhile: a device gains
    nothing from a second one, and its memory is then known beforehand.
    """

    def __init__(self, precision: CopyPrecision, rows_ND: Tensor, bounds: GroupBounds, device: torch.device) -> None:
        """rows_ND: what `encode` returned, in main memory. Raises torch.OutOfMemoryError."""
        super().__init__(precision, rows_ND, bounds)
        self.device = device
        self.one_at_a_time = threading.Lock()
        self._num_rows, self._num_groups = len(rows_ND), self.num_groups
        # Rows of zeros fill the last band: cuBLAS multiplies int8 only in blocks of more than 16 rows.
        num_rows = whole_bands(self._num_rows)
        self._rows_ND = _filled(rows_ND, num_rows, device)
        scale_G1, residual_G1, norm_G1 = (
            _filled(values_G1, num_rows // GROUP_ROWS, device)
            for values_G1 in bounds.scaled(self._exponent, rows_ND.shape[1])
        )
        self._scale_G1, self._residual_G1, self._norm_G1 = scale_G1, residual_G1, norm_G1
        self._scratch = Scratch(device)
        self._take(MOST_COLUMNS)  # now, so that no search finds the memory gone

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return super().nbytes + self._scratch.nbytes

    def held_rows(self) -> Tensor:
        """The copy [padded N, D], brought back."""
        return self._rows_ND[: self._num_rows].cpu()

    def block_rows(self, columns: int, at_most: int) -> int:
        most_bands = block_products(self.device) // (columns * BAND_ROWS)
        return min(most_bands * BAND_ROWS, whole_bands(at_most))

    def piece_groups(self, columns: int) -> int:
        return self.block_rows(columns, len(self._rows_ND)) // GROUP_ROWS

    def most_columns(self, batch: int) -> int:
        return MOST_COLUMNS

    def padded_columns(self, batch: int) -> int:
        return max(super().padded_columns(batch), _LEAST_COLUMNS)

    def prepare(self, queries_BD: NDArray[np.float64]) -> ScanQueries:
        here = super().prepare(queries_BD)
        weights = {name: getattr(here.bounds, name).to(self.device) for name in ("residual_weight_B", "norm_weight_B")}
        return ScanQueries(matrix_DB=here.matrix_DB.to(self.device), bounds=replace(here.bounds, **weights))

    def upper_bounds(self, queries_BD: NDArray[np.float64]) -> "DeviceUpperBounds":
        """The bounds of all groups for queries [B, D], B as `padded_columns` wants it; good until the next scan."""
        queries, columns = self.prepare(queries_BD), len(queries_BD)
        bounds_GB, bands_SB = self._take(columns)
        block_groups = self.block_rows(columns, len(self._rows_ND)) // GROUP_ROWS
        for start in range(0, len(bounds_GB), block_groups):
            groups = slice(start, min(start + block_groups, len(bounds_GB)))
            self.scan(groups, queries, self._scratch, bounds_GB[groups])
        bounds_GB[self._num_groups :] = -torch.inf
        bounds_SGB = bounds_GB.view(-1, BAND_GROUPS, columns)
        torch.amax(bounds_SGB, dim=1, out=bands_SB)
        return DeviceUpperBounds(bounds_SGb=bounds_SGB, bands_Sb=bands_SB, unit_b=queries.bounds.unit_B)

    def keeps_its_promise(self, queries_BD: NDArray[np.float64]) -> bool:
        """As CopyScan's, of a scan whose rows are one band, repeated: every repetition is looked at.

        The last step as well: no bound may lie below a true score of what is held.
        """
        queries = self.prepare(queries_BD)
        products_NB = self._scratch.take("products", (len(self._rows_ND), len(queries_BD)), self._product_dtype)
        self._multiply(0, queries, products_NB, self._scratch)
        repeated = products_NB.view(-1, BAND_ROWS, len(queries_BD))
        band_ND, held_DB = self._rows_ND[:BAND_ROWS].double().cpu(), queries.matrix_DB.double().cpu()
        true_NB = band_ND @ held_DB
        allowed_NB = self._kernel_error() * torch.outer(band_ND.norm(dim=1), held_DB.norm(dim=0))
        for extreme_NB in (repeated.amax(dim=0), repeated.amin(dim=0)):
            if not ((extreme_NB.cpu().double() - true_NB).abs() <= allowed_NB).all():
                return False
        true_GB = true_NB.view(-1, GROUP_ROWS, len(queries_BD)).amax(dim=1)
        assert self._scale_G1 is not None, "a copy is scaled"
        true_GB *= self._scale_G1[: len(true_GB)].double().cpu()
        lowest_GB = self.upper_bounds(queries_BD).bounds_SGb.amin(dim=0).cpu().double()
        return bool((lowest_GB >= true_GB).all())

    def _may_compare_bits(self, held_DB: Tensor) -> bool:
        return False

    def _kernel_error(self) -> float:
        if self.name == "float32":
            return float32_error(self._dim, self.device.type)
        return 0.0 if self.name == "int8" else bfloat16_error(self._dim, self.device.type)

    def _take(self, columns: int) -> tuple[Tensor, Tensor]:
        """Room for the bounds of one scan and of its bands, and for the products of one block."""
        num_groups = len(self._norm_G1)
        block = self.block_rows(columns, len(self._rows_ND))
        self._scratch.take("products", (block, columns), self._product_dtype)
        self._scratch.take("largest", (block // GROUP_ROWS, columns), self._product_dtype)
        return (
            self._scratch.take("bounds", (num_groups, columns), torch.float32),
            self._scratch.take("bands", (num_groups // BAND_GROUPS, columns), torch.float32),
        )


class DeviceUpperBounds(UpperBounds[Tensor]):
    """Bounds in the memory of a device. Any thread may ask."""

    def take_highest(self, m: int, queries_q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        asked_q = torch.from_numpy(queries_q).to(self.bands_Sb.device)
        width = min(m, len(self.bands_Sb))
        band_qs = torch.topk(self.bands_Sb[:, asked_q], width, dim=0).indices.t()
        members_qg = self.bounds_SGb[band_qs, :, asked_q[:, None]].reshape(len(queries_q), width * BAND_GROUPS)
        member_qm = torch.topk(members_qg, m, dim=1).indices
        band_qm, offset_qm = band_qs.gather(1, member_qm // BAND_GROUPS), member_qm % BAND_GROUPS
        self.bounds_SGb[band_qm, offset_qm, asked_q[:, None]] = -torch.inf
        group_P: NDArray[np.int64] = (band_qm * BAND_GROUPS + offset_qm).flatten().cpu().numpy()
        return np.repeat(queries_q, m), group_P

    def reaching(
        self, limit_b: NDArray[np.float32], most_groups: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        limits_b = torch.from_numpy(limit_b).to(self.bands_Sb.device)
        band_P, banded_P = torch.nonzero(self.bands_Sb >= limits_b, as_tuple=True)
        few_b = torch.bincount(banded_P, minlength=len(limit_b)) <= most_groups
        band_P, banded_P = band_P[few_b[banded_P]], banded_P[few_b[banded_P]]
        at_P, offset_P = torch.nonzero(self.bounds_SGb[band_P, :, banded_P] >= limits_b[banded_P, None], as_tuple=True)
        query_P, group_P = banded_P[at_P], band_P[at_P] * BAND_GROUPS + offset_P
        few_b &= torch.bincount(query_P, minlength=len(limit_b)) <= most_groups
        kept_P = few_b[query_P]
        return query_P[kept_P].cpu().numpy(), group_P[kept_P].cpu().numpy(), few_b.cpu().numpy()


def device_bytes(rows: int, dim: int, precision: CopyPrecision, device: torch.device) -> int:
    """What a scan over so many rows takes on the device, at most: copy, bounds, and the workspace of one search."""
    held = whole_bands(rows)
    groups = held // GROUP_ROWS
    copy = held * dim * COPY_DTYPES[precision].itemsize + 3 * 4 * groups
    bounds = 4 * MOST_COLUMNS * (groups + groups // BAND_GROUPS)
    products = 4 * min(block_products(device), held * MOST_COLUMNS)
    return copy + _BOUND_COPIES * bounds + products + products // GROUP_ROWS + _SPARE_BYTES


def block_products(device: torch.device) -> int:
    """How many products a block holds, at most."""
    return _PRODUCTS_HERE if device.type == "cpu" else _PRODUCTS


def _filled(values: Tensor, rows: int, device: torch.device) -> Tensor:
    """On the device, with rows of zeros at the end."""
    held = torch.zeros((rows, *values.shape[1:]), dtype=values.dtype, device=device)
    held[: len(values)].copy_(values)
    return held
