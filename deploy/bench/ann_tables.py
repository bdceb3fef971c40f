"""What `hmn bench ann` found, as tables and figures: made from its file of results, never by hand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.bench.ann_engines import ENGINES
from deploy.console import duration, size
from trainer.report.style import STYLE
from trainer.report.svg import Series, line_chart

__all__ = [
    "BEGIN",
    "END",
    "best_at",
    "case_rows",
    "describe",
    "page_text",
    "pareto",
    "replaced",
    "tables_of",
    "write_pages",
]

Case = Mapping[str, Any]
Point = Mapping[str, Any]
Table = tuple[str, int, int, str]
"""Kind of vectors, rows, queries searched at once, processor."""

RECALL: Final = 0.95
BEGIN, END = "<!-- hmn bench ann: from here -->", "<!-- hmn bench ann: to here -->"
_COLUMNS = (
    "index", "at recall", "queries/s", "times exact", "effort", "building", "memory"
)  # fmt: skip
_COLOURS = 6  # of a report's style
_NOT_IN_NAMES = re.compile("[^a-z0-9]+")


def best_at(case: Case, recall: float = RECALL) -> Point | None:
    """The fastest point of a case that reaches this recall; None where none does."""
    reached = [point for point in case["points"] if point["recall"] >= recall]
    return max(reached, key=lambda point: float(point["times_exact"]), default=None)


def case_rows(cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of one table: per engine its fastest point at the recall, else that of highest recall."""
    rows = []
    for case in sorted(cases, key=_rank):
        point = best_at(case)
        shown = point or max(case["points"], key=lambda one: float(one["recall"]))
        name = case["engine"] + ("" if _ours(case) else f" {case['version']}".rstrip())
        rows.append(
            [
                name,
                f"{shown['recall']:.3f}",
                f"{shown['queries_per_s']:,.0f}",
                f"{shown['times_exact']:.2g}" if shown["times_exact"] < 10 else f"{shown['times_exact']:.1f}",
                f"{case['effort_name']} {shown['effort']}" if case["effort_name"] else "–",
                duration(case["build_s"]),
                size(case["bytes"]),
            ]
        )
    return list(_COLUMNS), rows


def describe(case: Case) -> str:
    """What a table is about, in one line."""
    return (
        f"{case['kind']}: {case['rows']:,} rows of {case['dim']} values ({case['note']}); K = {case['k']}, "
        f"{_at_once(case['batch'])}, {case['threads']} threads, {case['processor']}"
    )


def verdict(cases: Sequence[Case]) -> str:
    """Who is fastest at the recall, said whoever it is."""
    reached = [(case, point) for case in cases if (point := best_at(case)) is not None]
    if not reached:
        return f"None reaches {RECALL}."
    reached.sort(key=lambda one: -float(one[1]["times_exact"]))
    ours = next((one for one in reached if _ours(one[0])), None)
    other = next((one for one in reached if not _ours(one[0])), None)
    if ours is None or other is None:
        case, point = reached[0]
        return f"Fastest at recall {RECALL}: `{case['engine']}`, {point['times_exact']:.1f} times as fast as `exact`."
    times = float(ours[1]["times_exact"]) / float(other[1]["times_exact"])
    return (
        f"At recall {RECALL}, our fastest is `{ours[0]['engine']}` ({ours[1]['times_exact']:.1f} times `exact`), the "
        f"fastest of the others `{other[0]['engine']}` ({other[1]['times_exact']:.1f} times): "
        + (f"ours is {times:.1f} times as fast." if times >= 1 else f"it is {1 / times:.1f} times as fast as ours.")
    )


def pareto(cases: Sequence[Case]) -> str:
    """Queries per second against recall, a line per engine through its points; other libraries' are dashed."""
    series = []
    for ours in (True, False):
        named = [case for case in sorted(cases, key=_rank) if _ours(case) is ours]
        for number, case in enumerate(named):
            points = sorted((point["recall"], point["queries_per_s"]) for point in case["points"])
            series.append(Series(name=case["engine"], points=points, colour=number % _COLOURS, dashed=not ours))
    drawing = line_chart(series, x_label="recall@K", y_label="queries per second", log=True)
    # On a page of its own the figure brings its looks along.
    return drawing.replace(">", f"><style>{STYLE} svg {{ background: var(--paper); }}</style>", 1)


def tables_of(cases: Iterable[Case]) -> dict[Table, list[Case]]:
    """The cases of each table, in the order in which they come."""
    found: dict[Table, list[Case]] = {}
    for case in cases:
        found.setdefault((case["kind"], case["rows"], case["batch"], case["processor"]), []).append(case)
    return found


def page_text(cases: Sequence[Case], figures: Mapping[Table, str]) -> str:
    """The section of docs/indexes.md: a table for each kind, size and processor. figures: names of files."""
    lines = []
    for table_of, here in tables_of(cases).items():
        kind, rows, batch, processor = table_of
        columns, table = case_rows(here)
        lines += [f"### {kind.capitalize()}, {rows:,} rows, {_at_once(batch)}, {processor}", ""]
        lines += [f"{describe(here[0])}. {verdict(here)}", ""]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in table]
        lines += _target_lines(here)
        lines += [
            "",
            f"![Recall and queries per second, {kind}, {rows:,} rows, {_at_once(batch)}]({figures[table_of]})",
            "",
        ]
    return "\n".join(lines)


def _at_once(batch: int) -> str:
    return "one query at a time" if batch == 1 else f"{batch} queries at once"


def _target_lines(cases: Sequence[Case]) -> list[str]:
    """A table of what target_recall comes to, where an effort can follow it."""
    followed = [case for case in cases if "target" in case]
    if not followed:
        return []
    lines = ["", "| index | recall with `target_recall=0.95` (95 % interval) | effort |", "|---|---|---|"]
    for case in followed:
        at = case["target"]
        shown = f"{at['recall']:.3f} ({at['low']:.3f} to {at['high']:.3f})"
        effort = f"{case['effort_name']} {at['effort']}{', then all rows' if at.get('all_rows') else ''}"
        lines.append(f"| `{case['engine']}` | {shown} | {effort} |")
    return lines


def write_pages(docs: Path, cases: Sequence[Case]) -> None:
    """Put the tables between the marks of indexes.md, and a figure for each beside it."""
    figures = {}
    for table_of, here in tables_of(cases).items():
        figures[table_of] = f"ann-{_NOT_IN_NAMES.sub('-', ' '.join(map(str, table_of)).lower()).strip('-')}.svg"
        (docs / figures[table_of]).write_text(pareto(here) + "\n", encoding="utf-8")
    page = docs / "indexes.md"
    page.write_text(replaced(page.read_text(encoding="utf-8"), page_text(cases, figures)), encoding="utf-8")


def replaced(page: str, section: str) -> str:
    """The page with this between its marks. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} in indexes.md, found none")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def _ours(case: Case) -> bool:
    return case["engine"] in ENGINES and ENGINES[case["engine"]].ours


def _rank(case: Case) -> tuple[bool, float]:
    """Those that reach the recall first, the fastest before the others; then by the recall they do reach."""
    point = best_at(case)
    if point is not None:
        return False, -float(point["times_exact"])
    return True, -_highest(point["recall"] for point in case["points"])


def _highest(values: Iterable[float]) -> float:
    return max(values, default=0.0)
