"""Assigning rows to centroids: right for any number of rows and centroids, by products of few shapes."""

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from memory_store.mips.kmeans import nearest_centroids
from memory_store.mips.serialized import serialized, serialized_bytes
from memory_store.mips.workers import Workers

# n rows, L centroids, D dimension


def units(rng: np.random.Generator, rows: int, dim: int = 24) -> NDArray[np.float32]:
    drawn_nD = rng.standard_normal((rows, dim), dtype=np.float32)
    return drawn_nD / np.linalg.norm(drawn_nD, axis=1, keepdims=True)


@pytest.mark.parametrize(("rows", "centroids"), [(1, 1), (63, 5), (64, 16), (65, 17), (1000, 100), (3, 40)])
def test_each_row_gets_the_nearest_centroid_and_never_one_of_the_padding(rows: int, centroids: int) -> None:
    rng = np.random.default_rng(rows)
    row_nD, centroid_LD = units(rng, rows), units(rng, centroids)
    centroid_LD *= -np.sign(centroid_LD.sum(axis=1, keepdims=True))  # all on one side,
    row_nD *= np.sign(row_nD.sum(axis=1, keepdims=True))  # rows on the other: a product with zeros would often win
    nearest_n, product_n = nearest_centroids(row_nD, centroid_LD, Workers(2))
    exact_nL = row_nD @ centroid_LD.T
    assert nearest_n.max() < centroids
    np.testing.assert_allclose(product_n, exact_nL.max(axis=1), atol=0.02)
    np.testing.assert_allclose(exact_nL[np.arange(rows), nearest_n], exact_nL.max(axis=1), atol=0.02)


def test_groups_of_any_size_are_multiplied_in_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, multiply = set(), torch.mm

    def recorded(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        shapes.add((*one.shape, *other.shape))
        return multiply(one, other)

    monkeypatch.setattr(torch, "mm", recorded)
    rng, workers = np.random.default_rng(0), Workers(1)
    for rows in range(100, 400, 7):
        nearest_centroids(units(rng, rows), units(rng, 50 + rows % 14), workers)
    assert len(shapes) <= 6, "torch keeps a kernel for each"


def test_serialized_is_what_faiss_writes() -> None:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(24), 24, 4, faiss.METRIC_INNER_PRODUCT)
    rows_nD = units(np.random.default_rng(1), 90_000)  # several pieces
    index.train(rows_nD[:400])
    index.add(rows_nD)
    data = serialized(index)
    assert serialized_bytes(index) == len(data) > 2**23
    np.testing.assert_array_equal(data, faiss.serialize_index(index))
