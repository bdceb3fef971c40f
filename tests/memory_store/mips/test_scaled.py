"""Candidates are scored alike wherever their rows lie, and whatever they are stored as."""

import numpy as np
import pytest

from memory_store.mips.base import ShardVectors
from memory_store.mips.scaled import ScaledRows


@pytest.mark.parametrize("chunks", [1, 5, 40])
@pytest.mark.parametrize("stored", ["float32", "float16", "columns first", "huge", "tiny"])
def test_scores_are_products_with_the_scaled_rows(chunks: int, stored: str) -> None:
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((400, 12), dtype=np.float32)
    if stored in ("huge", "tiny"):
        rows_ND *= np.float32(1e30 if stored == "huge" else 1e-30)
    pieces = np.array_split(rows_ND.astype(np.float16) if stored == "float16" else rows_ND, chunks)
    if stored == "columns first":
        pieces = [np.asfortranarray(piece) for piece in pieces]
    rows = ScaledRows(ShardVectors(np.arange(400), pieces, 12))
    row_bC = rng.integers(-1, 400, (7, 9))
    queries_bD = rng.uniform(-1, 1, (7, 12)).astype(np.float32)
    taken_bCD = rows.take(np.maximum(row_bC, 0).ravel()).reshape(7, 9, 12)
    expected_bC = np.where(row_bC < 0, -np.inf, np.einsum("bcd,bd->bc", taken_bCD, queries_bD))
    np.testing.assert_allclose(rows.scores(row_bC, queries_bD), expected_bC, rtol=1e-4, atol=1e-5)
