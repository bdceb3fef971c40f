"""Every MIPS index by name, in one place; `hmn indexes` prints it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from memory_store.mips.base import MipsIndex, RegisteredIndex, ShardVectors, parse_index
from memory_store.mips.device import gpu_bytes
from memory_store.mips.exact import build_exact, exact_bytes, restore_exact
from memory_store.mips.faiss_factory import build_faiss, faiss_bytes, restore_faiss
from memory_store.mips.hnsw import build_hnsw, hnsw_bytes, restore_hnsw
from memory_store.mips.ivf import build_ivf, ivf_bytes, restore_ivf
from memory_store.mips.pca_tree import build_pca_tree, pca_tree_bytes, restore_pca_tree
from memory_store.mips.split import build_split, restore_split, split_bytes
from memory_store.mips.wta_hash import build_wta_hash, restore_wta_hash, wta_hash_bytes

__all__ = ["INDEXES", "build_index"]

_CODES = "copy of the rows that is searched: auto (int8 unless a few huge rows forbid it), int8, bfloat16, float32"
_REDUCTION = "rows as unit vectors: plain (the norm is ignored, the default) or cosine (inner products become angles)"

INDEXES: Final[Mapping[str, RegisteredIndex]] = MappingProxyType(
    {
        registered.name: registered
        for registered in [
            RegisteredIndex(
                name="exact",
                summary="every row is scanned; the answer is proven equal to float64 brute force",
                exact=True,
                options={
                    "scan": "precision of the scan: auto (measured, the default), int8, bfloat16, float32, float64",
                    "device": "cpu (the default), cuda (a GPU, or an error), auto (a GPU where there is one with room)",
                    "gpus": "share of a GPU that a shard reserves on Ray, above 0 and at most 1; 1 by default",
                },
                build=lambda vectors, spec, threads: build_exact(vectors, spec.options, threads),
                bytes_needed=exact_bytes,
                gpu_bytes_needed=gpu_bytes,
                restore=restore_exact,
                search_options=("gpus",),
            ),
            RegisteredIndex(
                name="ivf",
                summary="rows clustered by spherical k-means; the nearest clusters are scanned, their best rows scored",
                exact=False,
                options={
                    "nlist": "clusters; by default a power of two near 4 sqrt(rows)",
                    "nprobe": "clusters scanned per query; by default one in 64, from 16 to 64 of them",
                    "levels": "1 (the default), or 2: clusters within clusters, much faster to build",
                    "reduction": _REDUCTION,
                    "codes": _CODES,
                },
                build=build_ivf,
                bytes_needed=ivf_bytes,
                restore=restore_ivf,
                search_options=("nprobe",),
            ),
            RegisteredIndex(
                name="split",
                summary="for vectors that share parts, as facts do: the best relations and subjects name the rows",
                exact=False,
                options={
                    "values": "shared values (relations) probed per query, and 1.5 times the subjects; 16 by default",
                },
                build=build_split,
                bytes_needed=split_bytes,
                restore=restore_split,
                search_options=("values",),
            ),
            RegisteredIndex(
                name="pca_tree",
                summary="rows halved again and again along principal components; the nearest leaves are scanned",
                exact=False,
                options={
                    "levels": "times the rows are halved; by default until a leaf has at most 128 rows",
                    "leaves": "leaves scanned per query; by default one in 64, at least 16",
                    "codes": _CODES,
                },
                build=build_pca_tree,
                bytes_needed=pca_tree_bytes,
                restore=restore_pca_tree,
                search_options=("leaves",),
            ),
            RegisteredIndex(
                name="wta_hash",
                summary="rows whose values rank alike share buckets; those that share most with the query are scored",
                exact=False,
                options={
                    "tables": "hash tables; 64 by default",
                    "hashes": "hashes per table; by default so many that a bucket holds about 16 rows or more",
                    "window": "values that a hash compares; 4 by default",
                    "scored": "rows scored per query; 256 by default",
                    "reduction": _REDUCTION,
                },
                build=build_wta_hash,
                bytes_needed=wta_hash_bytes,
                restore=restore_wta_hash,
                search_options=("scored",),
            ),
            RegisteredIndex(
                name="hnsw",
                summary="a graph of near neighbours by inner product; quick for single queries, slow to build",
                exact=False,
                options={
                    "m": "neighbours per row; 32 by default",
                    "ef_construction": "length of the queue while building; 80 by default",
                    "ef": "length of the queue while searching; 64 by default",
                    "codes": _CODES,
                },
                build=build_hnsw,
                bytes_needed=hnsw_bytes,
                restore=restore_hnsw,
                search_options=("ef",),
            ),
            RegisteredIndex(
                name="faiss",
                summary="any index of faiss, for example faiss:IVF1024,PQ32; its candidates are scored exactly",
                exact=False,
                argument="factory string",
                options={
                    "refine": "candidates scored per slot of the answer; 4 by default",
                    "search": "parameters of faiss, for example search=nprobe=8",
                },
                build=build_faiss,
                bytes_needed=faiss_bytes,
                restore=restore_faiss,
                search_options=("refine", "search"),
            ),
        ]
    }
)


def build_index(text: str, vectors: ShardVectors, threads: int = 1) -> MipsIndex:
    """Build the index that text names (`exact`, `ivf?nlist=1024`) over one shard's rows, or raise UnknownIndex."""
    spec = parse_index(text, INDEXES)
    return INDEXES[spec.name].build(vectors, spec, threads)
