"""Rounded vectors score nearly as the true ones do, in int8 where one scale suits them all."""

import numpy as np
import pytest

from memory_store.mips.rounded import RoundedVectors


@pytest.mark.parametrize("kind", ["alike", "one far longer", "zeros", "one value each"])
def test_products_are_nearly_those_of_the_vectors_themselves(kind: str) -> None:
    rng = np.random.default_rng(0)
    dim = 1 if kind == "one value each" else 24
    vectors_LD = rng.standard_normal((300, dim), dtype=np.float32)
    if kind == "one far longer":
        vectors_LD[7] *= 1000
    elif kind == "zeros":
        vectors_LD[:] = 0
    queries_bD = rng.standard_normal((5, dim), dtype=np.float32) * np.float32([[1], [1e-3], [1e3], [0], [1]])
    products_bL, unit_b1 = RoundedVectors(vectors_LD).products(queries_bD)
    error_bL = np.abs(products_bL * unit_b1 - queries_bD @ vectors_LD.T)
    lengths_bL = np.outer(np.linalg.norm(queries_bD, axis=1), np.linalg.norm(vectors_LD, axis=1))
    typical = np.linalg.norm(vectors_LD, axis=1).mean()
    assert (error_bL <= 0.02 * np.maximum(lengths_bL, np.linalg.norm(queries_bD, axis=1)[:, None] * typical)).all()


@pytest.mark.parametrize("longest", [1, 1000])
def test_a_spread_adds_its_share_of_the_querys_length(longest: int) -> None:
    rng = np.random.default_rng(1)
    vectors_LD = rng.standard_normal((200, 16), dtype=np.float32)
    vectors_LD[0] *= longest
    spread_L = rng.random(200, dtype=np.float32)
    queries_bD = rng.standard_normal((4, 16), dtype=np.float32)
    products_bL, unit_b1 = RoundedVectors(vectors_LD, spread_L).products(queries_bD)
    expected_bL = queries_bD @ vectors_LD.T + np.outer(np.linalg.norm(queries_bD, axis=1), spread_L)
    np.testing.assert_allclose((products_bL * unit_b1)[:, 1:], expected_bL[:, 1:], atol=0.2)
