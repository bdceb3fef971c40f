"""Large tables of feature vectors that learn row by row: lookups collect gradients, RowAdagrad applies them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.encoders.lookups import Lookup, Places

# V rows of a table, U distinct rows looked up, X features looked up, W width of a row

__all__ = ["FeatureTable", "RowAdagrad", "RowGradients", "sum_rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowGradients:
    """The gradient of some rows of a table, and the rows as they were when they were looked up.

    index_U: int64, distinct, ascending. grad_UW, rows_UW: float32; whoever takes them may overwrite them. is_table: the
    rows are those of the table itself, all of them, and no copy: what is written to them is written to the table.
    """

    index_U: NDArray[np.int64]
    grad_UW: Tensor
    rows_UW: Tensor
    is_table: bool = False

    def __len__(self) -> int:
        return len(self.index_U)

    def within(self, start: int, stop: int) -> "RowGradients":
        """Those of the rows from start to stop; views."""
        part = slice(*np.searchsorted(self.index_U, [start, stop]))
        return replace(self, index_U=self.index_U[part], grad_UW=self.grad_UW[part], rows_UW=self.rows_UW[part])


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
        self._pending: list[tuple[Places, Tensor]] = []

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

    def places_of(self, row_X: NDArray[np.int64]) -> Places:
        """What `lookup` needs to know of these row numbers; tables of as many rows can share it."""
        if torch.is_grad_enabled() and self.training:
            return Places.of(row_X, len(self))
        return Places(place_X=row_X, row_U=None, order_X=None, starts_U=None)

    def lookup(self, places: Places) -> Lookup:
        """The rows asked for. Where they learn, a leaf that collects their gradient; else the table itself."""
        if places.order_X is None:
            return Lookup(rows_UW=self.weight_VW, places=places)
        if places.row_U is None:
            rows_UW = self.weight_VW.detach()
        else:
            rows_UW = torch.index_select(self.weight_VW, 0, torch.from_numpy(places.row_U))
        self._pending.append((places, rows_UW.requires_grad_()))  # atomic: questions and facts are encoded side by side
        return Lookup(rows_UW=rows_UW, places=places)

    def take_gradients(self) -> list[RowGradients]:
        """What the lookups since the last call collected, one by one; a row may be in several."""
        collected = [
            RowGradients(
                index_U=np.arange(len(self)) if places.row_U is None else places.row_U,
                grad_UW=rows_UW.grad,
                rows_UW=rows_UW.detach(),
                is_table=places.row_U is None,
            )
            for places, rows_UW in self._pending
            if rows_UW.grad is not None
        ]
        self._pending.clear()
        return collected


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
        for update in self.updates(rate, gradients, shares=1):
            update()

    def updates(
        self, rate: float, gradients: dict[str, tuple[Tensor, Tensor]] | None = None, *, shares: int
    ) -> list[Callable[[], None]]:
        """The same as that many calls to make, each for a share of every table's rows, in any order or side by side."""
        collected = {name: self._collected(name, gradients) for name in self.tables}
        return [partial(self._update, collected, rate, share, shares) for share in range(shares)]

    def _collected(self, name: str, gradients: dict[str, tuple[Tensor, Tensor]] | None) -> list[RowGradients]:
        table = self.tables[name]
        if gradients is None:
            return table.take_gradients()
        if name not in gradients:
            return []
        index_U, grad_UW = gradients[name]
        rows_UW = torch.index_select(table.weight_VW, 0, index_U)
        return [RowGradients(index_U=index_U.numpy(), grad_UW=grad_UW, rows_UW=rows_UW)]

    def _update(self, collected: dict[str, list[RowGradients]], rate: float, share: int, shares: int) -> None:
        for name, table in self.tables.items():
            start, stop = (len(table) * number // shares for number in (share, share + 1))
            lots = _summed([lot.within(start, stop) for lot in collected[name]])
            if lots and lots[-1].is_table:  # it has all the sums, and is overwritten in place
                lots = lots[-1:]
            accumulator_V, weight_VW = self.accumulator[name].numpy(), table.weight_VW
            # All sums are read before any is written: a row that several lots hold starts from the same one.
            sums = [torch.from_numpy(accumulator_V[lot.index_U]) for lot in lots]
            for lot, sum_U in zip(lots, sums, strict=True):
                grad_UW = lot.grad_UW.numpy()
                sum_U += torch.from_numpy(np.vecdot(grad_UW, grad_UW) / np.float32(grad_UW.shape[1]))
                scale_U1 = sum_U.add(1e-16).rsqrt_().unsqueeze(1)
                lot.rows_UW.addcmul_(lot.grad_UW, scale_U1, value=-rate * table.learning_rate)
                accumulator_V[lot.index_U] = sum_U.numpy()
                if not lot.is_table:
                    _put(weight_VW, lot.index_U, lot.rows_UW)

    def take_gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All gradients that the tables collected, by table name; for averaging among workers."""
        taken = {}
        for name, table in self.tables.items():
            if lots := table.take_gradients():
                taken[name] = sum_rows([torch.from_numpy(lot.index_U) for lot in lots], [lot.grad_UW for lot in lots])
        return taken


def sum_rows(indexes: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum gradients of equal rows: (distinct row numbers ascending, summed gradients).

    Within each of the `indexes` the row numbers are distinct and ascending. Sums run in the order given.
    """
    merged = np.sort(np.concatenate([index.numpy() for index in indexes]), kind="stable")  # merges what is sorted
    distinct_U = merged[np.append(True, merged[1:] != merged[:-1])]
    total_UW = torch.zeros(len(distinct_U), gradients[0].shape[1])
    for index, gradient in zip(indexes, gradients, strict=True):
        place = np.searchsorted(distinct_U, index.numpy())
        _put(total_UW, place, torch.index_select(total_UW, 0, torch.from_numpy(place)).add_(gradient))
    return torch.from_numpy(distinct_U), total_UW


def _summed(lots: list[RowGradients]) -> list[RowGradients]:
    """The lots, smallest first, so that a row in several has its sum in the last of them; what the others say is void.

    Who writes them in their order ends with what is right, and nothing is copied but the rows that are shared.
    """
    lots = sorted((lot for lot in lots if len(lot)), key=lambda lot: (len(lot), lot.is_table))
    for number, lot in enumerate(lots):
        left_X = np.arange(len(lot))
        for later in lots[number + 1 :]:
            place_X = np.minimum(np.searchsorted(later.index_U, lot.index_U[left_X]), len(later) - 1)
            shared_X = later.index_U[place_X] == lot.index_U[left_X]
            place, given = place_X[shared_X], left_X[shared_X]
            sum_XW = torch.index_select(later.grad_UW, 0, torch.from_numpy(place))
            sum_XW += torch.index_select(lot.grad_UW, 0, torch.from_numpy(given))
            _put(later.grad_UW, place, sum_XW)
            left_X = left_X[~shared_X]
    return lots


def _put(table_VW: Tensor, index_U: NDArray[np.int64], rows_UW: Tensor) -> None:
    """table_VW[index_U] = rows_UW for distinct rows, each one item; torch would sort them to be repeatable."""
    item = np.dtype((np.void, table_VW.shape[1] * table_VW.element_size()))
    table_VW.numpy().view(item)[:, 0][index_U] = rows_UW.contiguous().numpy().view(item)[:, 0]
