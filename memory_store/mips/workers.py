"""Python threads that each compute on their own cores: far steadier under load than many threads inside one product."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch

__all__ = ["InTurn", "Workers", "builders", "give_way"]

Result = TypeVar("Result")

_BUILDING = 10  # about a tenth of a core that a search wants too; more where the process itself gives way, as on Ray

_torch_settings = threading.Lock()  # torch.set_num_threads also writes a default of the whole process


class Workers:
    """`count` persistent threads, torch using `threads` in each; the caller's own setting is left as it was.

    Several callers may run tasks at once: tasks queue, so no more than `count` cores are ever busy. Tasks of a task are
    done by its own thread, one after the other.
    """

    def __init__(self, count: int, *, threads: int = 1, niceness: int = 0) -> None:
        """niceness: how far these threads give way to others, as `nice` counts it."""
        if min(count, threads) < 1:
            raise ValueError(f"expected at least one thread, found {min(count, threads)}")
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="hmn-scan")
        self._here = threading.local()
        self._niceness = niceness
        all_started = threading.Barrier(count)  # so that each of the tasks below gets a thread of its own
        with _torch_settings:
            # The number of threads belongs to each thread, but torch.set_num_threads also makes its argument the
            # default of threads that have not asked yet. Reading ours fixes it; setting it again restores that default.
            ours = torch.get_num_threads()
            for started in [self._pool.submit(self._start, threads, all_started) for _ in range(count)]:
                started.result()
            torch.set_num_threads(ours)

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(worker) for every worker number, each in a thread; waits for all, then raises what one raised."""
        self.side_by_side([partial(task, worker) for worker in range(self.count)])

    def side_by_side(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the tasks return, as many of them at once as there are workers; an error of one as in `run`."""
        if getattr(self._here, "is_worker", False):
            return [task() for task in tasks]
        running = [self._pool.submit(task) for task in tasks]
        for future in running:
            future.exception()  # wait for all before raising: a task still running may hold the caller's buffers
        return [future.result() for future in running]

    def _start(self, threads: int, all_started: threading.Barrier) -> None:
        all_started.wait()
        self._here.is_worker = True
        give_way(self._niceness)
        torch.get_num_threads()  # a thread that has not asked yet takes the default at its first product, over ours
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)  # the proofs of exactness know of tiny numbers, not of numbers that vanish


def builders(count: int) -> Workers:
    """Workers that build an index while another one serves: they give way to those that search."""
    return Workers(count, niceness=_BUILDING)


def give_way(niceness: int = _BUILDING) -> None:
    """Set the priority of this thread below that of the process, for good; where threads have none, nothing happens.

    Threads that it starts inherit it: none of them may be for searches.
    """
    if niceness and sys.platform == "linux":  # elsewhere it would be the number of a process
        with suppress(OSError):
            lower = min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + niceness, 19)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lower)


class InTurn:
    """Stands where workers may: the caller does their tasks, one after the other, with all of torch's threads."""

    count = 1

    def side_by_side(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the tasks return."""
        return [task() for task in tasks]
