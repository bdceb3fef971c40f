"""Versioned snapshots, MIPS indexes, shards, coordinator: the memory that a network reads."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_store.memory import Memory
    from memory_store.opening import open_memory, stop_memory
    from memory_store.stats import MemoryStats
    from memory_store.topk import TopK
    from memory_store.writer import MemoryWriter

# Threads of OpenMP that wait for the next product spin, by default for a millisecond and more, on cores that the search
# and the training step have other threads for: beside one other busy process, a step took five times as long. Read when
# torch is loaded, so all packages import this one first.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__all__ = ["Memory", "MemoryStats", "MemoryWriter", "TopK", "open_memory", "stop_memory"]

_HOME = {
    "Memory": "memory_store.memory",
    "MemoryStats": "memory_store.stats",
    "MemoryWriter": "memory_store.writer",
    "TopK": "memory_store.topk",
    "open_memory": "memory_store.opening",
    "stop_memory": "memory_store.opening",
}


def __getattr__(name: str) -> Any:
    # torch and pyarrow load when a name is used, so that `hmn --help` answers at once
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:  # what Tab completes: a name that is not loaded yet is none of the module's own
    return sorted(__all__)
