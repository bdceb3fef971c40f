"""What `hmn bench ann` compares: our indexes, and those of faiss, hnswlib, usearch and scalable-vs where installed."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import ShardVectors
from memory_store.mips.ivf import default_nlist
from memory_store.mips.registry import build_index

# N rows, D dimension, B queries, K slots

__all__ = ["ENGINES", "Built", "Engine"]

Vectors = NDArray[np.float32]
Search = Callable[[Vectors, int, int], NDArray[np.int64]]
"""(queries [B, D], k, effort) -> row numbers [B, K], -1 for none."""

NEIGHBOURS = 32  # links per row of every graph; 64 in its lowest layer
BUILD_QUEUE = 80  # rows considered for the links of a new one, in every graph
BLAS_ALWAYS = 0  # faiss: from this many queries on, products go through BLAS; 0 is the honest baseline
_LONGEST_QUEUE = 2048


@dataclass(frozen=True, kw_only=True)
class Built:
    """A built index: how it is searched, the efforts to try in ascending order, and how it was built in words.

    follows: the index itself, where its effort can follow a target.
    """

    search: Search
    efforts: Sequence[int]
    effort_name: str
    settings: str
    follows: ApproximateIndex | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One line of the tables. package: what must be importable. ours: whether its scores are re-computed exactly."""

    name: str
    package: str
    ours: bool
    build: Callable[[Vectors, int], Built]


