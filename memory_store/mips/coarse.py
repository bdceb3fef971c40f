"""Which lists a query probes: those of the highest mean score, found among all means or by way of groups of lists."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import SavedArrays, ShardVectors
from memory_store.mips.highest import highest_columns
from memory_store.mips.lists import InvertedLists
from memory_store.mips.rounded import RoundedVectors
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.workers import Workers

# D dimension, L lists, S groups of lists, b queries, P lists probed, G groups looked at

__all__ = ["AllMeans", "GroupedMeans", "ListChooser", "groups_looked_at"]

_GROUPS_SHARE = 8  # at least one group in so many is looked at,
_SPARE_GROUPS = 4  # and so many times the groups that would hold the lists to probe


class ListChooser(ABC):
    """The vectors that stand for the lists, as they are searched."""

    num_lists: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory held."""

    @abstractmethod
    def choose(self, queries_bD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` lists to probe for each query, the best first: int64 [b, count]; -1 where fewer were found."""

    @abstractmethod
    def arrays(self) -> SavedArrays:
        """All that is needed to restore it."""


class AllMeans(ListChooser):
    """Every mean is scored: one product, and best where lists are a few thousand."""

    def __init__(self, means_LD: NDArray[np.float32], spread_L: NDArray[np.float32] | None = None) -> None:
        """spread_L: how far a list's best row is thought to score above the mean, for each unit of a query's length.

        With it, rounded means are multiplied, which is quicker and chooses nearly the same.
        """
        self.num_lists = len(means_LD)
        self._means_LD, self._spread_L = means_LD, spread_L
        self._rounded = None if spread_L is None else RoundedVectors(means_LD, spread_L)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self._means_LD, self._spread_L, self._rounded) if part is not None)

    def choose(self, queries_bD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        if self._rounded is not None:
            scores_bL = self._rounded.products(queries_bD)[0]
        else:
            scores_bL = torch.mm(torch.from_numpy(queries_bD), torch.from_numpy(self._means_LD).t()).numpy()
        return highest_columns(scores_bL, count)

    def arrays(self) -> SavedArrays:
        return {"means": self._means_LD} | ({} if self._spread_L is None else {"spread": self._spread_L})


class GroupedMeans(ListChooser):
    """Lists in groups: the groups of the highest mean are looked at, and the best lists within them probed."""

    def __init__(self, group_means_SD: NDArray[np.float32], members: InvertedLists, num_lists: int) -> None:
        """members: the means of the lists, one inverted list per group."""
        self.num_lists = num_lists
        self._groups = AllMeans(group_means_SD)
        self._members = members

    @classmethod
    def build(cls, means_LD: NDArray[np.float32], group_L: NDArray[np.int64], workers: Workers) -> "GroupedMeans":
        """Group the means as group_L says; every group has a member."""
        num_groups = int(group_L.max()) + 1
        sums_SD = torch.zeros((num_groups, means_LD.shape[1]))
        sums_SD.index_add_(0, torch.from_numpy(group_L), torch.from_numpy(means_LD))
        sizes_S1: NDArray[np.float32] = np.bincount(group_L).astype(np.float32)[:, None]
        group_means_SD: NDArray[np.float32] = np.divide(sums_SD.numpy(), sizes_S1, dtype=np.float32)
        rows = ScaledRows(ShardVectors(np.arange(len(means_LD)), [means_LD], means_LD.shape[1]))
        members = InvertedLists.build(rows, group_L, num_groups, "float32", workers)
        return cls(group_means_SD, members, len(means_LD))

    @property
    def nbytes(self) -> int:
        return self._groups.nbytes + self._members.nbytes

    def choose(self, queries_bD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        looked_at = groups_looked_at(self._groups.num_lists, self.num_lists, count)
        return self._members.scan(queries_bD, self._groups.choose(queries_bD, looked_at), count, None)

    def arrays(self) -> SavedArrays:
        return {**self._groups.arrays(), "members": self._members.to_bytes()}


def groups_looked_at(groups: int, lists: int, probed: int) -> int:
    """How many groups of lists are looked at for so many lists to probe."""
    enough = -(-_SPARE_GROUPS * probed * groups // lists)
    return min(max(enough, -(-groups // _GROUPS_SHARE)), groups)
