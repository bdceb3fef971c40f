"""Vectors of every difficult kind, indexes over them, and the check against brute force."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from memory_store.mips.base import MipsIndex, ShardVectors
from memory_store.mips.oracle import exhaustive_search
from memory_store.vectors import stored_vectors, widened

# N rows, D dimension, B queries

Make = Callable[[np.random.Generator, int, int], NDArray[np.float32]]


def _random(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    return rng.standard_normal((n, dim), dtype=np.float32)


def _times(rows_ND: NDArray[np.float32], factor: NDArray[np.float64] | float) -> NDArray[np.float32]:
    return (rows_ND.astype(np.float64) * factor).clip(-3e38, 3e38).astype(np.float32)


def _clustered(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    return _random(rng, 5, dim)[rng.integers(5, size=n)] + np.float32(1e-3) * _random(rng, n, dim)


def _duplicated(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    return _random(rng, 7, dim)[rng.integers(7, size=n)]


def _near_zero_differences(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    rows_ND = np.full((n, dim), 1e-30, dtype=np.float32) * rng.standard_normal((n, dim), dtype=np.float32)
    rows_ND[:, 0] = 1.0  # differences between scores are lost in float32, though not in float64
    return rows_ND


KINDS: dict[str, Make] = {
    "random": _random,
    "clustered": _clustered,
    "duplicated": _duplicated,
    "all equal": lambda rng, n, dim: np.tile(_random(rng, 1, dim), (n, 1)),
    "zero": lambda rng, n, dim: np.zeros((n, dim), dtype=np.float32),
    "some zero": lambda rng, n, dim: _random(rng, n, dim) * (rng.random((n, 1)) < 0.3).astype(np.float32),
    "sparse": lambda rng, n, dim: _random(rng, n, dim) * (rng.random((n, dim)) < 0.02).astype(np.float32),
    "small whole numbers": lambda rng, n, dim: rng.integers(-1, 2, size=(n, dim)).astype(np.float32),
    "heavy tails": lambda rng, n, dim: _times(_random(rng, n, dim), np.exp(4 * rng.standard_normal((n, 1)))),
    "norms from 1e-38 to 1e38": lambda rng, n, dim: _times(_random(rng, n, dim), 10.0 ** rng.uniform(-38, 38, (n, 1))),
    "denormal": lambda rng, n, dim: _times(_random(rng, n, dim), 1e-41),
    "tiny": lambda rng, n, dim: _times(_random(rng, n, dim), 1e-36),
    "huge": lambda rng, n, dim: _times(_random(rng, n, dim), 1e38),
    "one column": lambda rng, n, dim: _random(rng, n, dim) * np.eye(1, dim, dtype=np.float32),
    "common mean": lambda rng, n, dim: np.float32(1e-3) * _random(rng, n, dim) + _random(rng, 1, dim),
    "differences beyond float32": _near_zero_differences,
}


@pytest.fixture(scope="session")
def kinds() -> dict[str, Make]:
    return KINDS


@pytest.fixture(scope="session")
def make_shard() -> Callable[..., ShardVectors]:
    """Rows as a shard holds them: cut into read-only chunks, ids in any order."""

    def make(
        rng: np.random.Generator, rows_ND: NDArray[np.floating], cuts: Sequence[int] = (), dtype: str = "float32"
    ) -> ShardVectors:
        n, dim = rows_ND.shape
        chunks = [stored_vectors(chunk, dim, dtype).copy() for chunk in np.split(rows_ND, sorted(cuts))]
        for chunk in chunks:
            chunk.setflags(write=False)
        return ShardVectors(rng.permutation(3 * n)[:n].astype(np.int64), chunks, dim)

    return make


@pytest.fixture(scope="session")
def assert_exact() -> Callable[..., None]:
    """Holds an index against float64 brute force: ids, order, scores and padding must be equal to the bit."""

    def check(index: MipsIndex, vectors: ShardVectors, queries_BD: NDArray[np.float32], k: int) -> None:
        found = index.search(queries_BD, k)
        rows_ND = np.concatenate([widened(chunk).astype(np.float64) for chunk in vectors.chunks])
        expected = exhaustive_search(vectors.fact_ids_N, rows_ND, queries_BD, k)
        np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
        np.testing.assert_array_equal(found.fact_ids_BK, expected.fact_ids_BK)
        assert found.fact_ids_BK.dtype == np.int64
        assert found.scores_BK.dtype == np.float64

    return check