def _powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ..., last."""
    efforts = [first]
    while efforts[-1] * 2 < last:
        efforts.append(efforts[-1] * 2)
    return [*efforts, last] if last > efforts[-1] else efforts


def _ours(text: Callable[[int, int], str]) -> Callable[[Vectors, int], Built]:
    def build(vectors_ND: Vectors, threads: int) -> Built:
        rows, dim = vectors_ND.shape
        name = text(rows, dim)
        index = build_index(name, ShardVectors(np.arange(rows), [vectors_ND], dim), threads)

        def search(queries_BD: Vectors, k: int, effort: int) -> NDArray[np.int64]:
            if isinstance(index, ApproximateIndex):
                index.effort = effort
            return index.search(queries_BD, k).fact_ids_BK

        if not isinstance(index, ApproximateIndex) or index.source is None:
            return Built(search=search, efforts=[1], effort_name="", settings=name)
        first = max(min(index.effort // 8, _LONGEST_QUEUE), 1)
        efforts = _powers(first, min(index.most_effort, _LONGEST_QUEUE * 4))
        return Built(search=search, efforts=efforts, effort_name=index.source.effort_name, settings=name, follows=index)

    return build


def _by_faiss(
    make: Callable[[int, int], tuple[str, Any]], effort_name: str, most: Callable[[int], int]
) -> Callable[[Vectors, int], Built]:
    """make: (rows, dim) -> the settings in words, and an index that is not yet trained."""

    def build(vectors_ND: Vectors, threads: int) -> Built:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = BLAS_ALWAYS
        rows, dim = vectors_ND.shape
        settings, index = make(rows, dim)
        index.train(vectors_ND)
        index.add(vectors_ND)

        def search(queries_BD: Vectors, k: int, effort: int) -> NDArray[np.int64]:
            parameters: Any = None
            if effort_name == "nprobe":
                parameters = faiss.SearchParametersIVF(nprobe=effort)
            elif effort_name == "ef":
                parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
            if isinstance(index, faiss.IndexRefine):
                parameters = faiss.IndexRefineSearchParameters(k_factor=_REFINED, base_index_params=parameters)
            found_BK: NDArray[np.int64] = index.search(queries_BD, k, params=parameters)[1]
            return found_BK

        efforts = _powers(1 if effort_name == "nprobe" else 16, most(rows)) if effort_name else [1]
        return Built(search=search, efforts=efforts, effort_name=effort_name, settings=settings)

    return build


_REFINED = 8  # rows re-scored in float32 per slot of the answer, after 4-bit codes


def _faiss_factory(text: Callable[[int, int], str]) -> Callable[[int, int], tuple[str, Any]]:
    def make(rows: int, dim: int) -> tuple[str, Any]:
        index = faiss.index_factory(dim, text(rows, dim), faiss.METRIC_INNER_PRODUCT)
        if isinstance(index, faiss.IndexHNSW):
            index.hnsw.efConstruction = BUILD_QUEUE
        return text(rows, dim), index

    return make


def _pq_text(rows: int, dim: int) -> str:
    return f"IVF{default_nlist(rows)},PQ{max(dim // 2, 1)}x4fs"


def _build_hnswlib(vectors_ND: Vectors, threads: int) -> Built:
    index = import_module("hnswlib").Index(space="ip", dim=vectors_ND.shape[1])
    index.init_index(max_elements=len(vectors_ND), ef_construction=BUILD_QUEUE, M=NEIGHBOURS)
    index.set_num_threads(threads)
    index.add_items(vectors_ND)

    def search(queries_BD: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        index.set_ef(max(effort, k))
        return np.asarray(index.knn_query(queries_BD, k)[0], dtype=np.int64)

    settings = f"M = {NEIGHBOURS}, ef_construction = {BUILD_QUEUE}, float32"
    return Built(search=search, efforts=_powers(16, _LONGEST_QUEUE), effort_name="ef", settings=settings)


def _build_usearch(vectors_ND: Vectors, threads: int) -> Built:
    index = import_module("usearch.index").Index(
        ndim=vectors_ND.shape[1], metric="ip", dtype="bf16", connectivity=NEIGHBOURS, expansion_add=BUILD_QUEUE
    )
    index.add(np.arange(len(vectors_ND)), vectors_ND, threads=threads)

    def search(queries_BD: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        index.expansion_search = max(effort, k)
        keys = np.atleast_2d(index.search(queries_BD, k, threads=threads).keys)
        return np.asarray(keys, dtype=np.int64)

    settings = f"connectivity = {NEIGHBOURS}, expansion_add = {BUILD_QUEUE}, bfloat16"
    return Built(search=search, efforts=_powers(16, _LONGEST_QUEUE), effort_name="ef", settings=settings)


_ALPHA = 0.95  # of Vamana: below 1 for inner products


def _svs(compressed: bool) -> Callable[[Vectors, int], Built]:
    def build(vectors_ND: Vectors, threads: int) -> Built:
        svs = import_module("svs")
        parameters = svs.VamanaBuildParameters(graph_max_degree=2 * NEIGHBOURS, window_size=BUILD_QUEUE, alpha=_ALPHA)
        with tempfile.TemporaryDirectory(prefix="hmn-svs-") as folder:
            data: Any = vectors_ND
            if compressed:  # it reads what it compresses from a file
                path = str(Path(folder) / "rows.fvecs")
                svs.write_vecs(np.ascontiguousarray(vectors_ND), path)
                rows = svs.VectorDataLoader(path, svs.DataType.float32, dims=vectors_ND.shape[1])
                data = svs.LVQLoader(rows, primary=8)
            index = svs.Vamana.build(parameters, data, svs.DistanceType.MIP, num_threads=threads)

        def search(queries_BD: Vectors, k: int, effort: int) -> NDArray[np.int64]:
            index.search_window_size = max(effort, k)
            return np.asarray(index.search(queries_BD, k)[0], dtype=np.int64)

        codes = "LVQ8" if compressed else "float32"
        settings = f"graph_max_degree = {2 * NEIGHBOURS}, window_size = {BUILD_QUEUE}, alpha = {_ALPHA}, {codes}"
        return Built(search=search, efforts=_powers(16, _LONGEST_QUEUE), effort_name="window", settings=settings)

    return build


def _engine(name: str, build: Callable[[Vectors, int], Built], package: str = "") -> Engine:
    return Engine(name=name, package=package or "faiss", ours=not package, build=build)


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        engine.name: engine
        for engine in [
            _engine("exact", _ours(lambda _rows, _dim: "exact")),
            _engine("split", _ours(lambda _rows, _dim: "split")),
            _engine("ivf", _ours(lambda _rows, _dim: "ivf")),
            _engine("ivf?levels=2", _ours(lambda _rows, _dim: "ivf?levels=2")),
            _engine("pca_tree", _ours(lambda _rows, _dim: "pca_tree")),
            _engine("wta_hash", _ours(lambda _rows, _dim: "wta_hash")),
            _engine("hnsw", _ours(lambda _rows, _dim: "hnsw")),
            _engine("faiss:IVF+PQ", _ours(lambda rows, dim: f"faiss:{_pq_text(rows, dim)}?refine={_REFINED}")),
            _engine(
                "faiss-flat",
                _by_faiss(_faiss_factory(lambda _rows, _dim: "Flat"), "", lambda _rows: 1),
                "faiss",
            ),
            _engine(
                "faiss-ivf",
                _by_faiss(_faiss_factory(lambda rows, _: f"IVF{default_nlist(rows)},Flat"), "nprobe", default_nlist),
                "faiss",
            ),
            _engine(
                "faiss-ivfpq",
                _by_faiss(_faiss_factory(lambda rows, dim: f"{_pq_text(rows, dim)},RFlat"), "nprobe", default_nlist),
                "faiss",
            ),
            _engine(
                "faiss-hnsw",
                _by_faiss(_faiss_factory(lambda _rows, _dim: f"HNSW{NEIGHBOURS}"), "ef", lambda _rows: _LONGEST_QUEUE),
                "faiss",
            ),
            _engine("hnswlib", _build_hnswlib, "hnswlib"),
            _engine("usearch", _build_usearch, "usearch"),
            _engine("svs", _svs(compressed=False), "svs"),
            _engine("svs-lvq8", _svs(compressed=True), "svs"),
        ]
    }
)
"""In the order of the tables."""
