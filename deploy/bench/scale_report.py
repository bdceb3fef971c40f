"""The records of `hmn bench scale` as tables in Markdown and charts in SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.bench.fit import PowerLaw, fit_growth, fit_power_law
from deploy.bench.laws import Shape
from deploy.bench.prediction import probed, told
from deploy.bench.scale_records import Record, points_of, sizes_of, stage_names
from deploy.console import duration, size
from trainer.report.style import STYLE
from trainer.report.svg import Series, line_chart

__all__ = ["exponents", "fill_page", "tables", "write_charts"]

_PER_FACT = ("ingest", "embed", "write", "re-index")  # their rate is what people ask for
_NEAR = 0.2  # of what was measured: so near is a plan meant to be
_CHARTS = {
    "building": ("ingest", "embed", "write", "re-index", "ivf build", "open, first time"),
    "searching": ("exact search", "exact search, one query", "ivf search", "ivf search, one query", "training step"),
}


def exponents(records: Sequence[Record], value: str = "cpu_s") -> dict[str, PowerLaw]:
    """The power law of every stage that was measured at two sizes or more, in processor seconds or in `wall_s`."""
    laws = {}
    for stage in stage_names(records):
        points = [(facts, cost) for facts, cost in points_of(records, stage, value) if cost > 0]
        if len(points) > 1:
            laws[stage] = fit_power_law(points)
    return laws


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


def _time_table(records: Sequence[Record]) -> str:
    sizes, laws = sizes_of(records), exponents(records)
    rows = []
    for stage in stage_names(records):
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
    """What the smaller sizes say of the largest, and what it was; for each number of shards, how much was near."""
    sizes = sizes_of(records)
    if len(sizes) < 3:
        return ""
    before = [record for record in records if record.case["facts"] < sizes[-1]]
    shown = {"wall_s": _seconds, "cpu_s": _seconds, "peak_bytes": size}
    rows = []
    for shards in sorted({int(record.case["shards"]) for record in records}):
        near: dict[str, list[bool]] = {value: [] for value in shown}
        beside = "" if shards == 1 else f", {shards} shards"
        lists = probed(records, shards).get(sizes[-1])  # how many there must be, the vectors say and no plan
        shape = Shape(facts=sizes[-1], dim=int(records[0].case["dim"]), shards=shards, nprobe=lists)
        said = {value: told(before, shape, value) for value in shown}
        for stage in stage_names(records):
            cells = []
            for value, text in shown.items():
                found = dict(points_of(records, stage, value, shards)).get(sizes[-1])
                one = said[value].get(stage)
                if found is None or one is None:
                    cells.append("")
                    continue
                near[value].append(abs(one.cost / found - 1) <= _NEAR)
                expected = "" if one.holds(found) else f", expected {text(one.least)} to {text(one.most)}"
                cells.append(f"{text(one.cost)}, was {text(found)} ({one.cost / found - 1:+.0%}{expected})")
            if any(cells):
                rows.append([f"{stage}{beside}", *cells])
        counts = [f"{sum(found)} of {len(found)}" if found else "" for found in near.values()]
        if any(counts):
            rows.append([f"within {_NEAR:.0%}{beside}", *counts])
    head = [f"{sizes[-1]:,} facts", "wall", "processor", "memory"]
    return _markdown(head, rows) if rows else ""


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
    sizes = sizes_of(records)
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
