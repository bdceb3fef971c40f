"""[ray] Runs a list of independent steps, in this process or as Ray Data tasks; answers come with their number."""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from memory_store.errors import ConfigError, HmnError
from memory_store.ray_session import ensure_ray

__all__ = ["BACKENDS", "check_backend", "run_steps"]

BACKENDS = ("local", "ray")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def check_backend(backend: str, workers: int | None, urls: Sequence[str]) -> None:
    """ConfigError for an unknown backend, fewer than one worker, or URLs that other processes cannot see."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"expected at least one worker, found {workers}")
    private = [url for url in urls if url.startswith("memory://")]
    if backend == "ray" and private:
        raise ConfigError(f"{private[0]} is in the memory of this process, which Ray's workers cannot see; use local")


def run_steps(
    make_step: Callable[[], Callable[[Item], Answer]],
    items: Sequence[Item],
    *,
    backend: str,
    workers: int | None = None,
    keeps_state: bool = False,
) -> Generator[tuple[int, Answer]]:
    """Make a step, call it with every item, and yield (number of the item, answer) as they come.

    "local" keeps the order of the items; "ray" does not, and may call a step twice when a worker dies, so steps are
    idempotent. workers: how many at once on Ray; None leaves it to the cluster. keeps_state: making a step is costly,
    so that each worker makes one and keeps it. An HmnError of a step is raised here as it was there; any other
    exception is a bug and stays loud. The caller exhausts or closes the generator.
    """
    if not items:
        return
    if backend == "local":
        step = make_step()
        yield from ((number, step(item)) for number, item in enumerate(items))
    else:
        yield from _run_on_ray(make_step, items, workers, keeps_state)


def _run_on_ray(
    make_step: Callable[[], Callable[[Item], Answer]], items: Sequence[Item], workers: int | None, keeps_state: bool
) -> Generator[tuple[int, Answer]]:
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
