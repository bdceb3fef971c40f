"""Runs a list of independent steps, in this process or on Ray; answers come with their number."""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from memory_store.errors import ConfigError

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
        from memory_store.ray_work import run_on_ray  # seconds and 100 MiB that local work does without

        yield from run_on_ray(make_step, items, workers, keeps_state)
