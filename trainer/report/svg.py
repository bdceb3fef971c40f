"""Charts as inline SVG: lines, intervals and bars, labelled, coloured by the style of the page that holds them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from trainer.report.style import DRAWING_STYLE

__all__ = [
    "Series",
    "bar_chart",
    "count",
    "interval_chart",
    "line_chart",
    "percent",
    "plain",
    "running_median",
    "standalone",
]

Point = tuple[float, float]
Band = tuple[float, float, float]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _BOTTOM, _TOP = 54, 18, 46, 30
_LEGEND_ROW = 20
_LABEL_CHAR = 6.6  # average width of a character of a label, in units of the drawing
_MARKED_POINTS = 40  # a line of more points gets no markers
_LOG_FROM = 20.0  # largest over smallest value from which an axis may be logarithmic


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart. kind: "line", "faint" (a line behind another), "dots" or "steps".

    band: (x, low, high), drawn behind it. colour: which of the page's six; also chooses the dash of a line.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    kind: str = "line"
    dashed: bool = False
    band: Sequence[Band] = ()


# Numbers


def plain(value: float) -> str:
    """`1,200`, `0.25`, `3`: as few digits as say it."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.0e}"


def percent(value: float) -> str:
    """A share as `85 %`."""
    return f"{100 * value:.3g} %"


def count(value: float) -> str:
    """A whole number, with separators."""
    return f"{value:,.0f}"


