"""The highest scores of a line, found by way of groups of columns."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.mips.highest import highest_columns, taken


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 700) | st.integers(1000, 1100) | st.integers(20_000, 20_100),
    st.integers(1, 40) | st.integers(1000, 1100),
    st.integers(0, 2**31),
    st.sampled_from(["few values", "float32", "int32"]),
)
def test_they_are_those_of_a_sort(lines: int, width: int, count: int, seed: int, kind: str) -> None:
    count = min(count, width)
    rng = np.random.default_rng(seed)
    if kind == "int32":
        score_bW = rng.integers(-(2**22), 2**22, (lines, width)).astype(np.int32)
    else:
        drawn_bW = rng.integers(-9, 9, (lines, width)) if kind == "few values" else rng.standard_normal((lines, width))
        score_bW = drawn_bW.astype(np.float32)
        score_bW[rng.random(score_bW.shape) < 0.2] = -np.inf
    column_bK = highest_columns(score_bW, count)
    highest_bK = taken(score_bW, column_bK)
    sorted_bK = np.sort(score_bW, axis=1)[:, ::-1][:, :count]
    np.testing.assert_allclose(highest_bK, sorted_bK, rtol=2.0**-12, atol=1e-30)
    np.testing.assert_array_equal(np.take_along_axis(score_bW, column_bK, axis=1), highest_bK)
    assert all(len(set(line)) == count for line in column_bK.tolist()), "every column once"
