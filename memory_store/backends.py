"""Where the shards of a memory run: in this process, or as Ray actors. Ray loads only when it is asked for."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from memory_store.coordinator import Call, CallFailed, ShardHandle
from memory_store.policy import Failure
from memory_store.shard import Shard, ShardConfig

__all__ = ["Backend", "default_threads", "local_backend", "ray_backend"]


class Backend(Protocol):
    """The shards of one open memory."""

    @property
    def name(self) -> str: ...

    @property
    def handles(self) -> Sequence[ShardHandle]: ...

    def close(self) -> None: ...


def default_threads(shards: int) -> int:
    """Intra-op threads per shard when all shards share this process and its processors."""
    return max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // shards)


@dataclass(frozen=True)
class _Done:
    answer: Any

    def result(self, timeout_s: float) -> Any:
        return self.answer


@dataclass(frozen=True)
class _InThread:
    future: "Future[Any]"

    def result(self, timeout_s: float) -> Any:
        try:
            return self.future.result(timeout_s)
        except TimeoutError as late:
            if self.future.done():  # the shard itself raised a TimeoutError: it is the answer
                raise
            raise CallFailed(Failure.TIMED_OUT, f"no reply within {timeout_s:.3g} s") from late


class _LocalHandle:
    """A shard in this process: called directly when it is alone, in a thread of its own beside others."""

    def __init__(self, shard: Shard, threads: ThreadPoolExecutor | None) -> None:
        self._shard = shard
        self._threads = threads

    def start(self, method: str, *args: Any) -> Call:
        bound = getattr(self._shard, method)
        if self._threads is None:
            return _Done(bound(*args))
        return _InThread(self._threads.submit(bound, *args))

    def replace(self) -> None:
        self._shard = Shard(self._shard.config)


class _LocalBackend:
    name = "local"

    def __init__(self, configs: Sequence[ShardConfig]) -> None:
        alone = len(configs) == 1
        self._threads = None if alone else ThreadPoolExecutor(len(configs), thread_name_prefix="hmn-shard")
        self.handles: Sequence[ShardHandle] = [_LocalHandle(Shard(config), self._threads) for config in configs]

    def close(self) -> None:
        self.handles = []
        if self._threads is not None:
            self._threads.shutdown(wait=True)


class _RayBackend:
    name = "ray"

    def __init__(self, configs: Sequence[ShardConfig], shared_name: str | None, cpus: float) -> None:
        from memory_store.actors import start_shards

        self._started = start_shards(configs, name=shared_name, cpus=cpus)
        self._shared = shared_name is not None
        self.handles: Sequence[ShardHandle] = self._started

    def close(self) -> None:
        if not self._shared:
            for handle in self._started:
                handle.stop()


def local_backend(configs: Sequence[ShardConfig]) -> Backend:
    """Shards as plain objects in this process."""
    return _LocalBackend(configs)


def ray_backend(configs: Sequence[ShardConfig], *, name: str | None, cpus: float) -> Backend:
    """Shards as Ray actors; with a name, those that other processes may already have started."""
    return _RayBackend(configs, name, cpus)
