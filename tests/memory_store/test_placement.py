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
        placed = place(part_rows, num_shards, cut_rows=1)
        found = sorted(row for shard in placed for row in rows_of(shard))
        assert found == [(part, row) for part, rows in enumerate(part_rows) for row in range(rows)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 64))
def test_shards_differ_by_at_most_one_row(part_rows: list[int], num_shards: int) -> None:
    sizes = [sum(piece.rows for piece in shard) for shard in place(part_rows, num_shards)]
    assert sum(sizes) == sum(part_rows)
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9), st.integers(0, 300))
def test_parts_beyond_the_cut_rows_are_whole_and_shards_differ_by_one_of_them(
    part_rows: list[int], num_shards: int, cut_rows: int
) -> None:
    placed = place(part_rows, num_shards, cut_rows=cut_rows)
    sizes = [sum(piece.rows for piece in shard) for shard in placed]
    assert sum(sizes) == sum(part_rows)
    assert max(sizes) - min(sizes) <= max([1, *part_rows])
    for part, rows in enumerate(part_rows):
        pieces = [piece for shard in placed for piece in shard if piece.part == part]
        if sum(part_rows[:part]) >= cut_rows * num_shards and rows:
            assert pieces == [Slice(part=part, start=0, stop=rows)]


def test_a_shard_of_a_large_memory_reads_little_that_others_serve() -> None:
    parts = [80_000] * 12_500  # a billion rows
    placed = place(parts, 50)
    for shard in placed:
        read_rows = sum(parts[piece.part] for piece in shard)
        assert read_rows <= 5 * sum(piece.rows for piece in shard)


@given(st.lists(st.integers(0, 100), max_size=10), st.lists(st.integers(0, 100), max_size=5), st.integers(1, 9))
def test_appending_parts_moves_no_row(before: list[int], appended: list[int], num_shards: int) -> None:
    old = place(before, num_shards, cut_rows=50)
    new = place(before + appended, num_shards, cut_rows=50)
    for old_shard, new_shard in zip(old, new, strict=True):
        assert new_shard[: len(old_shard)] == old_shard


def test_no_shards_and_negative_rows_are_refused_by_their_bound() -> None:
    with pytest.raises(ValueError, match="at least 1 shard, found 0"):
        place([3], 0)
    with pytest.raises(ValueError, match="found -1 in part 1"):
        place([3, -1], 2)
