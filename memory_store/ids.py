"""A growing set of fact ids that finds duplicates with vectorised numpy, whether it grows by one id or by a million."""

import numpy as np
from numpy.typing import NDArray

# N ids added at once

__all__ = ["IdSet"]


class IdSet:
    """Holds 8 bytes per id, in sorted runs of growing size: few runs to search, each id merged log N times."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []  # largest first

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, fact_ids_N: NDArray[np.int64]) -> int | None:
        """Add int64 ids [N] and return None; or add nothing and return an id that is held already or twice in N."""
        new = np.sort(fact_ids_N)
        repeated = new[1:][new[1:] == new[:-1]]
        if len(repeated):
            return int(repeated[0])
        known = self.first_known(new)
        if known is not None:
            return known
        while self._runs and len(self._runs[-1]) <= len(new):
            new = np.sort(np.concatenate([self._runs.pop(), new]), kind="stable")  # merges two sorted runs in O(n)
        if len(new):
            self._runs.append(new)
        return None

    def first_known(self, fact_ids_N: NDArray[np.int64]) -> int | None:
        """The first of the ids that the set holds, or None."""
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, fact_ids_N), len(run) - 1)
            known = fact_ids_N[run[at] == fact_ids_N]
            if len(known):
                return int(known[0])
        return None
