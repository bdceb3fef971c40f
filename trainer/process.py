"""Settings of the training process: threads, and an allocator that keeps what it freed."""

import contextlib
import ctypes
import sys

import torch

__all__ = ["prepare_process"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_PAD_BYTES = 128 * 2**20


def prepare_process(threads: int) -> None:
    """Set torch's threads and tell glibc to keep freed memory for the next step.

    A step frees and takes tens of megabytes; by default glibc returns them to the system each time and half of the
    step is spent on page faults. Where the C library is another one, nothing is changed.
    """
    torch.set_num_threads(threads)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TOP_PAD, _PAD_BYTES)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
