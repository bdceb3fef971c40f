"""The memory of a process and all its children while it runs, shared pages counted once."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

__all__ = ["run_measured"]

SAMPLE_EVERY_S = 2.0  # reading the maps of a large process takes the kernel a while


def run_measured(args: Sequence[str], *, cwd: Path | None = None) -> tuple[int, int]:
    """(exit status, peak bytes) of a command run to its end; all its output goes to our stderr.

    Peak: the largest sum, over the command and everything it started, of proportional set sizes (each page divided by
    the processes that share it), sampled every two seconds. Where the kernel does not tell it, resident sizes are
    added, which counts shared pages once for each process.
    """
    peak = 0
    with subprocess.Popen(args, cwd=cwd, stdout=sys.stderr.fileno()) as process:
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            root = psutil.Process(process.pid)
            while not ended.wait(SAMPLE_EVERY_S):
                peak = max(peak, _tree_bytes(root))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            status = process.wait()
        finally:
            ended.set()
            watcher.join()
    return status, peak


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            memory = member.memory_full_info()
            total += getattr(memory, "pss", 0) or memory.rss
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue  # it ended while we looked
    return total
