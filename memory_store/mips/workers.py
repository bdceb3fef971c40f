"""Python threads that each compute on one core: far steadier under load than several threads inside one product."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["Workers"]

_torch_settings = threading.Lock()  # torch.set_num_threads also writes a default of the whole process


class Workers:
    """`count` persistent threads in which torch uses one intra-op thread; the caller's own setting is left as it was.

    Several callers may run tasks at once: tasks queue, so no more than `count` cores are ever busy.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"expected at least one thread, found {count}")
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="hmn-scan")
        all_started = threading.Barrier(count)  # so that each of the tasks below gets a thread of its own
        with _torch_settings:
            # The number of threads belongs to each thread, but torch.set_num_threads also makes its argument the
            # default of threads that have not asked yet. Reading ours fixes it; setting it again restores that default.
            ours = torch.get_num_threads()
            for started in [self._pool.submit(_compute_on_one_core, all_started) for _ in range(count)]:
                started.result()
            torch.set_num_threads(ours)

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(worker) for every worker number, each in a thread; waits for all, then raises what one raised."""
        running = [self._pool.submit(task, worker) for worker in range(self.count)]
        for future in running:
            future.exception()  # wait for all before raising: a task still running may hold the caller's buffers
        for future in running:
            future.result()


def _compute_on_one_core(all_started: threading.Barrier) -> None:
    all_started.wait()
    torch.get_num_threads()  # a thread that has not asked yet takes the default at its first product, over our 1
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)  # the proofs of exactness know of tiny numbers, not of numbers that vanish
