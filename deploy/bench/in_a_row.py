"""Timing calls in a row, as where they are used: the first finds sleeping cores, and the caches full of another's."""

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_a_row"]

Result = TypeVar("Result")


def in_a_row(
    call: Callable[[int], Result], at_least_s: float, *, first: int = 0, most: int | None = None
) -> tuple[float, Result]:
    """(mean seconds of a call, what the last returned) of call(first), call(first + 1), ... for so long, or `most`."""
    number, started_s = first, time.perf_counter()
    while True:
        found = call(number)
        number += 1
        taken_s, calls = time.perf_counter() - started_s, number - first
        if taken_s >= at_least_s or calls == most:
            return taken_s / calls, found
