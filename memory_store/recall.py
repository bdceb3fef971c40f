"""What repeated searches say of an index: recall with an interval, missed softmax mass, and the effort to try next."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.topk import PartialTopK

# B queries, K slots

__all__ = ["Checked", "RecallReport", "RecallWindow", "compare", "misses", "next_effort", "pooled"]

WINDOW_QUERIES = 512
_Z = 1.96  # of a 95 % interval
_FEW = 16  # queries before effort is raised on clear evidence,
_ENOUGH = 64  # and before it is changed on less
_RAISE, _RAISE_FAR, _LOWER = 1.5, 3.0, 0.8


@dataclass(frozen=True)
class Checked:
    """One query that was searched again exactly: slots of its answer, those right, and the softmax mass missed."""

    slots: int
    right: int
    missed_mass: float


@dataclass(frozen=True, kw_only=True)
class RecallReport:
    """recall@K over the last checked queries, with a 95 % interval; missed_mass: mean share of the softmax weight of
    the exact top K that the answers lacked. effort: what the index spends per query, in its own unit. all_rows: no
    effort reached the target, so every row is searched."""

    recall: float
    low: float
    high: float
    missed_mass: float
    queries: int
    effort: int
    all_rows: bool = False


def compare(found: PartialTopK, exact: PartialTopK) -> list[Checked]:
    """Hold answers against exact ones over the same rows: of equal scores any will do, as scores are true."""
    slots_B = np.count_nonzero(exact.fact_ids_BK >= 0, axis=1)
    last_B = np.take_along_axis(exact.scores_BK, np.maximum(slots_B - 1, 0)[:, None], axis=1)
    right_B = np.count_nonzero((found.scores_BK >= last_B) & (found.fact_ids_BK >= 0), axis=1)
    highest_B = exact.scores_BK[:, :1]
    found_mass_B, exact_mass_B = _mass(found, highest_B), _mass(exact, highest_B)
    return [
        Checked(int(slots), int(min(right, slots)), max(0.0, 1.0 - float(part) / float(whole)))
        for slots, right, part, whole in zip(slots_B, right_B, found_mass_B, exact_mass_B, strict=True)
        if slots
    ]


class RecallWindow:
    """The last checked queries of an index at one effort."""

    def __init__(self) -> None:
        self._checked: deque[Checked] = deque(maxlen=WINDOW_QUERIES)

    def add(self, checked: Iterable[Checked]) -> None:
        self._checked.extend(checked)

    def clear(self) -> None:
        self._checked.clear()

    def __len__(self) -> int:
        return len(self._checked)

    def report(self, effort: int, *, all_rows: bool = False) -> RecallReport | None:
        """What the window says; None while it is empty."""
        return _report(list(self._checked), effort, all_rows)


def pooled(reports: Iterable[RecallReport]) -> RecallReport | None:
    """One report of several shards, each by the queries it checked. The mean of intervals is not too narrow a one."""
    known = list(reports)
    queries = sum(report.queries for report in known)
    if not queries:
        return None

    def mean(field: str) -> float:
        return math.fsum(getattr(report, field) * report.queries for report in known) / queries

    return RecallReport(
        recall=mean("recall"),
        low=mean("low"),
        high=mean("high"),
        missed_mass=mean("missed_mass"),
        queries=queries,
        effort=max(report.effort for report in known),
        all_rows=any(report.all_rows for report in known),
    )


def misses(report: RecallReport, target: float) -> bool:
    """Whether the recall is below the target, on clear evidence or after many queries."""
    return (report.queries >= _FEW and report.high < target) or (report.queries >= _ENOUGH and report.recall < target)


def next_effort(report: RecallReport, target: float, most: int, too_little: int) -> int:
    """The effort to search with from now on. too_little: the largest effort lately seen to miss the target, or 0.

    Raised when the target is missed, on clear evidence after a few queries; lowered, slowly, when the whole interval
    lies so far above the target that less should meet it too, and not to what was too little. Less effort is taken to
    miss more by the square of its factor: an inverted file on heavy-tailed rows was seen to miss twice as much at 0.8.
    """
    effort = report.effort
    if misses(report, target):
        far = 1 - report.recall > 3 * (1 - target)
        return min(most, max(effort + 1, math.ceil(effort * (_RAISE_FAR if far else _RAISE))))
    if report.queries >= _ENOUGH and 1 - report.low < (1 - target) * _LOWER**2:
        lower = max(1, math.floor(effort * _LOWER))
        return lower if lower > too_little else effort
    return effort


def _report(checked: list[Checked], effort: int, all_rows: bool) -> RecallReport | None:
    slots = sum(one.slots for one in checked)
    if not slots:
        return None
    recall = sum(one.right for one in checked) / slots
    low, high = _interval(recall, slots, [one.right / one.slots for one in checked])
    missed = math.fsum(one.missed_mass for one in checked) / len(checked)
    return RecallReport(
        recall=recall,
        low=low,
        high=high,
        missed_mass=missed,
        queries=len(checked),
        effort=effort,
        all_rows=all_rows,
    )


def _interval(recall: float, slots: int, share_by_query: list[float]) -> tuple[float, float]:
    """Wilson's interval for as many trials as the slots are worth: those of one query may succeed or fail together."""
    queries = len(share_by_query)
    slots_per_query = slots / queries
    alike = slots_per_query  # without any difference between queries, a query counts as one trial
    if 0 < recall < 1 and queries > 1:
        independent = recall * (1 - recall) / slots_per_query
        alike = min(max(float(np.var(share_by_query, ddof=1)) / independent, 1.0), slots_per_query)
    trials = slots / alike
    centre = (recall + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(recall * (1 - recall) / trials + _Z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _mass(answer: PartialTopK, highest_B: NDArray[np.float64]) -> NDArray[np.float64]:
    held_BK = answer.fact_ids_BK >= 0
    below_BK = np.where(held_BK, answer.scores_BK - np.where(np.isfinite(highest_B), highest_B, 0.0), -np.inf)
    mass_B: NDArray[np.float64] = np.exp(np.minimum(below_BK, 0.0)).sum(axis=1)
    return mass_B
