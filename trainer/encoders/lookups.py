"""Looking up rows of a table for many features at once, with gradients that are summed in the order of the rows."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# U distinct rows looked up, X features looked up, B bags of them, W width of a row

__all__ = ["Lookup", "Places"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Which of a table's rows X features ask for: feature x finds its row at place_X[x] of the U rows looked up.

    row_U: int64, ascending; None where all rows of the table are looked up. For gradients, order_X lists the features
    row by row, those of row u from starts_U[u] on; they are None where nothing learns.
    """

    place_X: NDArray[np.int64]
    row_U: NDArray[np.int64] | None
    order_X: NDArray[np.int64] | None
    starts_U: NDArray[np.int64] | None

    @classmethod
    def of(cls, row_X: NDArray[np.int64], num_rows: int) -> "Places":
        """Of row numbers in any order. Where so many are asked for that they may well be all rows, all are."""
        # Sorting one number that holds both is several times as fast as an argsort.
        key_X = np.sort(row_X.astype(np.uint64) << np.uint64(32) | np.arange(len(row_X), dtype=np.uint64))
        order_X = (key_X & np.uint64(2**32 - 1)).astype(np.int64)
        sorted_X = (key_X >> np.uint64(32)).astype(np.int64)
        if len(row_X) >= num_rows:
            return cls(
                place_X=row_X, row_U=None, order_X=order_X, starts_U=np.searchsorted(sorted_X, np.arange(num_rows))
            )
        is_first_X = np.append(True, sorted_X[1:] != sorted_X[:-1])[: len(row_X)]
        starts_U = np.flatnonzero(is_first_X)
        place_X = np.empty(len(row_X), dtype=np.int64)
        place_X[order_X] = np.cumsum(is_first_X) - 1
        return cls(place_X=place_X, row_U=sorted_X[starts_U], order_X=order_X, starts_U=starts_U)

    def only(self, wanted: NDArray[np.int64]) -> "Places":
        """The same for some of the features, numbered anew; ascending. The U rows stay the same."""
        if self.order_X is None or self.starts_U is None:
            return Places(place_X=self.place_X[wanted], row_U=self.row_U, order_X=None, starts_U=None)
        number_X = np.full(len(self.place_X), -1, dtype=np.int64)
        number_X[wanted] = np.arange(len(wanted))
        number_X = number_X[self.order_X]
        kept_X = number_X >= 0
        return Places(
            place_X=self.place_X[wanted],
            row_U=self.row_U,
            order_X=number_X[kept_X],
            starts_U=np.append(0, np.cumsum(kept_X))[self.starts_U],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup:
    """The rows that features asked for: rows_UW[places.place_X[x]] is that of feature x."""

    rows_UW: Tensor
    places: Places

    def only(self, wanted: NDArray[np.int64]) -> "Lookup":
        """Of some of the features, numbered anew; ascending."""
        return Lookup(rows_UW=self.rows_UW, places=self.places.only(wanted))

    def values(self) -> Tensor:
        """[X]: the row of each feature, of a table of width 1."""
        gathered: Tensor = _Gathered.apply(self.rows_UW, self.places.place_X)  # type: ignore[no-untyped-call]
        return gathered

    def bags(self, offsets: NDArray[np.int64], weight_X: Tensor | None = None) -> Tensor:
        """[B, W]: the weighted sums of the rows of features offsets[b] to offsets[b + 1], with gradient to both."""
        place_X, starts_B = torch.from_numpy(self.places.place_X), torch.from_numpy(offsets[:-1])
        weight_X = None if weight_X is None else weight_X.contiguous()  # torch is ten times as slow with strided ones
        sum_BW = functional.embedding_bag(
            place_X, self.rows_UW.detach(), starts_B, mode="sum", per_sample_weights=weight_X
        )
        if not (self.rows_UW.requires_grad and torch.is_grad_enabled()):
            return sum_BW
        learning: Tensor = _Bags.apply(sum_BW, self.rows_UW, weight_X, offsets, self.places)  # type: ignore[no-untyped-call]
        return learning


class _Bags(torch.autograd.Function):
    """Passes on the sums of bags and their gradient, and gives the rows theirs.

    torch's own gradient of a bag sorts the features each time; here they are in order already, and the gradient of the
    rows is again a sum of bags: row by row, over the bags that it is in.
    """

    @staticmethod
    def forward(ctx, sum_BW, rows_UW, weight_X, offsets, places):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight_X)
        ctx.offsets, ctx.places = offsets, places
        return sum_BW.view_as(sum_BW)

    @staticmethod
    def backward(ctx, grad_BW):  # type: ignore[no-untyped-def]
        (weight_X,) = ctx.saved_tensors
        bag_X = np.repeat(np.arange(len(ctx.offsets) - 1), np.diff(ctx.offsets))
        order_X = torch.from_numpy(ctx.places.order_X)
        grad_UW = functional.embedding_bag(
            torch.from_numpy(bag_X[ctx.places.order_X]),
            grad_BW,
            torch.from_numpy(ctx.places.starts_U),
            mode="sum",
            per_sample_weights=None if weight_X is None else weight_X[order_X],
        )
        return grad_BW, grad_UW, None, None, None


class _Gathered(torch.autograd.Function):
    """rows_U1[place_X, 0], with a gradient that is summed in order."""

    @staticmethod
    def forward(ctx, rows_U1, place_X):  # type: ignore[no-untyped-def]
        ctx.place_X, ctx.rows = place_X, len(rows_U1)
        return rows_U1[:, 0][torch.from_numpy(place_X)]

    @staticmethod
    def backward(ctx, grad_X):  # type: ignore[no-untyped-def]
        summed_U = np.bincount(ctx.place_X, weights=grad_X.numpy(), minlength=ctx.rows)
        return torch.from_numpy(summed_U).to(grad_X.dtype).unsqueeze(1), None
