"""Settings of the training process: threads, sums in one order, and an allocator that keeps what it freed."""

import contextlib
import ctypes
import sys

import torch
import torch.utils.deterministic

from memory_store.mips.workers import InTurn, Workers

__all__ = ["give_memory_back", "keep_freed_memory", "prepare_process", "step_workers"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
_PAD_BYTES = 128 * 2**20


def step_workers(threads: int) -> Workers | InTurn:
    """Who does the two halves of a training step: questions and facts. The threads are shared between them."""
    return Workers(2, threads=threads // 2) if threads > 1 else InTurn()


def prepare_process(threads: int) -> None:
    """Set torch's threads, make its sums repeatable, and keep freed memory for the next step.

    With several threads torch adds the gradients of rows that are read more than once in whatever order the threads
    come, unless it is told not to: then equal seeds would end in different models.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # It would also fill all new memory, against reading what was never written: a cost without a use here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set on the module type
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tell glibc to keep what this process frees; where the C library is another one, nothing is changed.

    A step of training, or a part of facts that is embedded, frees and takes tens of megabytes; by default glibc returns
    them to the system each time, and up to half of the time is spent on page faults.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(_M_ARENA_MAX, 1)  # an arena for each thread would give its memory back all the same
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TOP_PAD, _PAD_BYTES)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_memory_back() -> None:
    """Return freed memory to the system, after work that needed much more of it than a step; does nothing elsewhere."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
