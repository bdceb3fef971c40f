"""Which rows of which part live on which shard: pure arithmetic, walked exhaustively by its tests."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CUT_ROWS", "Slice", "place"]

CUT_ROWS = 2**20  # per shard: so many rows are balanced to the row, and a part that is one more in eight is no burden


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows [start, stop) of the part at this position in the manifest."""

    part: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def place(part_rows: Sequence[int], num_shards: int, *, cut_rows: int = CUT_ROWS) -> tuple[tuple[Slice, ...], ...]:
    """Deal the rows of all parts out to the shards; returns the slices of shard 0, 1, ...

    Every row is in exactly one shard. Until the shards have cut_rows each, a part is cut into one contiguous slice per
    shard, and shards differ by at most one row: the rows that a part has too many are dealt in turn, going on where the
    part before stopped. From then on parts go whole to the shard with the fewest rows, and shards differ by the largest
    part at most: whoever opens a shard reads whole parts, for their checksums, and need not read what others serve.
    Where a row lives depends on its part and on earlier parts only, so appending parts moves no row, and a restarted
    shard finds its rows from the manifest alone.
    """
    if num_shards < 1:
        raise ValueError(f"expected at least 1 shard, found {num_shards}")
    slices: list[list[Slice]] = [[] for _ in range(num_shards)]
    held = [0] * num_shards
    next_turn = 0
    for part, rows in enumerate(part_rows):
        if rows < 0:
            raise ValueError(f"expected rows >= 0, found {rows} in part {part}")
        if sum(held) >= cut_rows * num_shards:
            shard = held.index(min(held))
            held[shard] += rows
            if rows:
                slices[shard].append(Slice(part=part, start=0, stop=rows))
            continue
        share, left_over = divmod(rows, num_shards)
        start = 0
        for shard in range(num_shards):
            takes_one_more = (shard - next_turn) % num_shards < left_over
            stop = start + share + takes_one_more
            if stop > start:
                slices[shard].append(Slice(part=part, start=start, stop=stop))
                held[shard] += stop - start
            start = stop
        next_turn = (next_turn + left_over) % num_shards
    return tuple(tuple(own) for own in slices)
