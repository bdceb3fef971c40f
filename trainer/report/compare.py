"""Several runs side by side: what differs in their settings, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_store.errors import ConfigError
from memory_store.notebook import html_table
from trainer.metrics import wilson
from trainer.report.figures import STEP, Figure, points_of, seconds_text
from trainer.report.page import document, figures, section, table, value_text
from trainer.report.record import SPLITS, RunRecord, read_run
from trainer.report.svg import Series, count, interval_chart, line_chart, percent, running_median

__all__ = ["Comparison", "RunSummary", "compare_runs"]

_COLOURS = 6
_RELATIONS = 16
_FEWEST_QUESTIONS = 10  # of a relation whose accuracy is compared


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a line; None for what it did not record. The split is that of the comparison.

    overlap: median of what a stale memory still finds (trainer.watch). seconds: in steps and refreshes, step_s: in one
    step.
    """

    name: str
    run: str
    steps: int
    loss: float | None
    questions: int | None
    path_accuracy: float | None
    interval: tuple[float, float] | None
    recall: float | None
    k: int | None
    candidates: int | None
    overlap: float | None
    seconds: float | None
    step_s: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """runs: in the order asked. differences: the settings that are not the same in all, with the value of each run."""

    split: str | None
    runs: Sequence[RunSummary]
    differences: Mapping[str, Sequence[Any]]
    records: Sequence[RunRecord]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the records."""
        return {
            "split": self.split,
            "runs": [asdict(run) for run in self.runs],
            "differences": {name: list(values) for name, values in self.differences.items()},
        }

    def table(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """Columns and rows for a person; the first column is the name."""
        accuracy = f"right, {self.split}" if self.split else "right"
        columns = ("run", "steps", "loss", accuracy, "95 % interval", "recall", "softmax", "stale", "time", "step")
        return columns, [_row(run) for run in self.runs]

    def settings(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """The same of the settings that differ."""
        rows = [(name, *(value_text(value) for value in values)) for name, values in self.differences.items()]
        return ("setting", *(run.name for run in self.runs)), rows

    def __repr__(self) -> str:
        return f"Comparison({', '.join(run.name for run in self.runs)}, split={self.split!r})"

    def _repr_html_(self) -> str:
        return html_table("runs", *self.table()) + html_table("settings that differ", *self.settings())

    def page(self) -> str:
        """The comparison as one HTML page that needs nothing else."""
        return _page(self)


def compare_runs(run_dirs: Sequence[str | Path], split: str | None = None) -> Comparison:
    """Compare what runs recorded.

    split: whose evaluations; by default the one that most runs have. Raises ConfigError for fewer than two runs, one
    named twice, or a folder without a run; CorruptFile.
    """
    folders = [Path(run_dir) for run_dir in run_dirs]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError(f"expected two or more different runs to compare, found {', '.join(map(str, folders)) or 0}")
    records = [read_run(folder) for folder in folders]
    chosen: str | None = split or max(SPLITS, key=lambda name: sum(name in record.evaluations for record in records))
    if not any(chosen in record.evaluations for record in records):
        if split:
            raise ConfigError(
                f"expected an evaluation of split {split!r}, found none; run `hmn evaluate --split {split}`"
            )
        chosen = None
    names = _names(folders)
    return Comparison(
        split=chosen,
        runs=[
            _summary(name, folder, record, chosen) for name, folder, record in zip(names, folders, records, strict=True)
        ],
        differences=_differences(records),
        records=records,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """As short as tells them apart: the ends of their paths."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(
        length for length in range(1, 1 + max(map(len, parts))) if len({one[-length:] for one in parts}) == len(parts)
    )
    return ["/".join(one[-length:]) for one in parts]


