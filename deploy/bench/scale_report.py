"""The records of `hmn bench scale` as tables in Markdown and charts in SVG."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench.fit import PowerLaw, fit_growth, fit_power_law, law_beyond
from deploy.console import duration, size
from memory_store.errors import ConfigError
from trainer.report.style import STYLE
from trainer.report.svg import Series, line_chart

__all__ = ["Record", "exponents", "fill_page", "points_of", "predicted", "read_records", "tables", "write_charts"]

_PER_FACT = ("ingest", "embed", "write", "re-index")  # their rate is what people ask for
_ROOT = ("ivf search", "ivf search, one query", "training step", "search of a training step")
"""Their time grows with the root of the facts, beside what is fixed: so do the lists of `ivf` and the rows in each."""
_MEMORY_GROWTH = {"write": 0.0, "ingest": 0.0, "embed": 0.0, "ivf build": 0.5, "open, first time": 1.0, "re-index": 1.0}
"""The power of the facts that the memory of a stage grows with. Others hold what one of these has made."""
_CHARTS = {
    "building": ("ingest", "embed", "write", "re-index", "ivf build", "open, first time"),
    "searching": ("exact search", "exact search, one query", "ivf search", "ivf search, one query", "training step"),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the results. case: what was asked for; stages: as scale_cases.Stage; peak_bytes: of all processes of
    the case together, files that they mapped included."""

    case: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]
    peak_bytes: int


