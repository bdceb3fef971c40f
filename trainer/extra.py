"""Facts drawn at random beside what a search finds: an approximate search misses some, and always the same ones."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import ConfigError
from memory_store.mips.kmeans import cluster_at_once
from memory_store.mips.workers import Workers

# N facts in the memory, X facts drawn, L clusters, D dimension

__all__ = ["EXTRA_RULES", "Drawn", "ExtraRule", "FactClusters", "draw_clusters", "draw_uniform"]

ExtraRule = Literal["none", "uniform", "clusters"]
EXTRA_RULES: tuple[str, ...] = get_args(ExtraRule)

_ROUNDS = 5  # of k-means: the clusters are drawn from, not searched, so rough ones will do
_SAMPLED_PER_CLUSTER = 64
_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """fact_ids_X: int64, distinct. chance: the probability with which any one fact of the memory was drawn.

    Chandar et al. (2016) add such facts to the candidates of approximate K-MIPS. With the chance known, the loss can
    be corrected: a drawn fact counts for 1 / chance facts in the denominator of the softmax, which then is right on
    average over the draws (Horvitz and Thompson 1952; for softmaxes Bengio and Senecal 2008, Jean et al. 2015).
    """

    fact_ids_X: NDArray[np.int64]
    chance: float

    def __post_init__(self) -> None:
        if not 0 < self.chance <= 1:
            raise ConfigError(f"expected a chance above 0 and at most 1, found {self.chance:g}")

    @property
    def log_chance(self) -> float:
        return math.log(self.chance)


@dataclass(frozen=True, kw_only=True, eq=False)
class FactClusters:
    """All facts of a memory, cluster by cluster: cluster l has the facts fact_ids_N[bounds[l]:bounds[l + 1]]."""

    fact_ids_N: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    @classmethod
    def of(cls, fact_ids_N: NDArray[np.int64], vectors_ND: NDArray[np.float32], threads: int = 1) -> "FactClusters":
        """About sqrt(N) clusters by the direction of the vectors; equal arguments give equal clusters."""
        rng = np.random.default_rng(_SEED)
        facts = len(fact_ids_N)
        clusters = max(round(math.sqrt(facts)), 1)
        norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        unit_ND = (vectors_ND / np.maximum(norm_N1, 1e-12)).astype(np.float32)
        sample = np.sort(rng.permutation(facts)[: clusters * _SAMPLED_PER_CLUSTER])
        workers = Workers(threads)
        found = cluster_at_once(unit_ND[sample], clusters, rounds=_ROUNDS, rng=rng, workers=workers)
        nearest_N = found.nearest(unit_ND, workers)
        order_N = np.lexsort((fact_ids_N, nearest_N))
        filled = np.flatnonzero(np.bincount(nearest_N, minlength=clusters))  # one without facts is none
        bounds = np.append(np.searchsorted(nearest_N[order_N], filled), facts)
        return cls(fact_ids_N=fact_ids_N[order_N], bounds=bounds.astype(np.int64))


def draw_uniform(fact_ids_N: NDArray[np.int64], count: int, rng: np.random.Generator) -> Drawn:
    """`count` facts, or all if there are fewer, each with the same chance, none twice."""
    count = min(count, len(fact_ids_N))
    places_X = rng.choice(len(fact_ids_N), count, replace=False, shuffle=False)
    return Drawn(fact_ids_X=fact_ids_N[places_X], chance=count / len(fact_ids_N))


def draw_clusters(clusters: FactClusters, count: int, rng: np.random.Generator) -> Drawn:
    """Whole clusters, each with the same chance, none twice: so many that `count` facts are expected, at least one."""
    wanted = count / max(len(clusters.fact_ids_N), 1) * clusters.count
    number = min(max(round(wanted), 1), clusters.count)
    picked = np.sort(rng.choice(clusters.count, number, replace=False, shuffle=False))
    pieces = [clusters.fact_ids_N[clusters.bounds[one] : clusters.bounds[one + 1]] for one in picked]
    return Drawn(fact_ids_X=np.concatenate(pieces), chance=number / clusters.count)
