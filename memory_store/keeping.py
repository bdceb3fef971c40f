"""Which indexes go on serving a newer generation, and which of its other rows are indexed together; pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from memory_store.manifest_format import Manifest, Part
from memory_store.placement import Slice

__all__ = ["MOST_BESIDE", "MOST_DEAD", "MOST_GONE", "Piece", "gaps", "pays", "pieces_of", "rows_of", "runs"]

MOST_BESIDE = 0.1
"""Rows searched exactly beside an index, for each of its own. Beside 100,000 rows of an `ivf` (D = 64), a thousand add
0.7 ms to one question and 2.4 ms to 128, a tenth 0.8 and 9 ms; beside a million, a tenth takes one question from 1.2 to
5.1 ms and 128 from 16 to 38. It is also the share of fresh rows at which a compaction is due, so nobody waits longer
than just before one."""

MOST_GONE = 0.25
"""Rows of parts that are gone, for each row of an index. Like all dead rows they are scanned, take room, and cost an
approximate index slots, for which a search asks beyond k."""

MOST_DEAD = 0.5
"""Rows of a run that are dead, for each of its own: its exact search leaves them out, and scans them all the same."""

_TOGETHER = 4  # runs that become one: with fewer, a write waits more often for what was written before it
_SHORT_RUN = 8192  # rows that are indexed in a few ms: to search them apart would cost more


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows [start, stop) of a part of facts and of the vectors part beside it, if there is one.

    Parts carry their checksum: two generations that name a part mean the same rows, byte for byte.
    """

    facts: Part
    vectors: Part | None
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def pieces_of(manifest: Manifest, slices: Sequence[Slice]) -> tuple[Piece, ...]:
    """The slices of a generation, named so that they can be told in another one."""
    return tuple(
        Piece(
            facts=manifest.facts[piece.part],
            vectors=manifest.vectors[piece.part] if manifest.vectors else None,
            start=piece.start,
            stop=piece.stop,
        )
        for piece in slices
    )


def gaps(wanted: Sequence[Piece], held: Sequence[Piece]) -> list[tuple[int, int, int]]:
    """The rows of `wanted` that `held` has not: (position in `wanted`, first row in the part, end), in order."""
    held_of: dict[tuple[Part, Part | None], list[tuple[int, int]]] = {}
    for piece in held:
        held_of.setdefault((piece.facts, piece.vectors), []).append((piece.start, piece.stop))
    found = []
    for number, piece in enumerate(wanted):
        at = piece.start
        for start, stop in sorted(held_of.get((piece.facts, piece.vectors), ())):
            if at < min(start, piece.stop):
                found.append((number, at, min(start, piece.stop)))
            at = max(at, stop)
        if at < piece.stop:
            found.append((number, at, piece.stop))
    return found


def rows_of(found: Sequence[tuple[int, int, int]]) -> int:
    """How many rows these gaps are."""
    return sum(stop - start for _, start, stop in found)


def pays(rows: int, *, beside: int, gone: int) -> bool:
    """Whether an index over so many rows, of which some are gone, is kept for a generation with some rows beside it.

    gone: those that a new index would not hold. Rows with a tombstone in a part that stays are none of them.

    An index that is not kept is built anew at a cost that follows its rows. As long as that happens only after a share
    of them has changed, building costs a constant for each row written or deleted.
    """
    return beside <= MOST_BESIDE * rows and gone <= MOST_GONE * rows


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Which neighbours to index together, as (first, end), of what was written in this order, so many rows each.

    A log-structured merge (O'Neil et al. 1996): a run and the three after it become one once those are as long as it,
    and one that is half as long as the next, or less, joins that. So each is longer than the next three together,
    there are few of them, some log2 of how often something was written, and as long as nothing but the end changes, a
    row is indexed again as seldom.
    """
    found: list[tuple[int, int, int]] = []
    for number, count in enumerate(rows):
        found.append((number, number + 1, count))
        while last := _one_run([count for _, _, count in found[-_TOGETHER:]]):
            found[-last:] = [(found[-last][0], number + 1, sum(count for _, _, count in found[-last:]))]
    return [(first, end) for first, end, _ in found]


def _one_run(lengths: Sequence[int]) -> int:
    """How many of the last runs, of these lengths, to make one; 0 for none."""
    if len(lengths) > 1 and (sum(lengths[-2:]) <= _SHORT_RUN or 2 * lengths[-2] <= lengths[-1]):
        return 2
    return _TOGETHER if len(lengths) == _TOGETHER and lengths[0] <= sum(lengths[1:]) else 0
