"""The highest scores of a line, found by way of groups of columns."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.mips.highest import highest_columns


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 700), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_they_are_those_of_a_sort(lines: int, width: int, count: int, seed: int, has_ties: bool) -> None:
    count = min(count, width)
    rng = np.random.default_rng(seed)
    score_bW = rng.integers(-9, 9, (lines, width)) if has_ties else rng.standard_normal((lines, width))
    score_bW = score_bW.astype(np.float32)
    score_bW[rng.random(score_bW.shape) < 0.2] = -np.inf
    highest_bK, column_bK = (found.numpy() for found in highest_columns(torch.from_numpy(score_bW), count))
    np.testing.assert_array_equal(np.sort(highest_bK, axis=1), np.sort(score_bW, axis=1)[:, width - count :])
    np.testing.assert_array_equal(np.take_along_axis(score_bW, column_bK, axis=1), highest_bK)
    assert all(len(set(line)) == count for line in column_bK.tolist()), "every column once"
