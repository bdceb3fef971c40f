"""`ivf`: rows clustered by direction; a search reads the lists whose mean has the largest inner product."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.approximate import SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.coarse import AllMeans, GroupedMeans, ListChooser
from memory_store.mips.codes import CODES, choose_codes, code_width, planned_codes, spare_slots
from memory_store.mips.kmeans import cluster_at_once, cluster_in_groups
from memory_store.mips.lists import InvertedLists
from memory_store.mips.live import LiveRows
from memory_store.mips.options import one_of, whole_number
from memory_store.mips.reduction import REDUCTIONS, Reduction
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.workers import Workers, builders

# N rows, n rows in a sample or block, D dimension, L lists, P lists probed, b queries, C candidates, K slots

__all__ = [
    "ROUNDS",
    "SAMPLED_POINTS",
    "IvfSource",
    "build_ivf",
    "default_nlist",
    "default_nprobe",
    "ivf_bytes",
    "restore_ivf",
]

KMEANS_POINTS = 39  # per centroid, below which k-means is not to be trusted (the bound that faiss warns at)
SAMPLED_POINTS = 64  # per centroid: more hardly moves the centroids
ROUNDS = 10
_PROBED_SHARE = 64  # one list in so many is probed by default,
_LEAST_PROBES, _MOST_PROBES = 16, 64  # but no fewer and no more than so many
_SEED = 0


class IvfSource(CandidateSource):
    """Inverted lists and the vector that stands for each.

    The lists come from spherical k-means over the reduced rows (Auvolat et al. 2015). A list is probed by the mean of
    its rows as they are, which is the mean of their scores; on trained vectors that finds at 32 of 1,024 lists what the
    centroid finds at 48.
    """

    effort_name = "nprobe"

    def __init__(self, chooser: ListChooser, lists: InvertedLists, nprobe: int) -> None:
        self._chooser = chooser
        self._lists = lists
        self.most_effort = chooser.num_lists
        self.default_effort = min(nprobe, self.most_effort)

    @property
    def nbytes(self) -> int:
        return self._chooser.nbytes + self._lists.nbytes

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        return self._lists.scan(queries_bD, self._chooser.choose(queries_bD, effort), spare_slots(k), live)

    def arrays(self) -> SavedArrays:
        return {**self._chooser.arrays(), "lists": self._lists.to_bytes()}


def default_nlist(rows: int) -> int:
    """Lists for so many rows: a power of two near 4 sqrt(rows), with enough rows per list to learn its centroid."""
    most = max(1, rows // KMEANS_POINTS)
    return int(2 ** min(round(math.log2(4 * math.sqrt(max(rows, 1)))), int(math.log2(most))))


def default_nprobe(nlist: int) -> int:
    """Lists probed of so many. A fixed share of the lists would be a fixed share of the rows, and a search as linear as
    a scan; a fixed number of lists holds as many rows as the square root of all, as `default_nlist` divides them."""
    return min(max(nlist // _PROBED_SHARE, _LEAST_PROBES), _MOST_PROBES, nlist)


def build_ivf(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Cluster the rows and store them list by list."""
    workers = Workers(threads)
    nlist, nprobe = _lists_and_probes(spec, vectors.num_rows)
    reduction_name = one_of(spec, "reduction", REDUCTIONS)
    codes = one_of(spec, "codes", CODES)
    levels = whole_number(spec, "levels", 1, most=2)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    building = builders(threads)
    rows = ScaledRows(vectors)
    reduction = Reduction.of(reduction_name, rows)
    rng = np.random.default_rng(_SEED)
    sample_nE = reduction.rows(rows.take(rows.sample(SAMPLED_POINTS * nlist, rng)))
    cluster = cluster_in_groups if levels == 2 else cluster_at_once
    clusters = cluster(sample_nE, nlist, rounds=ROUNDS, rng=rng, workers=building)
    list_N = np.empty(rows.num_rows, dtype=np.int64)
    sums_LD = torch.zeros((clusters.count, rows.dim))
    for part, block_nD in rows.blocks():
        list_N[part] = clusters.nearest(reduction.rows(block_nD), building)
        sums_LD.index_add_(0, torch.from_numpy(list_N[part]), torch.from_numpy(block_nD))
    # A list without rows would be probed in vain.
    used_L, list_N = np.unique(list_N, return_inverse=True)
    sizes_L1 = np.bincount(list_N).astype(np.float32)[:, None]
    means_LD: NDArray[np.float32] = np.divide(sums_LD.numpy()[used_L], sizes_L1, dtype=np.float32)
    chooser: ListChooser = AllMeans(means_LD)
    if levels == 2:
        _, group_L = np.unique(clusters.group_L[used_L], return_inverse=True)
        chooser = GroupedMeans.build(means_LD, group_L, building)
    lists = InvertedLists.build(rows, list_N, len(used_L), choose_codes(codes, rows), building)
    return ApproximateIndex(vectors, IvfSource(chooser, lists, nprobe), workers)


def restore_ivf(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that IvfSource.arrays describes."""
    _, nprobe = _lists_and_probes(spec, vectors.num_rows)
    lists = InvertedLists.from_bytes(arrays["lists"])
    means = np.array(arrays["means"])
    chooser: ListChooser = AllMeans(means)
    if "members" in arrays:
        chooser = GroupedMeans(means, InvertedLists.from_bytes(arrays["members"]), len(lists.sizes()))
    return ApproximateIndex(vectors, IvfSource(chooser, lists, nprobe), Workers(threads))


def ivf_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an index over so many rows will hold, at most."""
    nlist, _ = _lists_and_probes(spec, rows)
    stored = planned_codes(one_of(spec, "codes", CODES))
    groups = whole_number(spec, "levels", 1, most=2) - 1
    means = nlist * 4 * code_width(dim) + groups * (nlist * (4 * dim + 8) + 64 * nlist)
    return means + InvertedLists.planned_bytes(rows, code_width(dim), nlist, stored)


def _lists_and_probes(spec: IndexSpec, rows: int) -> tuple[int, int]:
    nlist = min(whole_number(spec, "nlist", default_nlist(rows)), max(rows, 1))
    return nlist, min(whole_number(spec, "nprobe", default_nprobe(nlist)), nlist)
