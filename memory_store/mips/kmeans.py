"""Spherical k-means: unit centroids whose inner product with their rows is large; on all of a shard's workers."""

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.workers import Workers

# n rows, N in all, L clusters, D dimension

__all__ = ["nearest_centroids", "spherical_kmeans"]

_PRODUCTS = 2**23  # of one block: 16 MiB in bfloat16, and as much again while the largest are found
_ENOUGH_GAIN = 1e-3  # of the mean cosine; rounds that bring less are not worth their time


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
    columns_DL = torch.from_numpy(centroids_LD).to(torch.bfloat16).t()
    block_rows = max(_PRODUCTS // max(len(centroids_LD), 1), 16)
    starts = iter(range(0, len(rows_nD), block_rows))

    def work(_worker: int) -> None:
        for start in starts:  # the interpreter hands each value of a range iterator to one thread only
            part = slice(start, min(start + block_rows, len(rows_nD)))
            block_nD = torch.from_numpy(rows_nD[part]).to(torch.bfloat16)
            products_nL = torch.mm(block_nD, columns_DL).float().numpy()
            nearest_n[part] = products_nL.argmax(axis=1)  # numpy's is vectorised along a row, torch's is not
            product_n[part] = np.take_along_axis(products_nL, nearest_n[part, None], axis=1)[:, 0]

    workers.run(work)
    return nearest_n, product_n
