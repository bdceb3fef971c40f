"""Rows that are few: all of them are multiplied in float32 as they lie, so that nothing has to be built for them."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.base import MipsIndex, ShardVectors, check_queries
from memory_store.mips.dense import search_dense
from memory_store.mips.encode import never_written
from memory_store.mips.exact import build_exact
from memory_store.mips.live import LiveRows
from memory_store.mips.rescore import NarrowQueries, score_pairs
from memory_store.mips.shortlist import best_of_pairs
from memory_store.mips.workers import Workers
from memory_store.topk import NO_FACT, PartialTopK
from memory_store.vectors import max_norm

# N rows, D dimension, B queries, b of them at once, K slots, P pairs of a query and a row

__all__ = ["FEW_ROWS", "FewRows", "index_exactly"]

FEW_ROWS = 3 << 12  # with more, a scan in lower precision wins back what its copy of the rows costs
_ONE_THREAD_ROWS = 1 << 16  # with fewer, to divide a search among threads takes longer than it saves
_QUERIES_AT_ONCE = 128
_CROWD = 4  # times k, and a few: more rows near the k-th best than this are told apart in float64


def index_exactly(vectors: ShardVectors, threads: int) -> MipsIndex:
    """An index for exact search that is cheap to build, over any number of rows, at least one."""
    if vectors.num_rows <= FEW_ROWS:
        longest = max((max_norm(chunk) for chunk in vectors.chunks), default=0.0)
        if NarrowQueries.row_scale(longest) == 1:
            return FewRows(vectors, longest)
    return build_exact(vectors, {}, threads if vectors.num_rows > _ONE_THREAD_ROWS else 1)


class FewRows:
    """Exact search: float32 products with every row, then the true scores of all that their error leaves in doubt."""

    def __init__(self, vectors: ShardVectors, longest: float) -> None:
        """longest: no row's norm exceeds it; it needs no scale; see NarrowQueries."""
        self._vectors = vectors
        self._longest = longest
        self._workers = Workers(1)
        chunks = vectors.chunks
        if len(chunks) == 1 and chunks[0].dtype == np.float32 and chunks[0].flags.c_contiguous:
            self._copy_ND, rows_ND = None, chunks[0]
        else:
            rows_ND = self._copy_ND = vectors.gather(np.arange(vectors.num_rows))
        self._rows_ND = never_written(rows_ND)

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, which rows in several parts or in another format need."""
        return 0 if self._copy_ND is None else self._copy_ND.nbytes

    def search(self, queries_BD: NDArray[np.float32], k: int, live: LiveRows | None = None) -> PartialTopK:
        """The k facts of largest inner product per query, of the live rows, by default all; see MipsIndex.search."""
        wide_BD = check_queries(queries_BD, self._vectors.dim, k).astype(np.float64)
        (answer,) = self._workers.side_by_side([partial(self._search, wide_BD, k, live)])
        return answer

    def _search(self, queries_BD: NDArray[np.float64], k: int, live: LiveRows | None) -> PartialTopK:
        answer = PartialTopK(
            fact_ids_BK=np.full((len(queries_BD), k), NO_FACT, dtype=np.int64),
            scores_BK=np.full((len(queries_BD), k), -np.inf),
        )
        for start in range(0, len(queries_BD), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            found = self._search_some(queries_BD[part], k, live)
            answer.fact_ids_BK[part], answer.scores_BK[part] = found.fact_ids_BK, found.scores_BK
        return answer

    def _search_some(self, queries_bD: NDArray[np.float64], k: int, live: LiveRows | None) -> PartialTopK:
        batch, slots = len(queries_bD), min(k, self._vectors.num_rows if live is None else live.count)
        if slots == 0:  # all are dead: an answer of nothing
            return search_dense(self._vectors, queries_bD, k, self._workers, live)
        narrow = NarrowQueries(queries_bD, self._longest)
        products_bN = torch.mm(narrow.queries_BD, self._rows_ND.t())
        if live is not None:
            products_bN[:, torch.from_numpy(live.dead_rows)] = -torch.inf
        kth_b = torch.topk(products_bN, slots, dim=1, sorted=False).values.amin(dim=1).numpy()
        query_P, row_P = np.nonzero(products_bN.numpy() >= narrow.near_limit(kth_b)[:, None])
        crowded_b = np.bincount(query_P, minlength=batch) > _CROWD * (k + 16)
        if crowded_b.any():
            query_P, row_P = query_P[~crowded_b[query_P]], row_P[~crowded_b[query_P]]
        true_P = score_pairs(self._vectors, row_P, queries_bD, query_P)
        answer = best_of_pairs(query_P, self._vectors.fact_ids_N[row_P], true_P, batch=batch, k=k)
        if crowded_b.any():
            dense = search_dense(self._vectors, queries_bD[crowded_b], k, self._workers, live)
            answer.fact_ids_BK[crowded_b], answer.scores_BK[crowded_b] = dense.fact_ids_BK, dense.scores_BK
        return answer
