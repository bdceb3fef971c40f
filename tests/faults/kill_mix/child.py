"""The end of a pipe that a process of the mix holds: it takes orders, reports what it did, and dies where it is told.

Whoever kills a process from outside hits it anywhere, mostly between two steps that matter. So a process can also be
told to `kill -9` itself right before its n-th step from now: a change of the disk, or a call of those that it names.
"""

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from memory_store.disk import Disk

__all__ = ["Order", "Report", "serve"]

Order = dict[str, Any]
Report = dict[str, Any]

_CHANGES = [(Disk, name) for name in ("create", "sync", "rename", "link", "unlink", "mkdir", "sync_dir")]


class _Fuse:
    """Counts the steps that this process takes, and ends it before one of them."""

    def __init__(self) -> None:
        self.left: int | None = None

    def lay(self, owner: type, name: str) -> None:
        step = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            if self.left is not None:
                self.left -= 1
                if self.left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **options)

        setattr(owner, name, counted)


def serve(make: Callable[[], Callable[[Order], Report]], calls: Sequence[tuple[type, str]] = ()) -> None:
    """Say that this process is ready, then carry out one order a line and report it, until the pipe is closed.

    make: gets ready, and returns what carries out an order. calls: methods whose calls are steps too.
    """
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray prints, for example that a node is gone
    faulthandler.register(signal.SIGUSR1)  # says where it stands
    fuse = _Fuse()
    for owner, name in (*_CHANGES, *calls):
        fuse.lay(owner, name)
    try:
        do = make()
        _say(pipe, {"ready": True})
        for line in sys.stdin:
            order: Order = json.loads(line)
            fuse.left = order.pop("die_at", fuse.left)
            _say(pipe, do(order))
    except Exception:
        _say(pipe, {"failed": traceback.format_exc()})
        raise


def _say(pipe: TextIO, report: Report) -> None:
    pipe.write(json.dumps(report) + "\n")
    pipe.flush()
