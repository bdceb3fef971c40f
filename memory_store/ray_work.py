"""[ray] Runs a list of independent steps as Ray Data tasks, or on actors that keep a step of their own."""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from memory_store.errors import HmnError
from memory_store.ray_session import ensure_ray

__all__ = ["run_on_ray"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def run_on_ray(
    make_step: Callable[[], Callable[[Item], Answer]], items: Sequence[Item], workers: int | None, keeps_state: bool
) -> Generator[tuple[int, Answer]]:
    """`run_steps` on the Ray that this process joined or starts; see there."""
    ensure_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One block per item: a block is the unit of retry, and an item is minutes of work at most.
    numbers = ray.data.range(len(items), override_num_blocks=len(items))
    shipped = ray.put(list(items))
    if keeps_state:
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        size = min(len(items), workers or max(1, cpus))
        worker: Any = _Worker  # Ray accepts classes here, its annotation does not
        answers = numbers.map(worker, fn_constructor_args=(make_step, [shipped]), compute=ActorPoolStrategy(size=size))
    else:
        tasks = TaskPoolStrategy(workers)
        answers = numbers.map(lambda row: _answer(make_step(), [shipped], row), compute=tasks)
    for row in answers.iter_rows():
        if row["error"] is not None:
            raise row["error"][0]
        yield int(row["number"]), row["answer"][0]


class _Worker:
    """Keeps one step for all items that come to this process."""

    def __init__(self, make_step: Callable[[], Callable[[Any], Any]], shipped: list[Any]) -> None:
        self._make_step = make_step
        self._step: Callable[[Any], Any] | None = None
        self._shipped = shipped

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        def step(item: Any) -> Any:  # made here, so that an HmnError of making it is an answer too
            self._step = self._step or self._make_step()
            return self._step(item)

        return _answer(step, self._shipped, row)


def _answer(step: Callable[[Any], Any], shipped: list[Any], row: dict[str, Any]) -> dict[str, Any]:
    """Answers and errors travel inside lists: Ray Data would try to make columns of what it understands."""
    number = int(row["id"])
    try:
        return {"number": number, "answer": [step(ray.get(shipped[0])[number])], "error": None}
    except HmnError as error:
        return {"number": number, "answer": [None], "error": [error]}
