"""The page of `hmn bench paper`: tables with intervals, and two figures of how training converges."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bench.paper_cases import CASES, POOR, REFERENCE, Case
from deploy.bench.paper_larger import LARGER, larger_rows
from deploy.bench.paper_runs import TEST_K, TIMING, unpacked
from trainer.metrics import wilson
from trainer.report.svg import Series, line_chart, standalone

# Q questions of the test split, S seeds

__all__ = ["Found", "convergence_figures", "paired", "results_page", "write_page"]

Line = dict[str, Any]

_BY_NAME = {case.name: case for case in CASES}
_SEARCHED = [case for case in CASES if case.group == "search"]


class Found:
    """The results that are there, by case, seed and index."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = {(line["case"], line["seed"]): line for line in lines if line["case"] not in (TIMING, LARGER)}
        self.timing = next((line for line in lines if line["case"] == TIMING), None)
        self.larger = [line for line in lines if line["case"] == LARGER]
        self.any = next(iter(self._lines.values()), None)

    def seeds(self, case: str) -> list[int]:
        return sorted(seed for name, seed in self._lines if name == case)

    def lines(self, case: str) -> list[Line]:
        return [self._lines[case, seed] for seed in self.seeds(case)]

    def right(self, case: str, index: str, seeds: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Which questions [S, Q] each seed's run answered rightly."""
        lines = [self._lines[case, seed] for seed in (self.seeds(case) if seeds is None else seeds)]
        return np.stack([unpacked(line["tests"][index]["right"], line["questions"]) for line in lines])

    def accuracy(self, case: str, index: str = "exact") -> str:
        """`85.1 % (84.4 to 85.8)`: the mean over the seeds, Wilson's interval for as many questions as there are."""
        if not self._has(case, index):
            return "–"
        right_SQ = self.right(case, index)
        questions = right_SQ.shape[1]
        low, high = wilson(round(float(right_SQ.mean()) * questions), questions)
        return f"{100 * right_SQ.mean():.2f} % ({100 * low:.1f} to {100 * high:.1f})"

    def _has(self, case: str, index: str) -> bool:
        return any(index in line["tests"] for line in self.lines(case))

    def against(self, case: str, index: str = "exact", *, other: str = REFERENCE, other_index: str = "exact") -> str:
        """The difference to another run, in points, question by question, of the seeds that both have."""
        seeds = sorted(set(self.seeds(case)) & set(self.seeds(other)))
        if not seeds or not self._has(case, index) or (case, index) == (other, other_index):
            return "–"
        difference, low, high = paired(self.right(case, index, seeds), self.right(other, other_index, seeds))
        return f"{100 * difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"

    def mean(self, case: str, name: str) -> float | None:
        values = [line[name] for line in self.lines(case)]
        return float(np.mean(values)) if values else None

    def recall(self, case: str, index: str) -> str:
        """Share of the exact K best facts of the test questions that an index finds."""
        values = [line["tests"][index]["recall_of_exact"] for line in self.lines(case)]
        return f"{np.mean(values):.3f}" if values else "–"

    def way(self, case: str, name: str, text: str) -> str:
        """One figure of the timing."""
        return text.format(self.timing["ways"][case][name]) if self.timing and case in self.timing["ways"] else "–"


def paired(one_SQ: NDArray[np.bool_], other_SQ: NDArray[np.bool_]) -> tuple[float, float, float]:
    """(mean difference, low, high): the 95 % interval over the questions, each the mean of its differences by seed.

    Much narrower than the intervals of two accuracies apart: most questions are right, or wrong, in both.
    """
    difference_Q = (one_SQ.astype(np.float64) - other_SQ).mean(axis=0)
    half = 1.96 * float(difference_Q.std(ddof=1)) / math.sqrt(len(difference_Q)) if len(difference_Q) > 1 else 1.0
    mean = float(difference_Q.mean())
    return mean, mean - half, mean + half


def convergence_figures(found: Found) -> dict[str, str]:
    """File name -> SVG: held-out accuracy by training step, with exact search and with approximate search."""
    exact = [case.name for case in CASES if case.group == "softmax"]
    approximate = [REFERENCE, *(case.name for case in _SEARCHED)]
    drawn = {
        "convergence-exact.svg": _curves(found, exact),
        "convergence-approximate.svg": _curves(found, approximate),
    }
    return {
        name: standalone(
            line_chart(series, x_label="Training step", y_label="Held-out questions answered rightly", share=True)
        )
        for name, series in drawn.items()
        if series
    }


def _curves(found: Found, cases: Sequence[str]) -> list[Series]:
    series = []
    for colour, name in enumerate(cases):
        lines = found.lines(name)
        if not lines:
            continue
        steps = [step for step, _ in lines[0]["curve"]]
        mean = np.mean([[share for _, share in line["curve"]] for line in lines], axis=0)
        band = []
        if name == "full":  # one band shows how wide they all are
            asked = int(lines[0]["sampled"])
            band = [(x, *wilson(round(y * asked), asked)) for x, y in zip(steps, mean, strict=True)]
        shown = f"{_BY_NAME[name].shown}, exact" if name == REFERENCE and cases[1] != "full" else _BY_NAME[name].shown
        series.append(
            Series(
                name=shown,
                points=list(zip(steps, mean.tolist(), strict=True)),
                colour=colour % 6,
                dashed=name == "full",
                band=band,
            )
        )
    return series


def results_page(found: Found, source: str, steps: int, command: str) -> str:
    """The tables and where the figures lie, as Markdown."""
    assert found.any is not None
    of_softmax = [case for case in CASES if case.group in ("softmax", "encoder")]
    seeds = max(len(found.seeds(case.name)) for case in CASES)
    parts = [
        "# The paper's experiments: results\n",
        f"Made by `{command}`; [what they mean](../paper.md). {source}: {found.any['facts']:,} facts, "
        f"{found.any['questions']:,} validation questions; {steps} training steps of 128 questions, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} at most.\n",
        "Accuracy: share of the questions whose gold fact is read first, with its 95 % interval. Differences are in "
        "points, question by question, with their 95 % interval; what another seed would change comes on top. Softmax: "
        "mean number of facts under the softmax of a training batch. Step: processor time of a training step against "
        "K = 10 with exact search, all ways in turn in one process.\n",
        "## Full softmax and K-MIPS, exact search\n",
        _table(
            ("", "seeds", "accuracy", "against K = 10", "softmax", "step"),
            [
                (
                    case.shown,
                    str(len(found.seeds(case.name))),
                    found.accuracy(case.name),
                    found.against(case.name),
                    _number(found.mean(case.name, "softmax_size")),
                    found.way(case.name, "ratio", "× {:.2f}"),
                )
                for case in of_softmax
            ],
        ),
        "![Convergence by K](convergence-exact.svg)\n" if found.seeds(REFERENCE) else "",
        "## Approximate search\n",
        f"Recall: share of the {TEST_K} best facts that the index finds for the test questions, after training with "
        "it. Search: its processor time for a batch, against that of the exact index.\n",
        _table(
            (
                "index",
                "trained and tested with it",
                "trained with it, tested exactly",
                "trained exactly, tested with it",
                "against exact throughout",
                "recall",
                "search",
            ),
            [
                (
                    f"`{index}`",
                    found.accuracy(name, index),
                    found.accuracy(name, "exact"),
                    found.accuracy(REFERENCE, index),
                    found.against(name, index),
                    found.recall(name, index),
                    _search_ratio(found, name),
                )
                for name, index in [*((case.name, case.index) for case in _SEARCHED), ("poor", POOR)]
            ],
        ),
        "![Convergence by index](convergence-approximate.svg)\n" if found.seeds(REFERENCE) else "",
        "## Facts added at random, against the bias of a poor index\n",
        f"All trained with `{POOR}`.\n",
        _table(
            (
                "added in training",
                "tested exactly",
                "against nothing added",
                "tested with the index",
                "softmax",
                "step",
            ),
            [_bias_row(found, case) for case in CASES if case.group == "bias"],
        ),
    ]
    if found.timing is not None:
        parts.append("## Processor time of a step\n")
        parts.append(
            _table(
                ("", "step, ms", "of it search, ms", "against K = 10"),
                [
                    (
                        f"{_BY_NAME[name].shown}",
                        f"{way['step_cpu_ms']:.0f}",
                        f"{way['search_cpu_ms']:.1f}",
                        f"× {way['ratio']:.2f}",
                    )
                    for name, way in found.timing["ways"].items()
                ],
            )
        )
        parts.append(f"{found.timing['threads']} thread(s), {found.timing['repeats']} turns.\n")
    if found.larger:
        parts.append("## The same model over more facts\n")
        parts.append(
            _table(
                ("facts", "index", "step, ms", "against exact", "of it search, ms", "against exact", "recall@10"),
                larger_rows(found.larger, {name: case.shown for name, case in _BY_NAME.items()}),
            )
        )
        parts.append(
            "Processor time, by `--larger FILE` for each file of facts: steps of the trained model over the memory of "
            "that file. Recall: of the exact ten best facts of validation questions.\n"
        )
    return "\n".join(part for part in parts if part)


def _bias_row(found: Found, case: Case) -> tuple[str, ...]:
    return (
        case.shown,
        found.accuracy(case.name),
        found.against(case.name, other="poor"),
        found.accuracy(case.name, POOR),
        _number(found.mean(case.name, "softmax_size")),
        found.way(case.name, "ratio", "× {:.2f}"),
    )


def _search_ratio(found: Found, case: str) -> str:
    if found.timing is None:
        return "–"
    ways = found.timing["ways"]
    return f"× {ways[case]['search_cpu_ms'] / ways[REFERENCE]['search_cpu_ms']:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_page(lines: Sequence[Line], folder: Path, source: str, steps: int, command: str) -> Path | None:
    """Write results.md and the figures; None where no case is finished."""
    found = Found(lines)
    if found.any is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in convergence_figures(found).items():
        (folder / name).write_text(svg, encoding="utf-8")
    page = folder / "results.md"
    page.write_text(results_page(found, source, steps, command), encoding="utf-8")
    return page
