"""One training at a time in a run directory: a lock that the system takes back with its process, however that ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memory_store.errors import ConfigError

__all__ = ["training_alone"]

LOCK = "train.lock"  # stays in the directory: who deletes a lock file takes it from somebody who waits


@contextmanager
def training_alone(run_dir: Path) -> Iterator[None]:
    """Make the directory if need be, and train in it. Raises ConfigError, which names the process that does already.

    Where the file system knows no locks, nothing is refused.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"expected nobody else to train in {run_dir}, found {lock.read().strip() or 'another process'}; wait "
                "for its end, end it (`kill` with its number) if the cluster that it trains with is gone, or name "
                "another run_dir"
            ) from None
        except OSError:
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield
