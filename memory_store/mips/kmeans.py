"""Spherical k-means: unit centroids whose inner product with their rows is large; at once, or group by group."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.workers import Workers

# n rows, N in all, L clusters, D dimension

__all__ = ["Clusters", "cluster_at_once", "cluster_in_groups", "nearest_centroids", "spherical_kmeans"]

_PRODUCTS = 2**23  # of one block: 16 MiB in bfloat16, and as much again while the largest are found
# torch makes a kernel for every shape of a product and keeps the last thousand: groups of any size would fill them.
_ROW_STEP, _COLUMN_STEP = 64, 16
_ENOUGH_GAIN = 1e-3  # of the mean cosine; rounds that bring less are not worth their time


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Unit centroids [L, D] in groups: group_L [L], ascending, says under which centroid of groups_SD each lies."""

    centroids_LD: NDArray[np.float32]
    group_L: NDArray[np.int64]
    groups_SD: NDArray[np.float32]

    @property
    def count(self) -> int:
        return len(self.centroids_LD)

    def nearest(self, unit_nD: NDArray[np.float32], workers: Workers) -> NDArray[np.int64]:
        """The cluster of each row: the nearest group, and in it the nearest centroid."""
        if len(self.groups_SD) == 1:
            return nearest_centroids(unit_nD, self.centroids_LD, workers)[0]
        group_n, _ = nearest_centroids(unit_nD, self.groups_SD, workers)
        order_n = np.argsort(group_n, kind="stable")
        row_ends = np.searchsorted(group_n[order_n], np.arange(len(self.groups_SD) + 1))
        list_ends = np.searchsorted(self.group_L, np.arange(len(self.groups_SD) + 1))
        nearest_n = np.empty(len(unit_nD), dtype=np.int64)
        for group in np.flatnonzero(np.diff(row_ends)).tolist():
            rows = order_n[row_ends[group] : row_ends[group + 1]]
            members = self.centroids_LD[list_ends[group] : list_ends[group + 1]]
            nearest_n[rows] = list_ends[group] + nearest_centroids(unit_nD[rows], members, workers)[0]
        return nearest_n


def cluster_at_once(
    unit_nD: NDArray[np.float32], clusters: int, *, rounds: int, rng: np.random.Generator, workers: Workers
) -> Clusters:
    """k-means over all clusters: every row is held against every centroid, n L D products a round."""
    centroids_LD = spherical_kmeans(unit_nD, clusters, rounds=rounds, rng=rng, workers=workers)
    return Clusters(
        centroids_LD=centroids_LD,
        group_L=np.zeros(clusters, dtype=np.int64),
        groups_SD=centroids_LD.mean(axis=0, keepdims=True),
    )


def cluster_in_groups(
    unit_nD: NDArray[np.float32], clusters: int, *, rounds: int, rng: np.random.Generator, workers: Workers
) -> Clusters:
    """k-means over about sqrt(clusters) groups, then within each: sqrt(L) / 2 times fewer products a round.

    A group gets clusters by its share of the rows; one without rows is dropped.
    """
    groups_SD = spherical_kmeans(unit_nD, max(round(clusters**0.5), 1), rounds=rounds, rng=rng, workers=workers)
    group_n, _ = nearest_centroids(unit_nD, groups_SD, workers)
    used_S, group_n = np.unique(group_n, return_inverse=True)
    share_S = np.bincount(group_n) / len(unit_nD)
    members_S = np.maximum(np.rint(share_S * clusters).astype(np.int64), 1)
    centroids = [
        spherical_kmeans(unit_nD[group_n == group], int(members), rounds=rounds, rng=rng, workers=workers)
        for group, members in enumerate(members_S)
    ]
    return Clusters(
        centroids_LD=np.concatenate(centroids),
        group_L=np.repeat(np.arange(len(members_S)), members_S),
        groups_SD=groups_SD[used_S],
    )


def spherical_kmeans(
    unit_nD: NDArray[np.float32], clusters: int, *, rounds: int, rng: np.random.Generator, workers: Workers
) -> NDArray[np.float32]:
    """Unit centroids [clusters, D] of unit rows (Dhillon and Modha 2001); zero rows belong to any cluster.

    Starts from rows drawn at random; a centroid that no row is nearest to is drawn anew. Needs at least one row.
    """
    if len(unit_nD) <= clusters:
        return unit_nD[np.resize(np.arange(len(unit_nD)), clusters)].copy()
    centroids_LD = unit_nD[rng.choice(len(unit_nD), clusters, replace=False)].copy()
    before = -np.inf
    for _ in range(rounds):
        nearest_n, cosine_n = nearest_centroids(unit_nD, centroids_LD, workers)
        sums_LD = torch.zeros((clusters, unit_nD.shape[1]))
        sums_LD.index_add_(0, torch.from_numpy(nearest_n), torch.from_numpy(unit_nD))
        norms_L = torch.linalg.vector_norm(sums_LD, dim=1, keepdim=True)
        centroids_LD = (sums_LD / norms_L.clamp_(min=1e-12)).numpy()
        lost = np.flatnonzero(np.bincount(nearest_n, minlength=clusters) == 0)
        centroids_LD[lost] = unit_nD[rng.choice(len(unit_nD), len(lost), replace=False)]
        mean = float(cosine_n.mean())
        if mean - before < _ENOUGH_GAIN and len(lost) == 0:
            break
        before = mean
    return centroids_LD


def nearest_centroids(
    rows_nD: NDArray[np.float32], centroids_LD: NDArray[np.float32], workers: Workers
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cluster [n] of largest inner product, that product [n]), as bfloat16 sees them: a clustering needs no more."""
    nearest_n = np.empty(len(rows_nD), dtype=np.int64)
    product_n = np.empty(len(rows_nD), dtype=np.float32)
    columns_DL = _padded(centroids_LD, _COLUMN_STEP).t()
    block_rows = max(_PRODUCTS // max(len(centroids_LD), 1) // _ROW_STEP, 1) * _ROW_STEP
    starts = iter(range(0, len(rows_nD), block_rows))

    def work(_worker: int) -> None:
        for start in starts:  # the interpreter hands each value of a range iterator to one thread only
            part = slice(start, min(start + block_rows, len(rows_nD)))
            products_nL = torch.mm(_padded(rows_nD[part], _ROW_STEP), columns_DL).float().numpy()
            products_nL = products_nL[: part.stop - start, : len(centroids_LD)]
            nearest_n[part] = products_nL.argmax(axis=1)  # numpy's is vectorised along a row, torch's is not
            product_n[part] = np.take_along_axis(products_nL, nearest_n[part, None], axis=1)[:, 0]

    workers.run(work)
    return nearest_n, product_n


def _padded(rows_nD: NDArray[np.float32], step: int) -> torch.Tensor:
    """The rows in bfloat16, and rows of zeros up to a multiple of `step`."""
    padded_nD = torch.zeros((-(-len(rows_nD) // step) * step, rows_nD.shape[1]), dtype=torch.bfloat16)
    padded_nD[: len(rows_nD)] = torch.from_numpy(rows_nD)
    return padded_nD
