"""Compaction in the background, beside the writes that make it due."""

import atexit
import logging
import threading
from collections.abc import Callable
from weakref import WeakMethod

from memory_store.compaction import CompactionPolicy
from memory_store.errors import GenerationConflict, HmnError
from memory_store.manifest import Manifest

__all__ = ["BackgroundCompaction"]

_log = logging.getLogger(__name__)
_running: set[threading.Thread] = set()


class BackgroundCompaction:
    """At most one compaction at a time, in a thread of its own. Thread-safe."""

    def __init__(self, policy: CompactionPolicy | None, compact: Callable[[CompactionPolicy], object], of: str) -> None:
        """policy: None for never. compact: a method that does it, if still due. of: what is compacted, for the log.

        Its owner is not held on to: one that is forgotten frees its rows at once, not when Python looks for cycles.
        """
        self._policy = policy
        self._compact = WeakMethod(compact)
        self._of = of
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start_if_due(self, now: Manifest) -> None:
        """Start one, unless the generation that a write has made needs none, or one is under way."""
        if self._policy is None or not self._policy.is_due(now):
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            # A thread of the daemon kind, as others end before Python's pools do, which it uses; see _finish.
            self._thread = threading.Thread(target=self._run, args=(self._policy,), name="hmn-compaction", daemon=True)
            _running.add(self._thread)
            self._thread.start()

    def join(self) -> None:
        """Wait until none is under way."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, policy: CompactionPolicy) -> None:
        try:
            compact = self._compact()
            if compact is not None:
                compact(policy)
        except GenerationConflict as error:  # another process compacted or replaced the same parts
            _log.info("compaction of %s gave way: %s", self._of, error)
        except (HmnError, OSError) as error:  # the memory is as it was, and a later write starts another one
            _log.warning("compaction of %s failed: %s", self._of, error)
        except RuntimeError as error:
            if threading.main_thread().is_alive():
                raise
            _log.info("compaction of %s ended with the program: %s", self._of, error)  # nothing can be loaded any more
        finally:
            _running.discard(threading.current_thread())


def _finish() -> None:
    """Python must not end under a thread that is in the middle of somebody's C++."""
    for thread in list(_running):
        thread.join()


atexit.register(_finish)
