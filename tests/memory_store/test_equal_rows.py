"""Rows of two tables compared at once: the answer is that of a loop over rows, whatever is null, nested or sliced."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.equal_rows import equal_rows
from memory_store.parts import FACTS_SCHEMA

TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ab"]))
TEXTS = st.one_of(st.none(), st.lists(TEXT, max_size=2))
NUMBERS = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=2))
FEATURES = st.one_of(
    st.none(),
    st.fixed_dictionaries({"subject": st.one_of(st.none(), st.lists(NUMBERS, max_size=2)), "relation": NUMBERS}),
)
ROW = st.fixed_dictionaries(
    {
        "fact_id": st.integers(0, 2),
        "subject_id": TEXT,
        "subject": TEXT,
        "aliases": TEXTS,
        "relation": TEXT,
        "object_ids": TEXTS,
        "objects": TEXTS,
        "features": FEATURES,
    }
)
FULL: dict[str, Any] = {
    "fact_id": 1,
    "subject_id": "s",
    "subject": "Name",
    "aliases": ["a", "b"],
    "relation": "r",
    "object_ids": ["o", "p"],
    "objects": ["O", "P"],
    "features": {"subject": [[1, 2], [3]], "relation": [4]},
}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, FACTS_SCHEMA)


@given(
    pairs=st.lists(st.one_of(ROW.map(lambda row: (row, row)), st.tuples(ROW, ROW)), max_size=8), cut=st.integers(0, 3)
)
def test_rows_are_equal_where_a_loop_over_them_says_so(pairs: list[tuple[Any, Any]], cut: int) -> None:
    one, other = table([row for row, _ in pairs]).slice(cut), table([row for _, row in pairs]).slice(cut)
    expected = [row == changed for row, changed in pairs[cut:]]
    assert equal_rows(one, other).tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"fact_id": 2},
        {"subject": None},
        {"aliases": ["a"]},
        {"aliases": ["ab", ""]},
        {"objects": ["O", None]},
        {"object_ids": None},
        {"features": None},
        {"features": {"subject": [[1], [2, 3]], "relation": [4]}},
        {"features": {"subject": [[1, 2], [3]], "relation": None}},
    ],
)
def test_a_change_of_any_column_is_seen_in_its_row_alone(change: dict[str, Any]) -> None:
    rows = [{**FULL, "fact_id": number} for number in range(5)]
    changed = [*rows[:3], {**rows[3], "fact_id": 3} | change, rows[4]]
    np.testing.assert_array_equal(equal_rows(table(rows), table(changed)), [True, True, True, False, True])
