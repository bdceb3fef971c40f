"""`faiss:<factory string>`: any index that faiss can build for inner products, as a source of candidates."""

import logging
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.errors import UnknownIndex
from memory_store.mips.approximate import NO_ROW, SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.hnsw import LONGEST_QUEUE
from memory_store.mips.live import LiveRows
from memory_store.mips.options import whole_number
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.serialized import serialized, serialized_bytes
from memory_store.mips.workers import Workers, builders

# N rows, D dimension, b queries, C candidates, K slots

__all__ = ["FaissSource", "build_faiss", "faiss_bytes", "restore_faiss"]

_REFINE = 4
_MOST_REFINE = 1024
_TRAINING_ROWS = 2**18
_FEW_ROWS = 2**16  # with fewer, an index that cannot be trained is taken to want more rows
_MOST_FOR_DEAD_ROWS = 1024  # faiss passes no mask to most indexes: so many more candidates make up for it
_ROW_BYTES = 16  # a row number, and what lists and graphs add
_LINKS_BYTES = 4 * 2 * 32 * 1.1  # per row of a graph with 32 neighbours
_SEED = 0


class FaissSource(CandidateSource):
    """An index of faiss as its factory built it; `refine` candidates are scored per slot of the answer.

    The effort is nprobe of an IVF index, ef of an HNSW graph, and refine of any other.
    """

    def __init__(self, index: Any, refine: int, num_bytes: int) -> None:
        self._index = index
        self._refine = refine
        self._num_bytes = num_bytes
        if isinstance(index, faiss.IndexIVF):
            self.effort_name, self.default_effort, self.most_effort = "nprobe", index.nprobe, index.nlist
        elif isinstance(index, faiss.IndexHNSW):
            self.effort_name, self.default_effort, self.most_effort = "ef", index.hnsw.efSearch, LONGEST_QUEUE
        else:
            self.effort_name, self.default_effort, self.most_effort = "refine", refine, _MOST_REFINE

    @property
    def nbytes(self) -> int:
        return self._num_bytes

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        spare = 0 if live is None else min(live.dead, _MOST_FOR_DEAD_ROWS)
        refine = effort if self.effort_name == "refine" else self._refine
        count = min(k * refine + spare, self._index.ntotal)
        parameters = None
        if self.effort_name == "nprobe":
            parameters = faiss.SearchParametersIVF(nprobe=effort)
        elif self.effort_name == "ef":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, count))
        rows_bC: NDArray[np.int64] = self._index.search(queries_bD, count, params=parameters)[1]
        # Some indexes name a row twice when they run short: every further mention is dropped.
        order_bC = np.argsort(rows_bC, axis=1, kind="stable")
        sorted_bC = np.take_along_axis(rows_bC, order_bC, axis=1)
        sorted_bC[:, 1:][sorted_bC[:, 1:] == sorted_bC[:, :-1]] = NO_ROW
        return sorted_bC

    def arrays(self) -> SavedArrays:
        return {"index": serialized(self._index)}


def build_faiss(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Train and fill the index that the factory string describes. Raises UnknownIndex where faiss refuses it."""
    workers = Workers(threads)
    refine = _refine(spec)
    index = _make(spec, vectors.dim)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    rows = ScaledRows(vectors)
    sample_nD = rows.take(rows.sample(_TRAINING_ROWS, np.random.default_rng(_SEED)))
    built: list[Any] = []

    def build(worker: int) -> None:
        if worker == 0:
            faiss.omp_set_num_threads(threads)
            built.append(_trained(index, sample_nD, spec, rows))
            for _, block_nD in rows.blocks():
                built[0].add(block_nD)
            faiss.omp_set_num_threads(1)

    builders(threads).run(build)
    return ApproximateIndex(vectors, FaissSource(built[0], refine, serialized_bytes(built[0])), workers)


def restore_faiss(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that FaissSource.arrays describes."""
    data = np.array(arrays["index"])
    index = faiss.deserialize_index(data)
    _set_search(index, spec)
    return ApproximateIndex(vectors, FaissSource(index, _refine(spec), len(data)), Workers(threads))


def faiss_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an index over so many rows will hold, about: the codes that the factory string names, numbers and links."""
    _refine(spec)
    index = _make(spec, dim)
    links = _LINKS_BYTES if "HNSW" in spec.argument or "NSG" in spec.argument else 0
    centroids = getattr(index, "nlist", 0) * dim * 4
    return int(rows * (index.sa_code_size() + _ROW_BYTES + links) + centroids)


def _make(spec: IndexSpec, dim: int) -> Any:
    try:
        index = faiss.index_factory(dim, spec.argument, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as refused:
        reason = " ".join(str(refused).split()).rpartition("Error: ")[2] or "not a factory string"
        raise UnknownIndex(f"faiss cannot build {spec.argument!r} for dimension {dim}: {reason}") from None
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.cp.min_points_per_centroid = 1  # or it writes a warning to stderr where rows are few
    _set_search(index, spec)
    return index


def _set_search(index: Any, spec: IndexSpec) -> None:
    text = spec.options.get("search", "")
    if not text:
        return
    try:
        faiss.ParameterSpace().set_index_parameters(index, text)
    except RuntimeError:
        raise UnknownIndex(
            f"faiss cannot set {text!r} on {spec.argument!r}; expected ?search=nprobe=8 or another of its parameters"
        ) from None


def _trained(index: Any, sample_nD: NDArray[np.float32], spec: IndexSpec, rows: ScaledRows) -> Any:
    try:
        index.train(sample_nD)
    except RuntimeError as refused:
        if rows.num_rows > _FEW_ROWS:
            raise UnknownIndex(f"faiss cannot train {spec.argument!r}: {' '.join(str(refused).split())}") from None
        logging.getLogger(__name__).warning(
            "faiss cannot train %r on %d rows; every row is scanned instead", spec.argument, rows.num_rows
        )
        return faiss.IndexFlatIP(rows.dim)
    return index


def _refine(spec: IndexSpec) -> int:
    return whole_number(spec, "refine", _REFINE, most=_MOST_REFINE)
