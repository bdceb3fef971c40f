"""The figures of a run's report: which are drawn follows from what the run recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trainer.metrics import wilson
from trainer.report.record import Line, RunRecord
from trainer.report.svg import Series, bar_chart, count, interval_chart, line_chart, running_median

__all__ = [
    "Figure",
    "accuracy_figures",
    "learning_figures",
    "points_of",
    "relation_figure",
    "seconds_text",
    "staleness_figures",
    "time_figures",
]

STEP = "Training step"
WIDE = 860.0  # as .wide in trainer/report/style.py
_RELATIONS = 24


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its title and what it shows; the texts are plain, the chart is SVG."""

    title: str
    text: str
    svg: str


def learning_figures(run: RunRecord) -> list[Figure]:
    """Loss, candidates, accuracy, recall."""
    figures = []
    loss = points_of(run.train, "loss")
    if loss:
        figures.append(
            Figure(
                title="Loss",
                text="Cross-entropy of the gold facts within the softmax. Thin: single steps; thick: running median.",
                svg=line_chart(
                    [
                        Series(name="single steps", points=loss, kind="faint"),
                        Series(name="running median", points=running_median(loss)),
                    ],
                    x_label=STEP,
                    y_label="Loss (nats)",
                    from_zero=True,
                    log=True,
                ),
            )
        )
    if points_of(run.train, "candidates"):
        figures.append(_candidates(run))
    accuracy = _share_over_time(run, "accuracy", "Accuracy while training", "Right fact read first (share)")
    recall = _share_over_time(run, "recall", "Recall while training", "Gold fact among the K best (share)")
    return figures + [figure for figure in (accuracy, recall) if figure]


