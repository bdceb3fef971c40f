"""What a stage's cost is made of: a fixed part, and so much for each unit of work; the code's formulas give the work.

No exponent is fitted. Two sizes cannot tell one from a fixed part, and what looks like one between small sizes (a cache
that overflows, memory that comes from the system for the first time) does not go on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from memory_store.mips.base import IndexSpec
from memory_store.mips.coarse import groups_looked_at
from memory_store.mips.codes import code_width
from memory_store.mips.exact import is_saved, saved_bytes
from memory_store.mips.ivf import ROUNDS, SAMPLED_POINTS, default_nlist, default_nprobe

# D dimension

__all__ = ["HELD", "IN_BYTES", "REPEATS_WITHIN", "WORK", "Line", "Prediction", "Shape", "lead_on", "line_through"]

REPEATS_WITHIN = 0.1
"""So far from their middle lie two measurements of a stage, mostly: of eight that were taken twice at a million facts,
in processor seconds of two shared cores, five lay within it, and all within a little more than twice as much."""

_COPY = IndexSpec("exact", {"scan": "int8"})  # where another is kept, what was measured says so
_FAR = 5  # times as much work
_ROW_NUMBER_BYTES = 8  # beside the codes of a row in a list
_ROW_MEANS = 128  # with so many means a row is multiplied in the time in which it is read, coded and put into its list
_RESIDENT_GENERATIONS = 2  # while the next generation loads, the one being served stays


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A memory that a stage works on. nprobe: lists that its approximate search probes; None: as many as by default."""

    facts: int
    dim: int
    shards: int = 1
    nprobe: int | None = None

    @property
    def rows(self) -> int:
        """Of a shard."""
        return math.ceil(self.facts / self.shards)

    @property
    def is_saved(self) -> bool:
        """Whether `exact` keeps its copy in a file: the first process that opens the memory makes and writes it, each
        later one maps it; below, every process makes its own."""
        return is_saved(self.rows, self.dim)


@dataclass(frozen=True, kw_only=True)
class Line:
    """cost = fixed + each * work."""

    fixed: float
    each: float

    def at(self, work: float) -> float:
        """The cost that the line gives for so much work."""
        return self.fixed + self.each * work


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A cost, and between what it lies if each measurement that it rests on was off by REPEATS_WITHIN, in whichever
    direction leads furthest away."""

    cost: float
    least: float
    most: float

    def holds(self, measured: float) -> bool:
        """Whether what was measured is one of the costs that were to be expected."""
        return self.least <= measured <= self.most


def line_through(one: tuple[float, float], two: tuple[float, float]) -> Line:
    """Through two (work, cost) pairs, the second of more work, as far as a cost can: nothing has a fixed part below
    zero, and nothing costs less for more work. The second pair then speaks alone."""
    (work_one, cost_one), (work_two, cost_two) = one, two
    each = (cost_two - cost_one) / (work_two - work_one)
    if each <= 0:
        return Line(fixed=cost_two, each=0.0)
    fixed = cost_one - each * work_one
    return Line(fixed=fixed, each=each) if fixed >= 0 else Line(fixed=0.0, each=cost_two / work_two)


def lead_on(points: Sequence[tuple[float, float]], work: float, *, each: float = 0.0) -> Prediction:
    """The cost of so much work, by at least two (work, cost) pairs, ascending: by the line through the two around it;
    beyond them, through the nearest and the next that is far enough from it, for what two near ones are off by would be
    multiplied. each: what a unit costs at least, where a formula says so."""
    if len({one for one, _ in points}) < 2:
        raise ValueError(f"expected at least two different amounts of work, found {sorted({one for one, _ in points})}")
    upper = min(max(sum(one < work for one, _ in points), 1), len(points) - 1)
    one, two = points[upper - 1], points[upper]
    if work > two[0]:
        one = next((point for point in reversed(points[:upper]) if point[0] * _FAR <= two[0]), one)

    def told(off_one: float, off_two: float) -> float:
        line = line_through((one[0], one[1] * (1 + off_one)), (two[0], two[1] * (1 + off_two)))
        if line.each < each:  # then smaller sizes held something else, which hid it
            line = Line(fixed=max(two[1] * (1 + off_two) - each * two[0], 0.0), each=each)
        return line.at(work)

    off = (-REPEATS_WITHIN, 0.0, REPEATS_WITHIN)
    found = [told(off_one, off_two) for off_one in off for off_two in off]
    return Prediction(cost=told(0.0, 0.0), least=min(found), most=max(found))


# Work


def _facts(shape: Shape) -> float:
    return shape.facts


def _bytes_of_lists(shape: Shape) -> float:
    """What `ivf?levels=2` reads for a query, of all shards: the means of the groups that it looks at, in float32, and
    the int8 codes and row numbers of the lists that it probes."""
    lists = default_nlist(shape.rows)
    probed = min(shape.nprobe or default_nprobe(lists), lists)
    groups = max(round(lists**0.5), 1)
    means = groups + groups_looked_at(groups, lists, probed) * lists / groups
    scanned_rows = probed * shape.rows / lists
    row_bytes = code_width(shape.dim) + _ROW_NUMBER_BYTES
    return float(shape.shards * (means * (4 * shape.dim + _ROW_NUMBER_BYTES) + scanned_rows * row_bytes))


def _rows_by_means(shape: Shape) -> float:
    """What building `ivf?levels=2` multiplies: each row with the means of the groups and with those of one group, and
    in each round the sample that the means are learned from. It grows by leaps, as the number of lists does."""
    lists = default_nlist(shape.rows)
    means = 2.0 * math.sqrt(lists)
    points = min(SAMPLED_POINTS * lists, shape.rows)
    return shape.shards * (shape.rows * (means + _ROW_MEANS) + ROUNDS * points * means)


WORK: Final[Mapping[str, Callable[[Shape], float]]] = MappingProxyType(
    dict.fromkeys(
        ("ivf search", "ivf search, one query", "training step", "search of a training step"), _bytes_of_lists
    )
    | {"ivf build": _rows_by_means}
)
"""What the seconds of a stage grow with; of a stage that is not here, the facts."""


def _nothing(_shape: Shape) -> float:
    return 0.0


def _lists_twice(shape: Shape) -> float:
    """The lists of `ivf` in int8, and the bytes of their file."""
    return 2.0 * shape.shards * shape.rows * (code_width(shape.dim) + _ROW_NUMBER_BYTES)


def _copy(shape: Shape) -> float:
    return shape.shards * saved_bytes(_COPY, shape.rows, shape.dim)


def _copies(shape: Shape) -> float:
    return _RESIDENT_GENERATIONS * _copy(shape)


HELD: Final[Mapping[str, Callable[[Shape], float]]] = MappingProxyType(
    {
        "write": _nothing,
        "ingest": _nothing,
        "embed": _nothing,
        "ivf build": _lists_twice,
        "open, first time": _copy,
        "re-index": _copies,
    }
)
"""What the memory of a stage grows with: nothing, where buffers are bounded by constants; the bytes of the copy that
`exact` scans; or those of the lists that are built and written. Of a stage that is not here, it is what one of these
has made."""
IN_BYTES: Final = ("open, first time", "ivf build", "re-index")
"""Those whose work is bytes that are held."""
