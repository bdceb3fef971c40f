"""TopK, the answer to a search, and the merge of many partial answers into one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.notebook import html_table

# B queries in a batch, K slots per query, S partial answers

__all__ = ["NO_FACT", "PartialTopK", "TopK", "merge", "select"]

_QUERIES_SHOWN, _SLOTS_SHOWN = 10, 5  # in a notebook
NO_FACT = -1  # the id in a slot that no fact fills; its score is -inf


@dataclass(frozen=True, kw_only=True, eq=False)
class PartialTopK:
    """What one shard answers. Scores stay float64 until the last merge, so that no tie is made by rounding.

    Rows are sorted by score, highest first, ties by smaller id; absent slots are id -1, score -inf, at the end.
    """

    fact_ids_BK: NDArray[np.int64]
    scores_BK: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TopK:
    """The answer to a search over one generation.

    fact_ids_BK: int64, -1 where fewer than K facts exist. scores_BK: float32 inner products, higher is better, -inf
    where absent. Sorted by score, ties by smaller id. coverage: fraction of the memory's facts that was searched.
    """

    fact_ids_BK: NDArray[np.int64]
    scores_BK: NDArray[np.float32]
    generation: int
    coverage: float = 1.0

    def __repr__(self) -> str:
        batch, k = self.fact_ids_BK.shape
        return f"TopK(queries={batch}, k={k}, generation={self.generation}, coverage={self.coverage:.3f})"

    def _repr_html_(self) -> str:
        batch, k = self.fact_ids_BK.shape
        shown = range(min(k, _SLOTS_SHOWN))
        rows = [
            (query, *(f"{self.fact_ids_BK[query, slot]} ({self.scores_BK[query, slot]:.4g})" for slot in shown))
            for query in range(min(batch, _QUERIES_SHOWN))
        ]
        of = f", the first {len(rows)}" if batch > len(rows) else ""
        title = f"{batch:,} queries{of}; k = {k}; generation {self.generation}; coverage {self.coverage:.3f}"
        return html_table(title, ("query", *(f"{slot + 1}: fact id (score)" for slot in shown)), rows)


def select(fact_ids_BC: NDArray[np.int64], scores_BC: NDArray[np.float64], k: int) -> PartialTopK:
    """The best k of C candidates per query by (score descending, id ascending), padded with -1 to k columns.

    Absent candidates carry id -1 and score -inf; they sort behind every real one.
    """
    batch, width = fact_ids_BC.shape
    absent_BC = fact_ids_BC == NO_FACT
    # lexsort: last key first. Absent slots last, then score, then id; a real -inf score still beats an absent slot.
    order_BC = np.lexsort((fact_ids_BC, -scores_BC, absent_BC), axis=1)[:, :k]
    ids_BK = np.full((batch, k), NO_FACT, dtype=np.int64)
    scores_BK = np.full((batch, k), -np.inf, dtype=np.float64)
    taken = min(k, width)
    ids_BK[:, :taken] = np.take_along_axis(fact_ids_BC, order_BC, axis=1)
    scores_BK[:, :taken] = np.take_along_axis(scores_BC, order_BC, axis=1)
    return PartialTopK(fact_ids_BK=ids_BK, scores_BK=scores_BK)


def merge(partials: Sequence[PartialTopK], k: int) -> PartialTopK:
    """Merge the answers of disjoint shards into the best k per query; the order of the partials does not matter."""
    ids_BC = np.concatenate([partial.fact_ids_BK for partial in partials], axis=1)
    scores_BC = np.concatenate([partial.scores_BK for partial in partials], axis=1)
    return select(ids_BC, scores_BC, k)