def running_median(points: Sequence[Point], window: int = 7) -> list[Point]:
    """Each y replaced by the median of those around it: one bad batch does not bend the line."""
    ys = [y for _, y in points]
    smooth = []
    for at, (x, _) in enumerate(points):
        reach = min(window // 2, at, len(ys) - 1 - at)
        around = sorted(ys[at - reach : at + reach + 1])
        smooth.append((x, around[len(around) // 2]))
    return smooth


def _nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from at most `low` to at least `high`."""
    spread = high - low or abs(high) or 1.0
    exact = spread / wanted
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    factors = (1, 2, 5) if high / low < 200 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**decade for decade in decades for factor in factors]
    below = [tick for tick in every if tick <= low * 1.001][-1:]
    above = [tick for tick in every if tick >= high * 0.999][:1]
    return [*below, *(tick for tick in every if low * 1.001 < tick < high * 0.999), *above]


# Charts


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_format: Callable[[float], str] = plain,
    from_zero: bool = False,
    share: bool = False,
    log: bool = False,
    log_x: bool = False,
) -> str:
    """Values against a common x.

    from_zero: the axis begins at 0. share: values in [0, 1], the axis ends at 100 %. log: if the values spread far.
    log_x: the same for x.
    """
    drawn = [one for one in series if one.points]
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    ys += [value for one in drawn for _, low, high in one.band for value in (low, high)]
    named = [one for one in drawn if one.name]
    rows = _legend_rows(named) if named else []
    top = _TOP + _LEGEND_ROW * len(rows)
    height = _HEIGHT + _LEGEND_ROW * max(0, len(rows) - 1)
    is_log = log and min(ys) > 0 and max(ys) / min(ys) >= _LOG_FROM
    if is_log:
        y_ticks = _log_ticks(min(ys), max(ys))
    else:
        ends = [*ys, *([0.0] if from_zero else []), *([1.0] if share else [])]
        y_ticks = [tick for tick in _nice_ticks(min(ends), max(ends)) if not share or tick <= 1.0001]
        if len(y_ticks) < 2:  # all of them are 100 %
            y_ticks = [0.0, 1.0]
        y_format = percent if share else y_format
    is_log_x = log_x and min(xs) > 0 and max(xs) / min(xs) >= _LOG_FROM
    x_ticks = _log_ticks(min(xs), max(xs)) if is_log_x else _nice_ticks(min(xs), max(xs), 6)
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_ticks[0], x_ticks[-1]

    x_labels = {tick: count(tick) if tick >= 1 else plain(tick) for tick in x_ticks if x_low <= tick <= x_high * 1.0001}
    # The last label may stand under the end of the axis, with half of it beyond.
    right_end = _WIDTH - max([_RIGHT, *(_LABEL_CHAR * len(label) / 2 + 4 for label in list(x_labels.values())[-1:])])

    def at_x(x: float) -> float:
        scale = math.log10 if is_log_x else float
        low, high = scale(x_low), scale(x_high)
        return _LEFT + (scale(x) - low) / (high - low) * (right_end - _LEFT)

    def at_y(y: float) -> float:
        scale = math.log10 if is_log else float
        low, high = scale(y_ticks[0]), scale(y_ticks[-1])
        return height - _BOTTOM - (scale(y) - low) / (high - low) * (height - _BOTTOM - top)

    parts = [_text(2, 14, y_label + (", logarithmic" if is_log else ""), "axis-name")]
    parts += _legend(rows)
    for tick in y_ticks:
        parts.append(_line(_LEFT, at_y(tick), right_end, at_y(tick), "grid"))
        parts.append(_text(_LEFT - 8, at_y(tick) + 4, y_format(tick), "tick end"))
    for tick, label in x_labels.items():
        parts.append(_line(at_x(tick), height - _BOTTOM, at_x(tick), height - _BOTTOM + 4, "axis"))
        parts.append(_text(at_x(tick), height - _BOTTOM + 18, label, "tick mid"))
    parts.append(_line(_LEFT, height - _BOTTOM, right_end, height - _BOTTOM, "axis"))
    said_x = x_label + (", logarithmic" if is_log_x else "")
    parts.append(_text((_LEFT + right_end) / 2, height - 8, said_x, "axis-name mid"))
    for one in drawn:
        parts += _series(one, at_x, at_y, y_format)
    return _svg(height, f"{y_label} against {x_label}", parts)


def interval_chart(rows: Sequence[tuple[str, float, float, float, str]], *, x_label: str, width: float = _WIDTH) -> str:
    """A dot and its interval for each (label, value, low, high, note); values are shares in [0, 1].

    The axis begins below the lowest interval: a dot, unlike a bar, has no length that would mislead.
    """
    longest = int(width / 2 / _LABEL_CHAR)
    left = 16 + _LABEL_CHAR * max(len(_short(row[0], longest)) for row in rows)
    right = _RIGHT + 8 + _LABEL_CHAR * max(len(row[4]) for row in rows)
    height = 54 + 22 * len(rows)
    ticks = [tick for tick in _nice_ticks(min(row[2] for row in rows), 1.0) if tick <= 1.0001]

    def at(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - right)

    parts = []
    for tick in ticks:
        parts.append(_line(at(tick), 8, at(tick), height - 42, "grid"))
        parts.append(_text(at(tick), height - 26, percent(tick), "tick mid"))
    for number, (label, value, row_low, row_high, note) in enumerate(rows):
        y = 20 + 22 * number
        parts.append(_text(left - 12, y + 4, _short(label, longest), "label end", title=label))
        parts.append(_line(at(row_low), y, at(row_high), y, "whisker s0"))
        shown = f"{label}: {percent(value)} ({percent(row_low)} to {percent(row_high)}), {note}"
        parts.append(_dot(at(value), y, 4.5, "dot s0", shown))
        parts.append(_text(width - 4, y + 4, note, "tick end"))
    parts.append(_text((left + width - right) / 2, height - 6, x_label, "axis-name mid"))
    return _svg(height, x_label, parts, width)


def bar_chart(rows: Sequence[tuple[str, float, str]], *, what: str) -> str:
    """A horizontal bar for each (label, value, text beside it); the texts say the values, so there is no axis."""
    left = 16 + _LABEL_CHAR * max(len(row[0]) for row in rows)
    right = 24 + _LABEL_CHAR * max(len(row[2]) for row in rows)
    most = max(row[1] for row in rows) or 1.0
    parts = []
    for number, (label, value, text) in enumerate(rows):
        y = 8 + 30 * number
        width = max(1.0, value / most * (_WIDTH - left - right))
        parts.append(_text(left - 12, y + 15, label, "label end"))
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{y}" width="{width:.1f}" height="20" rx="2"/>')
        parts.append(_text(left + width + 8, y + 15, text, "tick"))
    return _svg(16 + 30 * len(rows), what, parts)


def standalone(chart: str) -> str:
    """A chart as a file of its own, with a margin and the colours of the report."""
    box = chart[chart.index('viewBox="') + 9 :].split('"', 1)[0]
    _, _, width, height = map(float, box.split())
    wider = f'viewBox="-16 -12 {width + 32:g} {height + 24:g}"'
    return chart.replace(f'viewBox="{box}"', wider, 1).replace(">", f"><style>{DRAWING_STYLE}</style>", 1) + "\n"


# Pieces


def _series(
    one: Series, at_x: Callable[[float], float], at_y: Callable[[float], float], y_format: Callable[[float], str]
) -> list[str]:
    parts = []
    if one.band:
        edge = [(x, high) for x, _, high in one.band] + [(x, low) for x, low, _ in reversed(one.band)]
        parts.append(f'<path class="band f{one.colour}" d="{_path(edge, at_x, at_y)}Z"/>')
    if one.kind == "dots":
        return parts + [_marker(x, y, one, at_x, at_y, y_format, 3.0) for x, y in one.points]
    points = list(one.points)
    if one.kind == "steps":
        corners = [(later[0], earlier[1]) for earlier, later in pairwise(points)]
        points = [point for pair in zip(points, [*corners, points[-1]], strict=True) for point in pair]
    dash = " dashed" if one.dashed else ""
    faint = " faint" if one.kind == "faint" else ""
    parts.append(f'<path class="line s{one.colour}{dash}{faint}" d="{_path(points, at_x, at_y)}"/>')
    if one.kind != "faint" and len(one.points) <= _MARKED_POINTS:
        parts += [_marker(x, y, one, at_x, at_y, y_format, 3.0) for x, y in one.points]
    return parts


def _marker(
    x: float,
    y: float,
    one: Series,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
    y_format: Callable[[float], str],
    radius: float,
) -> str:
    said = f"{one.name + ', ' if one.name else ''}{count(x)}: {y_format(y)}"
    return _dot(at_x(x), at_y(y), radius, f"dot s{one.colour}", said)


def _path(points: Sequence[Point], at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)


def _legend_rows(series: Sequence[Series]) -> list[list[tuple[float, Series]]]:
    """The entries of a legend with their x, in as many rows as they need."""
    rows: list[list[tuple[float, Series]]] = [[]]
    x = 2.0
    for one in series:
        width = 34 + _LABEL_CHAR * len(_short(one.name, 48))
        if rows[-1] and x + width > _WIDTH:
            rows.append([])
            x = 2.0
        rows[-1].append((x, one))
        x += width + 10
    return rows


def _legend(rows: Sequence[Sequence[tuple[float, Series]]]) -> list[str]:
    parts = []
    for number, row in enumerate(rows):
        y = 34 + _LEGEND_ROW * number
        for x, one in row:
            if one.kind == "dots":
                parts.append(f'<circle class="dot s{one.colour}" cx="{x + 11:.1f}" cy="{y - 4}" r="3"/>')
            else:
                look = f"line s{one.colour}" + (" dashed" if one.dashed else "")
                parts.append(_line(x, y - 4, x + 22, y - 4, look + (" faint" if one.kind == "faint" else "")))
            parts.append(_text(x + 28, y, _short(one.name, 48), "label", title=one.name))
    return parts


def _short(text: str, most: int) -> str:
    """Names of relations differ at their ends: those are kept."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _text(x: float, y: float, text: str, look: str, title: str = "") -> str:
    hint = f"<title>{escape(title)}</title>" if title and title != text else ""
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{hint}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, radius: float, look: str, said: str) -> str:
    return f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(said)}</title></circle>'


def _svg(height: float, what: str, parts: Sequence[str], width: float = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(what)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
