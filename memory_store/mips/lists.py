"""Inverted lists: the rows stored list by list, and the scan of the lists that each query names (faiss does both)."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.mips.codes import CODE_BYTES, quantizer_type, range_rows, widened
from memory_store.mips.live import LiveRows
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.serialized import serialized
from memory_store.mips.workers import Workers

# N rows, n rows in a block, D dimension, W width of the codes, L lists, b queries, P lists probed, C candidates

__all__ = ["InvertedLists", "PackedLists"]

_ROW_NUMBER_BYTES = 8
_PACKED_COLUMNS = 2  # that share a code of 4 bits
_PACKED_SAMPLE = 2**14
_PACKED_ROUNDS = 8
_BEST_LIST_FIRST = 11  # faiss's number for scanning a query's lists in their order: few later rows are then kept
_BLOCK_ROWS = 32  # rows whose codes lie together
_LIST_BYTES = 64  # two vectors of the standard library, and what the allocator adds


class InvertedLists:
    """Rows by list, as codes with their row numbers; a scan reads whole lists and keeps the best rows of a query."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(
        cls, rows: ScaledRows, list_N: NDArray[np.int64], num_lists: int, codes: str, workers: Workers
    ) -> "InvertedLists":
        """Store every row in its list. codes: int8, bfloat16 or float32."""
        width = widened(rows.low_D[None]).shape[1]
        nowhere = faiss.IndexFlatIP(width)  # faiss asks for a way to choose lists; ours are chosen before it is called
        if codes == "float32":
            index = faiss.IndexIVFFlat(nowhere, width, num_lists, faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.IndexIVFScalarQuantizer(
                nowhere, width, num_lists, quantizer_type(codes), faiss.METRIC_INNER_PRODUCT, False
            )
            index.sq.train(range_rows(rows))
        index.is_trained = True
        for number, size in enumerate(np.bincount(list_N, minlength=num_lists).tolist()):
            # Growing by and by would leave half of the memory unused.
            index.invlists.resize(number, size)
            index.invlists.resize(number, 0)

        def add(worker: int) -> None:
            if worker == 0:
                faiss.omp_set_num_threads(workers.count)
                for part, block_nD in rows.blocks():
                    _add(index, part.start, widened(block_nD), list_N[part])
                faiss.omp_set_num_threads(1)

        workers.run(add)
        return cls(index)

    @property
    def nbytes(self) -> int:
        index = self._index
        return int(index.ntotal * (index.code_size + _ROW_NUMBER_BYTES) + index.nlist * _LIST_BYTES)

    def sizes(self) -> NDArray[np.int64]:
        """Rows in each list."""
        invlists = self._index.invlists
        return np.array([invlists.list_size(number) for number in range(self._index.nlist)], dtype=np.int64)

    def scan(
        self, queries_bD: NDArray[np.float32], lists_bP: NDArray[np.int64], count: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        """The `count` rows of highest inner product in each query's lists (a list of -1 is none), padded with -1."""
        unused_bP = np.zeros(lists_bP.shape, dtype=np.float32)  # scores of lists, which only residual codes need
        return _search(self._index, queries_bD, lists_bP, unused_bP, count, live)[1]

    def to_bytes(self) -> NDArray[np.uint8]:
        """The lists as faiss writes them: plain data, no code."""
        return serialized(self._index)

    @classmethod
    def from_bytes(cls, data: NDArray[np.uint8]) -> "InvertedLists":
        """The lists that to_bytes wrote."""
        return cls(faiss.deserialize_index(np.ascontiguousarray(data)))

    @staticmethod
    def planned_bytes(rows: int, width: int, lists: int, codes: str) -> int:
        """What nbytes will say."""
        return rows * (width * CODE_BYTES[codes] + _ROW_NUMBER_BYTES) + lists * _LIST_BYTES


class PackedLists:
    """Rows by list in half a byte for every two values: four times as fast to scan as int8, and less true.

    Product quantisation with 16 centroids per two columns (Jegou et al. 2011), scanned within registers (Andre et al.
    2015). Each list has a score of its own with a query, which is added to those of its rows.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(
        cls, rows: ScaledRows, list_N: NDArray[np.int64], num_lists: int, rng: np.random.Generator, workers: Workers
    ) -> "PackedLists":
        """Learn the centroids from a sample, and store every row in its list."""
        width = widened(rows.low_D[None]).shape[1]
        origins = faiss.IndexFlatIP(width)  # rows are stored as their difference from the origin of their list
        origins.add(np.zeros((num_lists, width), dtype=np.float32))
        plain = faiss.IndexIVFPQ(origins, width, num_lists, width // _PACKED_COLUMNS, 4, faiss.METRIC_INNER_PRODUCT)
        plain.by_residual = True
        plain.pq.cp.niter, plain.pq.cp.min_points_per_centroid = _PACKED_ROUNDS, 1
        sample_nW = widened(rows.take(rows.sample(_PACKED_SAMPLE, rng)))
        packed: list[Any] = []

        def add(worker: int) -> None:
            if worker == 0:
                faiss.omp_set_num_threads(workers.count)
                plain.pq.train(sample_nW)
                plain.is_trained = True
                for part, block_nD in rows.blocks():
                    _add(plain, part.start, widened(block_nD), list_N[part])
                packed.append(faiss.IndexIVFPQFastScan(plain))
                faiss.omp_set_num_threads(1)

        workers.run(add)
        # The packed lists share the origins with the plain ones, which end here; read back, they have their own.
        return cls.from_bytes(serialized(packed[0]))

    @property
    def nbytes(self) -> int:
        index = self._index
        return int(index.ntotal * (index.code_size + _ROW_NUMBER_BYTES) + index.nlist * self._list_bytes(index.d))

    def scan(
        self,
        queries_bD: NDArray[np.float32],
        lists_bP: NDArray[np.int64],
        list_scores_bP: NDArray[np.float32],
        count: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(scores, rows) [b, count] of the highest rows in each query's lists; -1 where there are fewer.

        Quickest where each query's lists come in the order of what they promise.
        """
        return _search(self._index, queries_bD, lists_bP, list_scores_bP, count, None)

    def to_bytes(self) -> NDArray[np.uint8]:
        """The lists as faiss writes them: plain data, no code."""
        return serialized(self._index)

    @classmethod
    def from_bytes(cls, data: NDArray[np.uint8]) -> "PackedLists":
        """The lists that to_bytes wrote."""
        index = faiss.deserialize_index(np.ascontiguousarray(data))
        index.implem = _BEST_LIST_FIRST
        return cls(index)

    @staticmethod
    def planned_bytes(rows: int, width: int, lists: int) -> int:
        """What nbytes will say."""
        return rows * (width // (2 * _PACKED_COLUMNS) + _ROW_NUMBER_BYTES) + lists * PackedLists._list_bytes(width)

    @staticmethod
    def _list_bytes(width: int) -> int:
        """Of a list: its origin, and half a block of rows that is not filled."""
        return _LIST_BYTES + 4 * width + _BLOCK_ROWS // 2 * width // (2 * _PACKED_COLUMNS)


def _search(
    index: Any,
    queries_bD: NDArray[np.float32],
    lists_bP: NDArray[np.int64],
    list_scores_bP: NDArray[np.float32],
    count: int,
    live: LiveRows | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    queries_bW = widened(queries_bD)
    lists_bP = np.ascontiguousarray(lists_bP, dtype=np.int64)
    list_scores_bP = np.ascontiguousarray(list_scores_bP, dtype=np.float32)
    scores_bC = np.empty((len(queries_bW), count), dtype=np.float32)
    rows_bC = np.empty((len(queries_bW), count), dtype=np.int64)
    parameters = faiss.SearchParametersIVF(nprobe=lists_bP.shape[1])
    if live is not None:
        parameters.sel = selector = live.selector()  # noqa: F841  # parameters hold no reference of their own
    index.search_preassigned_c(
        len(queries_bW),
        faiss.swig_ptr(queries_bW),
        count,
        faiss.swig_ptr(lists_bP),
        faiss.swig_ptr(list_scores_bP),
        faiss.swig_ptr(scores_bC),
        faiss.swig_ptr(rows_bC),
        False,
        parameters,
    )
    return scores_bC, rows_bC


def _add(index: "faiss.IndexIVF", first_row: int, block_nW: NDArray[np.float32], list_n: NDArray[np.int64]) -> None:
    numbers_n = np.arange(first_row, first_row + len(block_nW), dtype=np.int64)
    list_n = np.ascontiguousarray(list_n)
    index.add_core(len(block_nW), faiss.swig_ptr(block_nW), faiss.swig_ptr(numbers_n), faiss.swig_ptr(list_n))