def points_of(lines: Sequence[Line], name: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have it."""
    return [(line["step"], line[name]) for line in lines if name in line]


def _share_over_time(run: RunRecord, name: str, title: str, y_label: str) -> Figure | None:
    series, texts = [], []
    asked = [line for line in run.refreshes if line.get("questions") and name in line]
    if asked:
        last = asked[-1]
        kind = "held-out questions" if last.get("held_out") else "training questions"
        texts.append(f"Line: {count(last['questions'])} {kind} at every refresh, with a 95 % interval.")
        band = [(line["step"], *wilson(round(line[name] * line["questions"]), line["questions"])) for line in asked]
        series.append(Series(name=kind, points=points_of(asked, name), band=band, colour=2))
    batches = points_of(run.train, name)
    if batches:
        texts.append("Dots: questions of training batches, searched among the vectors that were served.")
        series.insert(0, Series(name="training batch", points=batches, kind="dots", colour=5))
    if not series:
        return None
    return Figure(title=title, text=" ".join(texts), svg=line_chart(series, x_label=STEP, y_label=y_label, share=True))


def _candidates(run: RunRecord) -> Figure:
    facts = f" The full softmax would take all {count(run.facts)}." if run.facts else ""
    return Figure(
        title="Facts in the softmax",
        text=f"Candidates that the questions of a batch share: their top-K and their gold facts.{facts}",
        svg=line_chart(
            [Series(name="", points=points_of(run.train, "candidates"), colour=1)],
            x_label=STEP,
            y_label="Candidates (facts)",
            from_zero=True,
        ),
    )


def staleness_figures(run: RunRecord) -> list[Figure]:
    """What the memory still finds just before it is embedded again, and which generation serves when."""
    figures = []
    stale = [line for line in run.refreshes if "overlap" in line]
    if stale:
        figures.append(
            Figure(
                title="What the stale memory still finds",
                text="Just before every refresh, questions are encoded by the newest model and searched among the old "
                "vectors. Overlap: share of the K facts that the new vectors find which the old ones find too.",
                svg=line_chart(
                    [
                        Series(name="top-K overlap", points=points_of(stale, "overlap")),
                        Series(
                            name="right fact first: old vectors",
                            points=points_of(stale, "stale_accuracy"),
                            colour=1,
                            dashed=True,
                        ),
                        Series(
                            name="new vectors",
                            points=points_of(stale, "accuracy"),
                            colour=2,
                        ),
                    ],
                    x_label=STEP,
                    y_label="Share",
                    share=True,
                ),
            )
        )
    served = [
        (line["step"], line["timing"]["generation"]) for line in run.refreshes if "generation" in line.get("timing", {})
    ]
    if len(served) > 1:
        apart = max(later[0] - earlier[0] for earlier, later in pairwise(served))
        figures.append(
            Figure(
                title="Generation that serves",
                text=f"The memory is embedded again while the model trains; its vectors are at most {count(apart)} "
                "steps old.",
                svg=line_chart(
                    [Series(name="", points=served, kind="steps", colour=3)],
                    x_label=STEP,
                    y_label="Generation of the memory",
                    y_format=count,
                ),
            )
        )
    return figures


def time_figures(run: RunRecord) -> list[Figure]:
    """Where the time went."""
    figures = []
    if run.stages and run.seconds > 0:
        rows = [
            (stage.name, stage.seconds, f"{seconds_text(stage.seconds)}, {_whole_percent(stage.seconds / run.seconds)}")
            for stage in run.stages
        ]
        figures.append(
            Figure(
                title="Time by stage",
                text="All steps and refreshes together, as the process that reports measured them.",
                svg=bar_chart(rows, what="Time by stage"),
            )
        )
    timings = [{"step": line["step"], **line.get("timing", {})} for line in run.train]
    steps = points_of(timings, "step_s")
    if steps:
        series = [Series(name="whole step", points=steps)]
        searches = points_of(timings, "search_s")
        if searches:
            series.append(Series(name="search", points=searches, colour=1, dashed=True))
        figures.append(
            Figure(
                title="Time of a step",
                text="Mean of the steps since the point before.",
                svg=line_chart(series, x_label=STEP, y_label="Time (s)", from_zero=True),
            )
        )
    return figures


def accuracy_figures(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Accuracy against the number of facts read."""
    series = []
    for number, (split, found) in enumerate(evaluations.items()):
        asked, at_rank = found["overall"]["questions"], found.get("questions_by_rank") or ()
        within = [sum(at_rank[: k + 1]) for k in range(len(at_rank))]
        if len(within) > 1 and asked:
            series.append(
                Series(
                    name=split,
                    points=[(k + 1, right / asked) for k, right in enumerate(within)],
                    band=[(k + 1, *wilson(right, asked)) for k, right in enumerate(within)],
                    colour=number,
                    dashed=number > 0,
                )
            )
    if not series:
        return []
    chart = line_chart(series, x_label="Facts in the softmax, K", y_label="Gold fact among them (share)", share=True)
    text = (
        "How often the gold fact is among the K best, with 95 % intervals: the most that a softmax of K can get right."
    )
    return [Figure(title="Accuracy against softmax size", text=text, svg=chart)]


def relation_figure(found: Mapping[str, Any]) -> Figure | None:
    """The relations asked about most, each with its interval."""
    relations: Sequence[tuple[str, Mapping[str, Any]]] = sorted(
        found["relations"].items(), key=lambda item: (-item[1]["questions"], item[0])
    )
    if not relations:
        return None
    rows = [
        (name, score["path_accuracy"], *score["intervals"]["path_accuracy"], count(score["questions"]))
        for name, score in relations[:_RELATIONS]
    ]
    shown = "All" if len(relations) <= _RELATIONS else f"The {len(rows)} most asked of {count(len(relations))}"
    return Figure(
        title="Accuracy by relation",
        text=f"{shown} relations, with 95 % Wilson intervals; at the right the number of questions.",
        svg=interval_chart(rows, x_label="Right path read first", width=WIDE),
    )


def _whole_percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `11 min`, `1 h 3 min`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
