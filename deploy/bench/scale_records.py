"""What `hmn bench scale` wrote down: its records, read again."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Record", "case_key", "points_of", "read_records", "sizes_of", "stage_names"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the results. case: what was asked for; stages: as scale_cases.Stage; peak_bytes: of all processes of
    the case together, files that they mapped included."""

    case: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]
    peak_bytes: int


def read_records(path: Path) -> list[Record]:
    """The records of a results file, one for each case; none where there is no file.

    Of a case that was measured several times, the best of each stage counts, as of the turns of a stage. A last line
    that was cut off is left out.
    """
    if not path.exists():
        return []
    records: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        one = Record(case=found["case"], stages=tuple(found["stages"]), peak_bytes=found["peak_bytes"])
        key = case_key(one.case)
        records[key] = _best(records[key], one) if key in records else one
    return list(records.values())


def case_key(case: Mapping[str, object]) -> str:
    """Names the case among all: what has the same was measured already."""
    return json.dumps(dict(case), sort_keys=True)


def _best(one: Record, other: Record) -> Record:
    before = {stage["name"]: stage for stage in one.stages}
    stages = []
    for stage in other.stages:
        pair = [stage, before.get(stage["name"], stage)]
        known = [turn["cpu_s"] for turn in pair if turn["cpu_s"] is not None]
        stages.append({**stage, "wall_s": min(turn["wall_s"] for turn in pair), "cpu_s": min(known, default=None)})
    return Record(case=other.case, stages=tuple(stages), peak_bytes=max(one.peak_bytes, other.peak_bytes))


def points_of(
    records: Iterable[Record], stage: str, value: str = "cpu_s", shards: int = 1
) -> list[tuple[float, float]]:
    """(facts, value) of a stage at so many shards, by size; where the value is not known there is none."""
    found = {
        float(record.case["facts"]): float(one[value])
        for record in records
        if record.case["shards"] == shards
        for one in record.stages
        if one["name"] == stage and one[value] is not None
    }
    return sorted(found.items())


def stage_names(records: Iterable[Record]) -> list[str]:
    """Every stage that was measured, each once, in the order in which they first come."""
    return list(dict.fromkeys(str(stage["name"]) for record in records for stage in record.stages))


def sizes_of(records: Iterable[Record]) -> list[int]:
    """Every number of facts that was measured, ascending."""
    return sorted({int(record.case["facts"]) for record in records})
