"""The memory of a process and all its children while it runs, shared pages counted once."""

import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

__all__ = ["FamilyMemory", "OwnMemory", "run_measured"]

SAMPLE_EVERY_S = 2.0  # reading the maps of a large process takes the kernel a while
MOST_SHARE = 0.02  # of a processor that sampling may take


def run_measured(args: Sequence[str], *, cwd: Path | None = None, every_s: float = SAMPLE_EVERY_S) -> tuple[int, int]:
    """(exit status, peak bytes) of a command run to its end; all its output goes to our stderr.

    Peak: the largest sum, over the command and everything it started, of proportional set sizes (each page divided by
    the processes that share it), sampled every `every_s` seconds. Where the kernel does not tell it, resident sizes are
    added, which counts shared pages once for each process.
    """
    with (
        subprocess.Popen(args, cwd=cwd, stdout=sys.stderr.fileno()) as process,
        FamilyMemory(process.pid, every_s) as memory,
    ):
        status = process.wait()
    return status, memory.peak_bytes


class _Peak(ABC):
    """The largest of what `_bytes` says while the block runs, asked every `every_s` seconds by a thread.

    Less often where asking is dear: the kernel walks all pages of a process, and what is measured waits for it.
    """

    def __init__(self, every_s: float) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._ended.clear()
        self.peak_bytes = self._bytes()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._watcher.join()
        self.peak_bytes = max(self.peak_bytes, self._bytes())

    def _watch(self) -> None:
        asked_s = 0.0
        while not self._ended.wait(max(self._every_s, asked_s / MOST_SHARE)):
            began_s = time.thread_time()
            self.peak_bytes = max(self.peak_bytes, self._bytes())
            asked_s = time.thread_time() - began_s

    @abstractmethod
    def _bytes(self) -> int: ...


class FamilyMemory(_Peak):
    """The most memory that a process and everything it started held together while the block ran.

    pid: this process if None. Proportional set sizes, as `run_measured` adds them: files that they map are included.
    """

    def __init__(self, pid: int | None = None, every_s: float = SAMPLE_EVERY_S) -> None:
        super().__init__(every_s)
        self._pid = pid

    def _bytes(self) -> int:
        try:
            return _tree_bytes(psutil.Process(self._pid))
        except psutil.NoSuchProcess:
            return 0


class OwnMemory(_Peak):
    """The most memory this process held while the block ran, apart from files that it maps; sampled often.

    Mapped pages are the system's: it drops them when memory is short, and reads them again. Linux only; 0 elsewhere.
    """

    def __init__(self, every_s: float = 0.02) -> None:
        super().__init__(every_s)

    def _bytes(self) -> int:
        return _anonymous_bytes()


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = status.read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


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
