"""What a step will cost at a size that was not measured, by the records of sizes that were; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from deploy.bench.laws import HELD, IN_BYTES, REPEATS_WITHIN, WORK, Prediction, Shape, lead_on, line_through
from deploy.bench.scale_records import Record, points_of, stage_names
from memory_store.errors import ConfigError

__all__ = ["predicted", "probed", "told"]

_BY_COPY: Final = ("open, first time", "open", "first search")
"""Other work where the copy of `exact` is kept in a file than where each process makes its own."""
_OPENING: Final = _BY_COPY[:2]
"""Where the copy is in a file, less of it is shared among processors, and the first waits for the disk."""
_RECOVERY: Final = "killed shard serves again"
_RECOVERS: Final = ("open", "first search")
"""A new process, which takes as long whatever there is to serve, and then these."""
_BATCH: Final = "ivf search"
_BATCH_QUERIES: Final = 128
_TELLING: Final = 2.0  # times as much work
_ONE: Final = "ivf search, one query"
_WALL: Final = "wall_s"
_WORKED: Final = "cpu_s"
_BYTES: Final = "peak_bytes"


def predicted(
    records: Sequence[Record], facts: int, dim: int, dtype: str, value: str = "wall_s", shards: int = 1
) -> dict[str, Prediction]:
    """What each stage will cost for so many facts, by what was measured with this dimension and dtype.

    value: of a stage: wall_s, cpu_s (left out where it is not known), or peak_bytes (of building). ConfigError where
    nothing of the kind was measured at two sizes.
    """
    alike = [record for record in records if (record.case["dim"], record.case["dtype"]) == (dim, dtype)]
    found = told(alike, Shape(facts=facts, dim=dim, shards=shards), value)
    if not found:
        measured = sorted({f"{record.case['dim']} {record.case['dtype']}" for record in records})
        raise ConfigError(
            f"expected measurements of two sizes with D = {dim} and {dtype}, found {', '.join(measured) or 'none'}; "
            "make them with `hmn bench scale`"
        )
    return found


def told(records: Sequence[Record], shape: Shape, value: str) -> dict[str, Prediction]:
    """The same by records of one dimension and dtype, of every stage that they tell of; see `predicted`.

    Stages that were not measured at two sizes with so many shards are told of as with one: on one machine, shards
    divide the work and do not lessen it.
    """
    found: dict[str, Prediction] = {}
    for stage in stage_names(records):
        for shards in dict.fromkeys((shape.shards, 1)):
            one = _told(records, stage, shape, value, shards)
            if one is not None:
                found[stage] = one
                break
    return _on_the_clock(records, found, shape) if value == _WALL else found


def _on_the_clock(records: Sequence[Record], found: Mapping[str, Prediction], shape: Shape) -> dict[str, Prediction]:
    """Wall seconds from processor seconds, where these are known: times the least that the clock said for a processor
    second at any size. That is the machine with nothing beside, for what else runs while a stage is measured adds to
    the clock alone, and to each size as it happens. The range goes on to what the wall seconds themselves lead to."""
    working = told(records, shape, _WORKED)
    seconds = {}
    for stage, one in found.items():
        shares = _clock_for_processor(records, stage, shape)
        if stage not in working or not shares:
            seconds[stage] = one
            continue
        cpu, share = working[stage], min(shares)
        least, most = min(one.least, cpu.least * share), max(one.most, cpu.most * share)
        seconds[stage] = Prediction(cost=cpu.cost * share, least=least, most=most)
    return seconds


def _clock_for_processor(records: Sequence[Record], stage: str, shape: Shape) -> list[float]:
    """Wall seconds for a processor second, of every size at which the stage does what it will do here."""
    for shards in dict.fromkeys((shape.shards, 1)):
        wall = _points(records, stage, shape, _WALL, shards)
        cpu = {at.facts: cost for at, cost in _points(records, stage, shape, _WORKED, shards)}
        shares = [(at, cost / cpu[at.facts]) for at, cost in wall if at.facts in cpu]
        alike = [share for at, share in shares if stage not in _OPENING or at.is_saved == shape.is_saved]
        if alike or shards == 1:
            return alike or [share for _, share in shares]
    return []


def _told(records: Sequence[Record], stage: str, shape: Shape, value: str, shards: int) -> Prediction | None:
    points = _points(records, stage, shape, value, shards)
    if value == _BYTES:
        return _held(points, stage, shape)
    if len(points) < 2:
        return None
    if stage == _RECOVERY:
        return _recovery(records, points, shape, value, shards)
    if stage == _ONE:
        batch = _points(records, _BATCH, shape, value, shards)
        return _one_query(points, batch if _tells(batch, shards) else _points(records, _BATCH, shape, value, 1), shape)
    if stage == _BATCH and not _tells(points, shards):
        return None
    if stage in _BY_COPY:
        alike = [(at, cost) for at, cost in points if at.is_saved == shape.is_saved]
        others = [(_facts(at), cost) for at, cost in points if at.is_saved != shape.is_saved]
        if len(alike) == 1 and len(others) > 1:
            # What is fixed is the same both ways.
            (at, cost), fixed = alike[0], line_through(*others[:2]).fixed
            return lead_on([(0.0, min(fixed, cost)), (_facts(at), cost)], _facts(shape))
        if len(alike) > 1:
            points = alike
        elif shards > 1:
            return None
    work = WORK.get(stage, _facts)
    asked = shape if stage == _BATCH else replace(shape, nprobe=None)
    return lead_on([(work(at), cost) for at, cost in points], work(asked))


def _tells(points: Sequence[tuple[Shape, float]], shards: int) -> bool:
    """Whether searches that probed other numbers of lists did work so different that it shows in their cost."""
    work = [WORK[_BATCH](at) for at, _ in points]
    return shards == 1 or (len(work) > 1 and max(work) >= _TELLING * min(work))


def _points(records: Sequence[Record], stage: str, shape: Shape, value: str, shards: int) -> list[tuple[Shape, float]]:
    """(what was measured, its cost), by size."""
    lists = probed(records, shards)
    return [
        (Shape(facts=int(facts), dim=shape.dim, shards=shards, nprobe=lists.get(facts)), cost)
        if stage in (_BATCH, _ONE)
        else (Shape(facts=int(facts), dim=shape.dim, shards=shards), cost)
        for facts, cost in points_of(records, stage, value, shards)
        if cost > 0
    ]


def probed(records: Sequence[Record], shards: int) -> dict[float, int]:
    """The lists that the approximate search probed, by size."""
    return {
        float(record.case["facts"]): int(stage["figures"]["nprobe"])
        for record in records
        if record.case["shards"] == shards
        for stage in record.stages
        if stage["name"] == _BATCH and "nprobe" in stage["figures"]
    }


def _held(points: Sequence[tuple[Shape, float]], stage: str, shape: Shape) -> Prediction | None:
    held = HELD.get(stage)
    if held is None or len(points) < 2:
        return None
    alone = Shape(facts=shape.facts, dim=shape.dim)  # the stages that hold a formula's bytes are measured with all rows
    pairs = [(held(at), cost) for at, cost in points]
    if pairs[0][0] == pairs[-1][0]:
        cost = max(cost for _, cost in pairs)
        return Prediction(cost=cost, least=cost * (1 - REPEATS_WITHIN), most=cost * (1 + REPEATS_WITHIN))
    return lead_on(pairs, held(alone), each=1.0 if stage in IN_BYTES else 0.0)


def _recovery(
    records: Sequence[Record], points: Sequence[tuple[Shape, float]], shape: Shape, value: str, shards: int
) -> Prediction | None:
    """What the largest size took beside the parts, and the parts as they are told of."""
    parts = [
        _told(records, stage, shape, value, shards) or _told(records, stage, shape, value, 1) for stage in _RECOVERS
    ]
    at, cost = points[-1]
    there = [dict(points_of(records, stage, value, shards)).get(float(at.facts)) for stage in _RECOVERS]
    if any(part is None for part in parts) or any(part is None for part in there):
        return lead_on([(_facts(at), cost) for at, cost in points], _facts(shape))
    fixed = max(cost - sum(part for part in there if part is not None), 0.0)
    known = [part for part in parts if part is not None]
    return Prediction(
        cost=fixed + sum(part.cost for part in known),
        least=fixed * (1 - REPEATS_WITHIN) + sum(part.least for part in known),
        most=fixed * (1 + REPEATS_WITHIN) + sum(part.most for part in known),
    )


def _one_query(points: Sequence[tuple[Shape, float]], batch: Sequence[tuple[Shape, float]], shape: Shape) -> Prediction:
    """What one query costs is nearly all fixed: what a unit of work adds is told by many queries together."""
    work = WORK[_ONE]
    at, cost = points[-1]
    each = 0.0
    if len(batch) > 1:
        each = line_through(*[(work(at), cost) for at, cost in batch[-2:]]).each / _BATCH_QUERIES
    found = max(cost + each * (work(shape) - work(at)), 0.0)
    return Prediction(cost=found, least=found * (1 - REPEATS_WITHIN), most=found * (1 + REPEATS_WITHIN))


def _facts(shape: Shape) -> float:
    return float(shape.facts)
