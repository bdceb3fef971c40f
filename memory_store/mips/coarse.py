"""Which lists a query probes: those of the highest mean score, found among all means or by way of groups of lists."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import SavedArrays, ShardVectors
from memory_store.mips.highest import highest_columns
from memory_store.mips.lists import InvertedLists
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.workers import Workers

# D dimension, L lists, S groups of lists, b queries, P lists probed, G groups looked at

__all__ = ["AllMeans", "GroupedMeans", "ListChooser"]

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
        """The `count` lists to probe for each query, in any order: int64 [b, count]; -1 where fewer were found."""

    @abstractmethod
    def arrays(self) -> SavedArrays:
        """All that is needed to restore it."""


class AllMeans(ListChooser):
    """Every mean is scored: one product, and best where lists are a few thousand."""

    def __init__(self, means_LD: NDArray[np.float32], *, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the product; bfloat16 is twice as fast on processors that have it, and chooses nearly the same."""
        self.num_lists = len(means_LD)
        self._means_LD = means_LD
        self._columns_DL = torch.from_numpy(means_LD).to(dtype).t()

    @property
    def nbytes(self) -> int:
        return self._means_LD.nbytes + (self._columns_DL.nbytes if self._columns_DL.dtype != torch.float32 else 0)

    def choose(self, queries_bD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        queries = torch.from_numpy(queries_bD).to(self._columns_DL.dtype)
        scores_bL = torch.mm(queries, self._columns_DL).float()
        return highest_columns(scores_bL, count)[1].numpy()

    def arrays(self) -> SavedArrays:
        return {"means": self._means_LD}


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
        num_groups = self._groups.num_lists
        enough = -(-_SPARE_GROUPS * count * num_groups // self.num_lists)
        looked_at = min(max(enough, -(-num_groups // _GROUPS_SHARE)), num_groups)
        return self._members.scan(queries_bD, self._groups.choose(queries_bD, looked_at), count, None)

    def arrays(self) -> SavedArrays:
        return {**self._groups.arrays(), "members": self._members.to_bytes()}
