"""Certified staleness: from how far any vector moved since it was indexed, a proof that the true top k is found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_store.errors import ConfigError, InvalidVectors
from memory_store.manifest import Manifest
from memory_store.parts import fact_ids_of, scan_vectors, vectors_of
from memory_store.storage import Storage
from memory_store.topk import NO_FACT, TopK, select

# B queries, b of them not settled yet, K slots, R rows retrieved by their old vectors, C distinct facts, D dimension

__all__ = ["Certified", "certified_search", "most_moved"]

_FIRST_TIMES = 2  # rows retrieved at first, times k
_GROWTH = 4
_ROUNDING = 2.0**-22  # of old scores, which are rounded to float32, and of sums in it: twice what they can be off


class Searchable(Protocol):
    """What is asked for the best rows by their old vectors; a Memory."""

    @property
    def is_exact(self) -> bool: ...

    def __len__(self) -> int: ...

    def search(self, queries: ArrayLike, k: int = 10) -> TopK: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Certified:
    """answer: the best k by current vectors, of what was retrieved. proven_B: whether no other fact can be better.

    retrieved_B: rows that were retrieved by old vectors for each query.
    """

    answer: TopK
    proven_B: NDArray[np.bool_]
    retrieved_B: NDArray[np.int64]


def certified_search(
    memory: Searchable,
    queries: ArrayLike,
    k: int,
    *,
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    moved: float,
    most_rows: int = 4096,
) -> Certified:
    """The k facts of largest inner product with current vectors, found by an exact index over older ones.

    vectors: fact ids [C] -> their current vectors [C, D]. moved: a bound on |current - indexed| over all facts. A fact
    that was not retrieved has an old score of at most the last one retrieved, s, so by Cauchy and Schwarz a current one
    of at most s + |q| moved. If k retrieved facts score higher than that, nothing else can be among the best k. Where
    they do not, more are retrieved, up to most_rows, and then the answer says that it is not proven. The index must be
    exact: what an approximate one leaves out has no bound, so its answers (unless they hold every fact) prove nothing.
    """
    if not (np.isfinite(moved) and moved >= 0):
        raise ConfigError(f"expected a finite bound moved >= 0, found {moved}")
    if k < 1 or most_rows < k:
        raise ConfigError(f"expected 1 <= k <= most_rows, found k {k} and most_rows {most_rows}")
    queries_BD = np.asarray(queries, dtype=np.float32)
    if queries_BD.ndim != 2:
        raise InvalidVectors(f"expected queries of shape [B, D], found {list(queries_BD.shape)}")
    batch = len(queries_BD)
    ids_BK = np.full((batch, k), NO_FACT, dtype=np.int64)
    scores_BK = np.full((batch, k), -np.inf)
    proven_B, retrieved_B = np.zeros(batch, dtype=np.bool_), np.zeros(batch, dtype=np.int64)
    pending_b = np.arange(batch)
    first_rows = rows = min(_FIRST_TIMES * k, most_rows)
    generation, coverage = memory.search(queries_BD[:0], k).generation, 1.0
    while len(pending_b):
        query_bD = queries_BD[pending_b].astype(np.float64)
        old = memory.search(queries_BD[pending_b], rows)
        if old.generation != generation:  # it was switched meanwhile, and no answer mixes two
            generation, pending_b, rows, coverage = old.generation, np.arange(batch), first_rows, 1.0
            continue
        coverage = min(coverage, old.coverage)
        current_bR = _scores(old.fact_ids_BK, query_bD, vectors)
        best = select(old.fact_ids_BK, current_bR, k)
        ids_BK[pending_b], scores_BK[pending_b] = best.fact_ids_BK, best.scores_BK
        retrieved_B[pending_b] = (old.fact_ids_BK != NO_FACT).sum(axis=1)
        all_there_b = retrieved_B[pending_b] == len(memory)
        last_b = old.scores_BK[:, -1].astype(np.float64)
        length_b = np.linalg.norm(query_bD, axis=1)
        longest_b = np.abs(old.scores_BK, where=old.fact_ids_BK != NO_FACT, out=np.zeros(old.scores_BK.shape))
        slack_b = _ROUNDING * (longest_b.max(axis=1) + length_b * moved)
        bound_b = np.where(all_there_b, -np.inf, last_b + length_b * moved + slack_b)
        settled_b = all_there_b | (memory.is_exact & (best.scores_BK[:, -1] > bound_b))
        settled_b &= old.coverage == 1.0
        proven_B[pending_b] = settled_b
        pending_b = pending_b[~settled_b]
        if rows >= most_rows or not memory.is_exact:
            break
        rows = min(rows * _GROWTH, most_rows)
    with np.errstate(over="ignore"):
        answer = TopK(
            fact_ids_BK=ids_BK, scores_BK=scores_BK.astype(np.float32), generation=generation, coverage=coverage
        )
    return Certified(answer=answer, proven_B=proven_B, retrieved_B=retrieved_B)


def most_moved(storage: Storage, before: Manifest, after: Manifest) -> float:
    """The largest |vector after - vector before| over the facts of both generations, by reading both once.

    For an index that still serves `before` while `after` is embedded. Facts that only one of them holds are not in the
    bound: search those of `after` beside the index.
    """
    old = _all_vectors(storage, before)
    largest = 0.0
    order_N = np.argsort(old[0], kind="stable")
    sorted_N = old[0][order_N]
    for table in scan_vectors(storage, after):
        ids_C = fact_ids_of(table)
        rank_C = np.searchsorted(sorted_N, ids_C).clip(max=max(0, len(sorted_N) - 1))
        both_C = np.flatnonzero(sorted_N[rank_C] == ids_C) if len(sorted_N) else np.zeros(0, dtype=np.int64)
        moved_CD = vectors_of(table)[both_C].astype(np.float64) - old[1][order_N[rank_C[both_C]]]
        largest = max(largest, float(np.linalg.norm(moved_CD, axis=1).max(initial=0.0)))
    return largest


def _all_vectors(storage: Storage, manifest: Manifest) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    tables = list(scan_vectors(storage, manifest))
    ids_N = np.concatenate([np.zeros(0, dtype=np.int64), *(fact_ids_of(table) for table in tables)])
    vectors_ND = [np.zeros((0, manifest.dim), dtype=np.float32), *(vectors_of(table) for table in tables)]
    return ids_N, np.concatenate(vectors_ND).astype(np.float32)


def _scores(
    ids_bR: NDArray[np.int64],
    query_bD: NDArray[np.float64],
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> NDArray[np.float64]:
    """Inner products [b, R] with current vectors, -inf where there is no fact; each fact's vector is asked for once."""
    ids_C, place_bR = np.unique(ids_bR, return_inverse=True)
    place_bR = place_bR.reshape(ids_bR.shape)
    real_C = ids_C != NO_FACT
    current_CD = np.zeros((len(ids_C), query_bD.shape[1]))
    if real_C.any():
        current_CD[real_C] = vectors(ids_C[real_C])
    scores_bR = np.stack([current_CD[place_R] @ query_D for place_R, query_D in zip(place_bR, query_bD, strict=True)])
    scores_bR[ids_bR == NO_FACT] = -np.inf
    return scores_bR
