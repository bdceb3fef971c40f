"""[ray] Runs a list of independent steps, in this process or as Ray Data tasks; answers come with their number."""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
import ray.data

from memory_store.errors import ConfigError, HmnError
from memory_store.ray_session import ensure_ray

__all__ = ["BACKENDS", "run_steps"]

BACKENDS = ("local", "ray")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def run_steps(
    step: Callable[[Item], Answer], items: Sequence[Item], *, backend: str, workers: int | None = None
) -> Generator[tuple[int, Answer]]:
    """Call `step` with every item and yield (number of the item, answer) as they come.

    "local" keeps the order of the items; "ray" does not, and may call a step twice when a worker dies, so steps are
    idempotent. workers: how many at once on Ray; None leaves it to the cluster. An HmnError of a step is raised here
    as it was there. The caller must exhaust or close the iterator.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"expected at least one worker, found {workers}")
    if backend == "local":
        yield from ((number, step(item)) for number, item in enumerate(items))
    elif items:
        yield from _run_on_ray(step, items, workers)


def _run_on_ray(
    step: Callable[[Item], Answer], items: Sequence[Item], workers: int | None
) -> Generator[tuple[int, Answer]]:
    ensure_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shipped = ray.put(list(items))

    def call(row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["id"])
        try:
            return {"number": number, "answer": [step(ray.get(shipped)[number])], "error": None}
        except HmnError as error:  # raised as itself by the driver; any other exception is a bug and stays loud
            return {"number": number, "answer": [None], "error": [error]}

    # One block per item: a block is the unit of retry, and an item is minutes of work at most.
    dataset = ray.data.range(len(items), override_num_blocks=len(items)).map(call, concurrency=workers)
    for row in dataset.iter_rows():
        if row["error"] is not None:
            raise row["error"][0]
        yield int(row["number"]), row["answer"][0]