def _summary(name: str, folder: Path, record: RunRecord, split: str | None) -> RunSummary:
    found = record.evaluations.get(split) if split else None
    overall = found["overall"] if found else None
    overlaps = sorted(line["overlap"] for line in record.refreshes if "overlap" in line)
    losses = [value for _, value in running_median(points_of(record.train, "loss"))]
    candidates = [value for _, value in points_of(record.train, "candidates")]
    return RunSummary(
        name=name,
        run=str(folder),
        steps=record.steps,
        loss=losses[-1] if losses else None,
        questions=overall["questions"] if overall else None,
        path_accuracy=overall["path_accuracy"] if overall else None,
        interval=tuple(overall["intervals"]["path_accuracy"]) if overall else None,
        recall=overall["recall"] if overall else None,
        k=found["k"] if found else None,
        candidates=int(candidates[-1]) if candidates else None,
        overlap=overlaps[len(overlaps) // 2] if overlaps else None,
        seconds=record.seconds or None,
        step_s=_step_s(record),
    )


def _step_s(record: RunRecord) -> float | None:
    """The median over the lines: a run that shared its machine for a while is not called slow."""
    steps = sorted(line["timing"]["step_s"] for line in record.train if "step_s" in line.get("timing", {}))
    return steps[len(steps) // 2] if steps else None


def _differences(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(name for record in records for name in record.config if name != "run_dir"))
    found = {name: [record.config.get(name) for record in records] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _row(run: RunSummary) -> tuple[str, ...]:
    return (
        run.name,
        count(run.steps),
        _or_dash(run.loss, lambda loss: f"{loss:.3f}"),
        _or_dash(run.path_accuracy, percent),
        f"{100 * run.interval[0]:.1f} – {100 * run.interval[1]:.1f} %" if run.interval else "–",
        _or_dash(run.recall, percent),
        _or_dash(run.candidates, count),
        _or_dash(run.overlap, percent),
        _or_dash(run.seconds, seconds_text),
        _or_dash(run.step_s, seconds_text),
    )


def _or_dash(value: float | None, shown: Any) -> str:
    return "–" if value is None else str(shown(value))


# The page


def _page(found: Comparison) -> str:
    columns, rows = found.table()
    names = [run.name for run in found.runs]
    overview = table(columns, rows, numbers=range(1, len(columns)))
    note = (
        "<p>loss: running median of the last steps. recall: gold fact among the K best. softmax: candidates of a step. "
        "stale: median share of the top-K that the old vectors still found at a refresh. time: in steps and "
        "refreshes, without start, ingest and checkpoints. step: median time.</p>"
    )
    settings = table(*found.settings()) if found.differences else "<p>All settings are the same.</p>"
    header = f'<header><p class="kind">Comparison</p><h1>{len(names)} runs</h1></header>'
    return document(
        "Comparison of runs",
        [
            header,
            overview,
            f'<div class="small">{note}</div>',
            section("Settings that differ", settings),
            section("Accuracy", figures(_accuracy(found, names)) + _relations(found, names)),
            section("While training", figures(_curves(found.records, names))),
            "<footer>Every run has a report of its own: report.html in its folder.</footer>",
        ],
    )


def _accuracy(found: Comparison, names: Sequence[str]) -> list[Figure]:
    rows = [
        (run.name, run.path_accuracy, *run.interval, f"K = {run.k}, {count(run.questions or 0)} questions")
        for run in found.runs
        if run.path_accuracy is not None and run.interval is not None
    ]
    if not rows:
        return []
    drawn = [
        Figure(
            title=f"Right fact read first, {found.split}",
            text="With 95 % Wilson intervals.",
            svg=interval_chart(rows, x_label="Right path read first"),
        )
    ]
    series = []
    for number, (record, name) in enumerate(zip(found.records, names, strict=True)):
        evaluated = record.evaluations.get(found.split or "", {})
        at_rank, asked = evaluated.get("questions_by_rank", ()), evaluated.get("overall", {}).get("questions")
        if len(at_rank) > 1 and asked:
            within = [(k + 1, sum(at_rank[: k + 1])) for k in range(len(at_rank))]
            band = [(k, *wilson(right, asked)) for k, right in within]
            series.append(_of_run(number, name, [(k, right / asked) for k, right in within], band))
    if series:
        drawn.append(
            Figure(
                title="Accuracy against softmax size",
                text="How often the gold fact is among the K best, with 95 % intervals.",
                svg=line_chart(series, x_label="Facts in the softmax, K", y_label="Share of questions", share=True),
            )
        )
    return drawn


def _relations(found: Comparison, names: Sequence[str]) -> str:
    """Where the runs are furthest apart, in units of what chance would make of so many questions."""
    evaluated = [record.evaluations.get(found.split or "", {}).get("relations", {}) for record in found.records]
    if sum(map(bool, evaluated)) < 2:
        return ""
    apart = []
    for relation in dict.fromkeys(name for relations in evaluated for name in relations):
        scores = [relations[relation] for relations in evaluated if relation in relations]
        asked = min(score["questions"] for score in scores)
        shares = [score["path_accuracy"] for score in scores]
        if len(scores) > 1 and asked >= _FEWEST_QUESTIONS and max(shares) > min(shares):
            mean = sum(shares) / len(shares)
            apart.append(((max(shares) - min(shares)) * math.sqrt(asked / (mean * (1 - mean))), relation, asked))
    if not apart:
        return ""
    rows = [
        (relation, count(asked), *(_or_dash(one.get(relation, {}).get("path_accuracy"), percent) for one in evaluated))
        for _, relation, asked in sorted(apart, key=lambda item: (-item[0], item[1]))[:_RELATIONS]
    ]
    listed = table(("relation", "questions", *names), rows, numbers=range(1, 2 + len(names)))
    return f'<h3 class="apart">Relations on which they differ most</h3>{listed}'


def _curves(records: Sequence[RunRecord], names: Sequence[str]) -> list[Figure]:
    loss = [running_median(points_of(record.train, "loss")) for record in records]
    timings = [[{"step": line["step"], **line.get("timing", {})} for line in record.train] for record in records]
    return [
        figure
        for figure in (
            _overlay("Loss", "Running median of 7.", loss, names, y_label="Loss (nats)", from_zero=True, log=True),
            _overlay(
                "Accuracy while training",
                "A sample of questions at every refresh.",
                [points_of(record.refreshes, "accuracy") for record in records],
                names,
                y_label="Right fact read first (share)",
                share=True,
            ),
            _overlay(
                "What the stale memory still finds",
                "Share of the top-K that the vectors before a refresh find as well as those after it.",
                [points_of(record.refreshes, "overlap") for record in records],
                names,
                y_label="Overlap of the top-K (share)",
                share=True,
            ),
            _overlay(
                "Facts in the softmax",
                "Candidates that the questions of a batch share.",
                [points_of(record.train, "candidates") for record in records],
                names,
                y_label="Candidates (facts)",
                from_zero=True,
            ),
            _overlay(
                "Time of a step",
                "Mean of the steps since the point before.",
                [points_of(one, "step_s") for one in timings],
                names,
                y_label="Time (s)",
                from_zero=True,
            ),
        )
        if figure
    ]


def _overlay(
    title: str, text: str, points: Sequence[Sequence[tuple[float, float]]], names: Sequence[str], **chart: Any
) -> Figure | None:
    series = [_of_run(number, name, one) for number, (name, one) in enumerate(zip(names, points, strict=True)) if one]
    return Figure(title=title, text=text, svg=line_chart(series, x_label=STEP, **chart)) if series else None


def _of_run(
    number: int, name: str, points: Sequence[tuple[float, float]], band: Sequence[tuple[float, float, float]] = ()
) -> Series:
    return Series(
        name=name, points=points, band=band, colour=number % _COLOURS, dashed=number % 2 == 1 or number >= _COLOURS
    )
