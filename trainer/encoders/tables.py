"""Large tables of feature vectors that learn row by row: lookups collect gradients, RowAdagrad applies them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# V rows of a table, U distinct rows looked up, X features looked up, W width of a row

__all__ = ["FeatureTable", "RowAdagrad", "sum_rows"]


class FeatureTable(nn.Module):
    """V rows of width W, indexed by feature hashes reduced to V values (the hashing trick: Weinberger et al. 2009).

    multiplier: odd; with another one, other features share a row (multiplicative hashing: Dietzfelbinger et al. 1997).

    The table is a buffer, not a parameter: a dense gradient or optimiser state for every row would cost more than the
    step. In training, `lookup` copies the few rows a batch needs into a small leaf tensor, and remembers it until the
    optimiser has applied its gradient.
    """

    weight_VW: Tensor
    hashing: Tensor

    def __init__(self, weight_VW: Tensor, *, multiplier: int = 1, learning_rate: float = 1.0) -> None:
        super().__init__()
        if weight_VW.ndim != 2 or len(weight_VW) & (len(weight_VW) - 1):
            raise ValueError(f"expected a table whose row count is a power of two, found {list(weight_VW.shape)}")
        if multiplier % 2 == 0:
            raise ValueError(f"expected an odd multiplier, found {multiplier}")
        self.register_buffer("weight_VW", weight_VW.contiguous())
        self.register_buffer("hashing", torch.tensor(multiplier))  # a checkpoint is of no use without it
        self.learning_rate = learning_rate
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._place_V: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.weight_VW)

    @property
    def multiplier(self) -> int:
        return int(self.hashing)

    def rows_of(self, feature_X: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The row of each 32-bit feature hash."""
        bits = len(self).bit_length() - 1
        # The high bits of the product depend on all bits of the hash.
        return ((feature_X * np.uint32(self.multiplier)) >> np.uint32(32 - bits)).astype(np.int64)

    def lookup(self, row_X: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(rows, place): rows[place] are the rows asked for.

        With gradients on, rows are the distinct ones [U, W], a leaf that collects their gradient. Without, or where so
        many are asked for that they may well be all, they are the table itself, and nothing is copied.
        """
        if not (torch.is_grad_enabled() and self.training):
            return self.weight_VW, torch.from_numpy(row_X)
        if len(row_X) >= len(self):
            rows_VW = self.weight_VW.detach().requires_grad_()
            self._pending.append((torch.arange(len(self)), rows_VW))
            return rows_VW, torch.from_numpy(row_X)
        distinct_U, place_X = self._distinct(row_X)
        index_U = torch.from_numpy(distinct_U)
        rows_UW = torch.index_select(self.weight_VW, 0, index_U).requires_grad_()
        self._pending.append((index_U, rows_UW))
        return rows_UW, torch.from_numpy(place_X)

    def _distinct(self, row_X: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """np.unique with its inverse, without sorting: one mark for each row of the table."""
        if self._place_V is None:
            self._place_V = np.full(len(self), -1, dtype=np.int64)
        self._place_V[row_X] = 0
        distinct_U = np.flatnonzero(self._place_V >= 0)
        self._place_V[distinct_U] = np.arange(len(distinct_U))
        place_X = self._place_V[row_X]
        self._place_V[distinct_U] = -1
        return distinct_U, place_X

    def take_gradients(self) -> tuple[Tensor, Tensor] | None:
        """(row numbers [U] ascending, gradient [U, W]) collected since the last call; lookups of one row are summed."""
        collected = [(index_U, rows_UW.grad) for index_U, rows_UW in self._pending if rows_UW.grad is not None]
        self._pending.clear()
        if not collected:
            return None
        if len(collected) == 1:
            return collected[0]
        return sum_rows([index_U for index_U, _ in collected], [grad_UW for _, grad_UW in collected])


class RowAdagrad:
    """Adagrad with one accumulator per row (Gupta et al. 2014; as in large recommender systems).

    A row moves by rate * g / sqrt(start + sum over its past of mean(g^2)), so that rare features learn fast and late.
    The state is one float per row, and a step costs as much as the rows it touches. start: the mean square below which
    a gradient hardly moves a row; with 0, the first gradient of a row moves it by the full rate however small it is.
    """

    def __init__(self, tables: dict[str, FeatureTable], *, start: float = 0.0) -> None:
        self.tables = tables
        self.accumulator = {name: torch.full((len(table),), start) for name, table in tables.items()}

    def step(self, rate: float, gradients: dict[str, tuple[Tensor, Tensor]] | None = None) -> None:
        """Apply the gradients given, or those the tables collected; `rate` multiplies each table's learning rate."""
        for name, table in self.tables.items():
            taken = table.take_gradients() if gradients is None else gradients.get(name)
            if taken is None:
                continue
            index_U, grad_UW = taken
            accumulator_V = self.accumulator[name]
            if len(index_U) == len(table):  # ascending and distinct, so these are all rows in their order
                accumulator_V.add_(grad_UW.square().mean(dim=1))
                scale_V1 = accumulator_V.add(1e-16).rsqrt_().unsqueeze(1)
                table.weight_VW.addcmul_(grad_UW, scale_V1, value=-rate * table.learning_rate)
                continue
            sum_U = accumulator_V[index_U].add_(grad_UW.square().mean(dim=1))
            accumulator_V[index_U] = sum_U
            scale_U1 = sum_U.add(1e-16).rsqrt_().unsqueeze(1)
            rows_UW = torch.index_select(table.weight_VW, 0, index_U)
            _put(table.weight_VW, index_U, rows_UW.addcmul_(grad_UW, scale_U1, value=-rate * table.learning_rate))

    def take_gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All gradients that the tables collected, by table name; for averaging among workers."""
        taken = {name: table.take_gradients() for name, table in self.tables.items()}
        return {name: pair for name, pair in taken.items() if pair is not None}


def sum_rows(indexes: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum gradients of equal rows: (distinct row numbers ascending, summed gradients).

    Within each of the `indexes` the row numbers are distinct and ascending. Sums run in the order given.
    """
    merged = np.sort(np.concatenate([index.numpy() for index in indexes]), kind="stable")  # merges what is sorted
    distinct_U = merged[np.append(True, merged[1:] != merged[:-1])]
    total_UW = torch.zeros(len(distinct_U), gradients[0].shape[1])
    for index, gradient in zip(indexes, gradients, strict=True):
        place = torch.from_numpy(np.searchsorted(distinct_U, index.numpy()))
        _put(total_UW, place, torch.index_select(total_UW, 0, place).add_(gradient))
    return torch.from_numpy(distinct_U), total_UW


def _put(table_VW: Tensor, index_U: Tensor, rows_UW: Tensor) -> None:
    """table_VW[index_U] = rows_UW for distinct rows; numpy writes in order, torch would first sort to be repeatable."""
    table_VW.numpy()[index_U.numpy()] = rows_UW.numpy()