def read_records(path: Path) -> list[Record]:
    """The records of a results file; none where there is no file. A last line that was cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        records.append(Record(case=found["case"], stages=tuple(found["stages"]), peak_bytes=found["peak_bytes"]))
    return records


def points_of(records: Iterable[Record], stage: str, value: str = "cpu_s") -> list[tuple[float, float]]:
    """(facts, value) of a stage at one shard, by size; where the value is not known there is none."""
    found = {
        float(record.case["facts"]): float(one[value])
        for record in records
        if record.case["shards"] == 1
        for one in record.stages
        if one["name"] == stage and one[value] is not None
    }
    return sorted(found.items())


def exponents(records: Sequence[Record], value: str = "cpu_s") -> dict[str, PowerLaw]:
    """The power law of every stage that was measured at two sizes or more, in processor seconds or in `wall_s`."""
    laws = {}
    for stage in _stage_names(records):
        points = [(facts, cost) for facts, cost in points_of(records, stage, value) if cost > 0]
        if len(points) > 1:
            laws[stage] = fit_power_law(points)
    return laws


def predicted(records: Sequence[Record], facts: int, dim: int, dtype: str, value: str = "wall_s") -> dict[str, float]:
    """What each stage will cost for so many facts, by what was measured with this dimension and dtype, at one shard:
    between the two measured sizes around it, or beyond them as the nearest lead on (see law_beyond). Approximate search
    grows with the root of the facts, and some stages take no more memory for more of them.

    value: of a stage: wall_s, cpu_s (left out where it is not known), or peak_bytes (of building). ConfigError where
    nothing of the kind was measured at two sizes.
    """
    alike = [record for record in records if (record.case["dim"], record.case["dtype"]) == (dim, dtype)]
    found = _led_on(alike, facts, value)
    if not found:
        measured = sorted({f"{record.case['dim']} {record.case['dtype']}" for record in records})
        raise ConfigError(
            f"expected measurements of two sizes with D = {dim} and {dtype}, found {', '.join(measured) or 'none'}; "
            "make them with `hmn bench scale`"
        )
    return found


def _led_on(records: Sequence[Record], facts: int, value: str) -> dict[str, float]:
    found = {}
    for stage in _stage_names(records):
        points = [(size, cost) for size, cost in points_of(records, stage, value) if cost > 0]
        power = _MEMORY_GROWTH.get(stage) if value == "peak_bytes" else 0.5 if stage in _ROOT else 1.0
        if len(points) < 2 or power is None:
            continue
        above = min(max(sum(size < facts for size, _ in points), 1), len(points) - 1)
        leading = [(size**power, cost) for size, cost in points[: above + 1]]
        found[stage] = law_beyond(leading).at(facts**power) if power else leading[-1][1]
    return found


def fill_page(text: str, made: Mapping[str, str]) -> str:
    """The text with every table between `<!-- scale: NAME -->` and `<!-- end -->` replaced by the one of that name."""
    for name, table in made.items():
        start = text.find(f"<!-- scale: {name} -->")
        end = text.find("<!-- end -->", start)
        if start >= 0 and end >= 0:
            text = f"{text[:start]}<!-- scale: {name} -->\n\n{table}\n\n{text[end:]}"
    return text


def tables(records: Sequence[Record]) -> dict[str, str]:
    """Markdown tables by name: cost by size, cost by shards, memory and disk, and what a plan would have said."""
    made = {
        "time": _time_table(records),
        "shards": _shards_table(records),
        "memory": _memory_table(records),
        "plan": _plan_table(records),
        "found": _figures_table(records),
    }
    return {name: table for name, table in made.items() if table}


def write_charts(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the charts as SVG files that stand alone; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, stages in _CHARTS.items():
        series = [
            Series(name=stage, points=points, colour=number % 6, dashed=number % 2 == 1)
            for number, stage in enumerate(stages)
            if (points := points_of(records, stage))
        ]
        if not series:
            continue
        chart = line_chart(series, x_label="facts", y_label="processor seconds", log=True, log_x=True)
        path = folder / f"scale-{name}.svg"
        path.write_text(_standing_alone(chart), encoding="utf-8")
        written.append(path)
    return written


def _standing_alone(chart: str) -> str:
    """With the style inside, and paper behind: what shows it has no page around it."""
    head, rest = chart.split(">", 1)
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f"{head}><style>{STYLE}</style>{paper}{rest}\n"


def _stage_names(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(str(stage["name"]) for record in records for stage in record.stages))


def _sizes(records: Iterable[Record]) -> list[int]:
    return sorted({int(record.case["facts"]) for record in records})


def _time_table(records: Sequence[Record]) -> str:
    sizes, laws = _sizes(records), exponents(records)
    rows = []
    for stage in _stage_names(records):
        cpu, wall = (dict(points_of(records, stage, value)) for value in ("cpu_s", "wall_s"))
        if not wall:
            continue
        cells = [_both(wall.get(facts), cpu.get(facts)) for facts in sizes]
        law = f"{laws[stage].exponent:.2f}" if stage in laws else ""
        points = points_of(records, stage)[-2:]
        end = f"{fit_power_law(points).exponent:.2f}" if len(points) > 1 and stage in laws else ""
        growth = _growth(points_of(records, stage))
        largest = max(wall)
        rate = f"{largest / wall[largest]:,.0f} facts/s" if stage in _PER_FACT else ""
        rows.append([stage, *cells, law, end, growth, rate])
    head = ["stage: wall (processor)", *(f"{facts:,} facts" for facts in sizes)]
    exponent = ["exponent", "of the largest two", "beside a fixed part"]
    return _markdown([*head, *exponent, "rate at the largest"], rows)


def _growth(points: Sequence[tuple[float, float]]) -> str:
    if len(points) < 3:
        return ""
    growth = fit_growth(points)
    return f"{growth.exponent:.2f} ({_seconds(growth.fixed)})"


def _plan_table(records: Sequence[Record]) -> str:
    """What the smaller sizes say of the largest, and what it was."""
    sizes = _sizes(records)
    if len(sizes) < 3:
        return ""
    before = [record for record in records if record.case["facts"] < sizes[-1]]
    shown = {"wall_s": _seconds, "cpu_s": _seconds, "peak_bytes": size}
    told = {value: _led_on(before, sizes[-1], value) for value in shown}

    def cell(stage: str, value: str) -> str:
        found = dict(points_of(records, stage, value)).get(sizes[-1])
        if found is None or stage not in told[value]:
            return ""
        text, said = shown[value], told[value][stage]
        return f"{text(said)}, was {text(found)} ({said / found - 1:+.0%})"

    rows = [[stage, *(cell(stage, value) for value in shown)] for stage in told["wall_s"]]
    rows = [row for row in rows if any(row[1:])]
    return _markdown([f"{sizes[-1]:,} facts", "wall", "processor", "memory"], rows) if rows else ""


def _shards_table(records: Sequence[Record]) -> str:
    shards = sorted({int(record.case["shards"]) for record in records})
    if len(shards) < 2:
        return ""
    facts = max(int(record.case["facts"]) for record in records if record.case["shards"] != 1)
    found: dict[str, dict[int, str]] = {}
    for record in records:
        if record.case["facts"] == facts:
            for stage in record.stages:
                cell = _both(stage["wall_s"], stage["cpu_s"])
                found.setdefault(str(stage["name"]), {})[int(record.case["shards"])] = cell
    rows = [[name, *(cells.get(number, "") for number in shards)] for name, cells in found.items() if len(cells) > 1]
    return _markdown([f"{facts:,} facts: wall (processor)", *(f"{number} shards" for number in shards)], rows)


def _memory_table(records: Sequence[Record]) -> str:
    sizes = _sizes(records)
    kinds = list(dict.fromkeys(str(record.case["kind"]) for record in records))
    peaks = {(r.case["kind"], r.case["facts"]): r for r in records if r.case["shards"] == 1}

    def cell(kind: str, facts: int) -> str:
        record = peaks.get((kind, facts))
        if record is None:
            return ""
        own = max((int(stage["peak_bytes"]) for stage in record.stages), default=0)
        return f"{size(record.peak_bytes)} ({size(own)})"

    rows = [[kind, *(cell(kind, facts) for facts in sizes)] for kind in kinds]
    return _markdown(["peak of all processes (without mapped files)", *(f"{facts:,} facts" for facts in sizes)], rows)


def _figures_table(records: Sequence[Record]) -> str:
    rows = [
        [str(stage["name"]), f"{record.case['facts']:,}", str(record.case["shards"]), name, _figure(name, float(value))]
        for record in records
        for stage in record.stages
        for name, value in stage["figures"].items()
    ]
    return _markdown(["stage", "facts", "shards", "found", "value"], rows) if rows else ""


def _figure(name: str, value: float) -> str:
    return size(value) if name.endswith("_bytes") else f"{value:,.3g}"


def _both(wall_s: float | None, cpu_s: float | None) -> str:
    if wall_s is None:
        return ""
    return f"{_seconds(wall_s)} ({_seconds(cpu_s)})" if cpu_s is not None else _seconds(wall_s)


def _seconds(value_s: float) -> str:
    return duration(value_s) if value_s >= 1 else f"{1000 * value_s:.1f} ms"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
