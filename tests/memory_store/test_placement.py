"""Shard arithmetic, walked exhaustively."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.placement import Slice, place


def rows_of(slices: tuple[Slice, ...]) -> list[tuple[int, int]]:
    return [(piece.part, row) for piece in slices for row in range(piece.start, piece.stop)]


@pytest.mark.parametrize("num_shards", range(1, 8))
def test_every_row_is_in_exactly_one_shard(num_shards: int) -> None:
    for part_rows in itertools.product(range(5), repeat=3):
        placed = place(part_rows, num_shards)
        found = sorted(row for shard in placed for row in rows_of(shard))
        assert found == [(part, row) for part, rows in enumerate(part_rows) for row in range(rows)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 64))
def test_shards_differ_by_at_most_one_row(part_rows: list[int], num_shards: int) -> None:
    sizes = [sum(piece.rows for piece in shard) for shard in place(part_rows, num_shards)]
    assert sum(sizes) == sum(part_rows)
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 100), max_size=10), st.lists(st.integers(0, 100), max_size=5), st.integers(1, 9))
def test_appending_parts_moves_no_row(before: list[int], appended: list[int], num_shards: int) -> None:
    old, new = place(before, num_shards), place(before + appended, num_shards)
    for old_shard, new_shard in zip(old, new, strict=True):
        assert new_shard[: len(old_shard)] == old_shard


def test_no_shards_and_negative_rows_are_refused_by_their_bound() -> None:
    with pytest.raises(ValueError, match="at least 1 shard, found 0"):
        place([3], 0)
    with pytest.raises(ValueError, match="found -1 in part 1"):
        place([3, -1], 2)
