"""`hnsw`: a graph of near neighbours by plain inner product, walked from its top layer down by faiss."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.mips.approximate import SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.codes import (
    CODE_BYTES,
    CODES,
    choose_codes,
    code_width,
    planned_codes,
    quantizer_type,
    range_rows,
    spare_slots,
    widened,
)
from memory_store.mips.live import LiveRows
from memory_store.mips.options import one_of, whole_number
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.serialized import serialized
from memory_store.mips.workers import Workers, builders

# N rows, D dimension, b queries, C candidates, K slots

__all__ = ["LONGEST_QUEUE", "HnswSource", "build_hnsw", "hnsw_bytes", "restore_hnsw"]

_NEIGHBOURS = 32
_BUILD_QUEUE = 80
_DEFAULT_QUEUE = 64
LONGEST_QUEUE = 4096
_LINK_BYTES = 4
_NODE_BYTES = 16  # the level of a row and where its links begin
_UPPER_LAYERS = 1.1  # links of all layers, in terms of those of the lowest


class HnswSource(CandidateSource):
    """A navigable small-world graph (Malkov and Yashunin 2018) over inner products (Morozov and Babenko 2018).

    The rows are not reduced to unit vectors first: the value that a reduction adds is nearly the same in most rows and
    0 in queries, so that a graph of near rows leads queries astray (recall 0.2 seen).
    """

    effort_name = "ef"
    most_effort = LONGEST_QUEUE

    def __init__(self, graph: Any, ef: int) -> None:
        self._graph = graph
        self.default_effort = min(ef, LONGEST_QUEUE)

    @property
    def nbytes(self) -> int:
        graph, hnsw = self._graph, self._graph.hnsw
        links = int(hnsw.neighbors.size())
        return int(graph.storage.sa_code_size() * graph.ntotal + links * _LINK_BYTES + graph.ntotal * _NODE_BYTES)

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        count = spare_slots(k)
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, count))
        if live is not None:
            parameters.sel = selector = live.selector()  # noqa: F841  # parameters hold no reference of their own
        rows_bC: NDArray[np.int64] = self._graph.search(widened(queries_bD), count, params=parameters)[1]
        return rows_bC

    def arrays(self) -> SavedArrays:
        return {"graph": serialized(self._graph)}


def build_hnsw(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Insert the rows one by one into a graph, on all threads at once."""
    workers = Workers(threads)
    neighbours, queue, ef = _settings(spec)
    codes = one_of(spec, "codes", CODES)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    rows = ScaledRows(vectors)
    stored, width = choose_codes(codes, rows), code_width(rows.dim)
    if stored == "float32":
        graph = faiss.IndexHNSWFlat(width, neighbours, faiss.METRIC_INNER_PRODUCT)
    else:
        graph = faiss.IndexHNSWSQ(width, quantizer_type(stored), neighbours, faiss.METRIC_INNER_PRODUCT)
        graph.train(range_rows(rows))
    graph.hnsw.efConstruction = queue

    def add(worker: int) -> None:
        if worker == 0:
            faiss.omp_set_num_threads(threads)
            for _, block_nD in rows.blocks():
                graph.add(widened(block_nD))
            faiss.omp_set_num_threads(1)

    builders(threads).run(add)
    return ApproximateIndex(vectors, HnswSource(graph, ef), workers)


def restore_hnsw(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that HnswSource.arrays describes."""
    graph = faiss.deserialize_index(np.array(arrays["graph"]))
    return ApproximateIndex(vectors, HnswSource(graph, _settings(spec)[2]), Workers(threads))


def hnsw_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an index over so many rows will hold, at most."""
    codes = planned_codes(one_of(spec, "codes", CODES))
    links = 2 * _settings(spec)[0] * _LINK_BYTES * _UPPER_LAYERS
    return int(rows * (code_width(dim) * CODE_BYTES[codes] + links + _NODE_BYTES))


def _settings(spec: IndexSpec) -> tuple[int, int, int]:
    """(neighbours per row, queue while building, queue while searching)."""
    return (
        whole_number(spec, "m", _NEIGHBOURS, least=2, most=512),
        whole_number(spec, "ef_construction", _BUILD_QUEUE),
        whole_number(spec, "ef", _DEFAULT_QUEUE, most=LONGEST_QUEUE),
    )
