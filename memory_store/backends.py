"""Where the shards of a memory run: in this process, or as Ray actors. Ray loads only when it is asked for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from memory_store.calls import Call, CallFailed, ShardHandle
from memory_store.policy import Failure
from memory_store.replicas import ReplicaSet, Wait
from memory_store.shard import Shard, ShardConfig

__all__ = ["Backend", "SharedAs", "default_threads", "local_backend", "ray_backend"]


@dataclass(frozen=True)
class SharedAs:
    """The name that other jobs find the shards by, and in whose edition they are.

    require: raises ShardsReplaced, or ShardUnavailable, once that edition does not serve any more.
    """

    name: str
    token: str
    require: Callable[[], None]


class Backend(Protocol):
    """The shards of one open memory."""

    @property
    def name(self) -> str: ...

    @property
    def handles(self) -> Sequence[ShardHandle]: ...

    def close(self) -> None:
        """Stop what was started for this memory alone; shards that are shared go on."""
        ...

    def stop(self) -> None:
        """Stop the shards, whoever uses them."""
        ...


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


def _wait_in_threads(calls: Sequence[Any], timeout_s: float) -> Sequence[int]:
    done, _ = wait([call.future for call in calls], timeout_s, FIRST_COMPLETED)
    return [position for position, call in enumerate(calls) if call.future in done]


class _Copies:
    """The handles of all shards, those of one shard's copies behind one handle."""

    def __init__(self, configs: Sequence[ShardConfig], handles: Sequence[ShardHandle], waiting: Wait) -> None:
        by_shard: list[list[ShardHandle]] = [[] for _ in range(configs[0].num_shards)]
        for config, handle in zip(configs, handles, strict=True):
            by_shard[config.shard].append(handle)
        self._sets = [ReplicaSet(copies, waiting) for copies in by_shard if len(copies) > 1]
        self.handles: Sequence[ShardHandle] = self._sets or [copies[0] for copies in by_shard]

    def close(self) -> None:
        for copies in self._sets:
            copies.close()


class _LocalBackend:
    name = "local"

    def __init__(self, configs: Sequence[ShardConfig]) -> None:
        alone = len(configs) == 1
        self._threads = None if alone else ThreadPoolExecutor(len(configs), thread_name_prefix="hmn-shard")
        handles = [_LocalHandle(Shard(config), self._threads) for config in configs]
        self._copies = _Copies(configs, handles, _wait_in_threads)
        self.handles: Sequence[ShardHandle] = self._copies.handles

    def close(self) -> None:
        self._copies.close()
        self.handles = []
        if self._threads is not None:
            self._threads.shutdown(wait=True)

    def stop(self) -> None:
        self.close()


class _RayBackend:
    name = "ray"

    def __init__(self, configs: Sequence[ShardConfig], cpus: float, shared: SharedAs | None) -> None:
        from memory_store.actors import start_shards, wait_for_actors

        self._started = start_shards(configs, cpus=cpus, shared=shared)
        self._shared = shared is not None
        self._copies = _Copies(configs, self._started, wait_for_actors)
        self.handles: Sequence[ShardHandle] = self._copies.handles

    def close(self) -> None:
        if self._shared:
            self._copies.close()
        else:
            self.stop()

    def stop(self) -> None:
        self._copies.close()
        for handle in self._started:
            handle.stop()


def local_backend(configs: Sequence[ShardConfig]) -> Backend:
    """Shards as plain objects in this process."""
    return _LocalBackend(configs)


def ray_backend(configs: Sequence[ShardConfig], *, cpus: float, shared: SharedAs | None) -> Backend:
    """Shards as Ray actors; with a name, those that other processes may already have started."""
    return _RayBackend(configs, cpus, shared)
