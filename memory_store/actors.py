"""[ray] Thin actor shells over shard.py, and the coordinator's handles to them: the ray backend of a memory."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]  # made at run time
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from memory_store.backends import SharedAs
from memory_store.calls import Call, CallFailed
from memory_store.code_version import code_version
from memory_store.draining import drained_nodes
from memory_store.errors import ConfigError, HmnError, ShardUnavailable, VersionMismatch
from memory_store.gpus import NO_GPUS, reserve_gpus
from memory_store.policy import Failure
from memory_store.ray_session import ensure_ray
from memory_store.shard import FoundFacts, FoundPlaces, FoundVectors, Shard, ShardConfig, ShardStats
from memory_store.storage import redact
from memory_store.topk import PartialTopK

__all__ = [
    "NAMESPACE",
    "RayShardHandle",
    "ShardActor",
    "check_name",
    "edition_of",
    "named_shards",
    "start_shards",
    "wait_for_actors",
]

NAMESPACE = "hmn"
PREFIX = "hmn:"  # of the names of shard actors
UNSHARED = "~"  # after it, for shards of a memory without a name
EDITION = "-edition-"  # before the token at the end of a shared one's
START_DEADLINE_S = 120.0
GPUS_FREE_S = 3.0
_LOOK_S = 0.1  # how often to look whether the process that a call waits for is alive


# Each kind of call has its own thread: a health check is answered during a search, a search during a load.
@ray.remote(concurrency_groups={"search": 1, "rows": 1, "load": 1, "health": 1})  # type: ignore[call-overload]  # untyped
class ShardActor:
    """One shard in a process of its own."""

    def __init__(self, config: ShardConfig) -> None:
        torch.set_num_threads(config.threads)  # Ray sets OMP_NUM_THREADS to 1; the shard's own setting counts
        if not _own_gpus():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows those of others to whoever has reserved none
        self._shard = Shard(config)

    @ray.method(concurrency_group="health")
    def stamp(self) -> dict[str, Any]:
        """What a process that finds this shard must agree with; plain values, which code of any version can read."""
        return {"code": code_version(), **asdict(self._shard.config)}

    @ray.method(concurrency_group="health")
    def describe(self) -> dict[str, Any]:
        """The stamp, and what this process holds now; for `hmn cluster status`."""
        held, gpus = self._shard.describe(), ", ".join(_own_gpus())
        process = {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "resident_bytes": psutil.Process().memory_info().rss,
            "gpus": gpus and (gpus if held["device"] != "cpu" else f"{gpus} (not used)"),
        }
        return {"code": code_version(), **asdict(self._shard.config), **process, **held}

    @ray.method(concurrency_group="load")
    def load(self, generation: int) -> int:
        return self._shard.load(generation)

    @ray.method(concurrency_group="load")
    def release(self, keep_generation: int) -> None:
        self._shard.release(keep_generation)

    @ray.method(concurrency_group="search")
    def search(self, generation: int, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        return self._shard.search(generation, queries_BD, k)

    @ray.method(concurrency_group="rows")
    def fetch(self, generation: int, fact_ids_C: NDArray[np.int64], columns: Sequence[str] | None) -> FoundFacts:
        return self._shard.fetch(generation, fact_ids_C, columns)

    @ray.method(concurrency_group="rows")
    def vectors(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundVectors:
        return self._shard.vectors(generation, fact_ids_C)

    @ray.method(concurrency_group="rows")
    def locate(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundPlaces:
        return self._shard.locate(generation, fact_ids_C)

    @ray.method(concurrency_group="health")
    def stats(self, generation: int) -> ShardStats:
        return self._shard.stats(generation)


def _own_gpus() -> list[str]:
    """What Ray calls the GPUs that this actor has reserved."""
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


class _RayCall:
    def __init__(self, actor: Any, reference: Any) -> None:
        self.actor = actor
        self.reference = reference

    def result(self, timeout_s: float) -> Any:
        if not wait_for_actors([self], timeout_s):
            raise CallFailed(Failure.TIMED_OUT, f"no reply within {timeout_s:.3g} s")
        try:
            return ray.get(self.reference, timeout=0)
        except GetTimeoutError:
            raise _died() from None
        except RayTaskError as raised:
            if isinstance(raised.cause, HmnError):
                raise raised.cause from None
            raise
        except RayActorError as died:
            raise _call_failed(died) from died


def wait_for_actors(calls: Sequence[Any], timeout_s: float) -> Sequence[int]:
    """Positions of calls that ended, or whose actor died and is being started again; none if there are none after
    timeout_s seconds."""
    references = [call.reference for call in calls]
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        # Not ray.get: one that times out gives up what it has of a large reply from another node.
        ended, _ = ray.wait(references, num_returns=1, timeout=min(_LOOK_S, left_s))
        if ended:
            return [references.index(reference) for reference in ended]
        lost = [number for number, call in enumerate(calls) if _is_restarting(call.actor)]
        if lost or left_s <= _LOOK_S:
            return lost


def _is_restarting(actor: Any) -> bool:
    """Ray tells every process at once that an actor died, and fails the calls to it only up to two seconds later."""
    return bool(actor._get_local_state() == ActorTableData.RESTARTING)


def _died() -> CallFailed:
    return CallFailed(Failure.RESTARTING, "its process died and is being started again")


def _call_failed(error: RayActorError) -> CallFailed:
    gone = isinstance(error, ActorDiedError | ActorUnschedulableError)
    restarting = isinstance(error, ActorUnavailableError)
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CallFailed(Failure.GONE if gone and not restarting else Failure.RESTARTING, first_line)


class RayShardHandle:
    """The coordinator's end of one shard actor."""

    def __init__(
        self, config: ShardConfig, shared: SharedAs | None, cpus: float, node: str | None = None, gpus: float = 0.0
    ) -> None:
        """node: where the shard starts if it can; Ray puts it elsewhere once that node is gone, or its GPUs are taken.
        gpus: what it reserves of one."""
        self.gpus = gpus
        self._config = config
        self._shared = shared
        self._node = node
        self._name = None if shared is None else _shared_name(shared, config)
        self._cpus = cpus
        self._actor = self._create()

    def start(self, method: str, *args: Any) -> Call:
        actor = self._actor
        if _is_restarting(actor):
            raise _died()
        try:
            return _RayCall(actor, getattr(actor, method).remote(*args))
        except RayActorError as died:
            raise _call_failed(died) from died

    def replace(self) -> None:
        if self._shared is not None:  # shards that another job replaced or stopped must not come back
            self._shared.require()
        self._actor = self._create()

    def stop(self) -> None:
        ray.kill(self._actor, no_restart=True)

    def _create(self) -> Any:
        # Restarts are Ray's, retries are the coordinator's: its policy knows the deadline, Ray does not.
        options: dict[str, Any] = {
            "max_restarts": -1,
            "max_task_retries": 0,
            "num_cpus": self._cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            "namespace": NAMESPACE,
            # Every shard has a name, so that `hmn cluster status` finds those of other jobs too.
            "name": self._name or f"{PREFIX}{UNSHARED}{uuid4().hex}:{self._config.shard}-of-{self._config.num_shards}",
        }
        if self._node is not None:
            # An actor that asks for nothing at all is put anywhere by Ray, whatever its strategy: ask for one byte.
            place = NodeAffinitySchedulingStrategy(self._node, soft=True, _spill_on_unavailable=self.gpus > 0)
            options |= {"scheduling_strategy": place, "memory": 1}
        if self._name is not None:
            options |= {"lifetime": "detached", "get_if_exists": True}
        return ShardActor.options(**options).remote(self._config)  # type: ignore[attr-defined]  # added by ray.remote


def _shared_name(shared: SharedAs, config: ShardConfig) -> str:
    copy = f"-copy-{config.replica}" if config.replica else ""
    edition = f"{EDITION}{shared.token}" if shared.token else ""
    return f"{PREFIX}{shared.name}:{config.shard}-of-{config.num_shards}{copy}{edition}"


def edition_of(shard: str) -> str:
    """The token of the edition that a shard was started for, from the name of its actor."""
    return shard.rpartition(":")[2].partition(EDITION)[2]


def check_name(name: str) -> None:
    """Raise ConfigError for what cannot be the name of a shared memory."""
    if not name or name.startswith(UNSHARED):
        raise ConfigError(f"expected a name that is not empty and does not begin with {UNSHARED}, found {name!r}")


def start_shards(configs: Sequence[ShardConfig], *, cpus: float, shared: SharedAs | None) -> list[RayShardHandle]:
    """Start one actor per config, or find those that another process started under the same name.

    Raises VersionMismatch when a named shard runs other code or options, DeviceUnavailable when the cluster has not the
    GPUs that the index asks for, ShardUnavailable when it cannot place a shard: Ray itself would wait for ever and say
    nothing.
    """
    ensure_ray()
    reserved = reserve_gpus(configs[0].index, len(configs), _nodes_in_turn("GPU"))
    if reserved.if_free and not _gpus_are_free(reserved.share * len(configs)):
        reserved = NO_GPUS
    turns = iter(reserved.nodes) if reserved.share else cycle(_nodes_in_turn("CPU") if cpus == 0 else ())
    name = None if shared is None else shared.name
    handles = [RayShardHandle(config, shared, cpus, next(turns, None), reserved.share) for config in configs]
    deadline = time.monotonic() + START_DEADLINE_S
    for handle, config in zip(handles, configs, strict=True):
        _await_stamp(handle, config, name, deadline)
    return handles


def _gpus_are_free(wanted: float) -> bool:
    """Whether nobody has reserved so many; those of shards that were stopped are given back a moment later."""
    deadline = time.monotonic() + GPUS_FREE_S
    while ray.available_resources().get("GPU", 0.0) < wanted - 1e-6:  # type: ignore[no-untyped-call]  # untyped in ray
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _nodes_in_turn(resource: str) -> dict[str, float]:
    """How much of this the nodes have that have any, beginning anywhere: not all memories begin with the same node.

    A node without CPUs, as the head of a large cluster often is, gets no shards while others have some; nor does one
    that was drained.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray leaves it untyped
    able = {node["NodeID"]: node["Resources"][resource] for node in alive if node["Resources"].get(resource)}
    nodes = sorted(able.keys() - drained_nodes() or able)
    first = uuid4().int % max(len(nodes), 1)
    return {node: able[node] for node in nodes[first:] + nodes[:first]}


def _await_stamp(handle: RayShardHandle, config: ShardConfig, name: str | None, deadline: float) -> None:
    while True:
        try:
            found: dict[str, Any] = handle.start("stamp").result(max(0.0, deadline - time.monotonic()))
            break
        except CallFailed as failed:
            if failed.failure is Failure.RESTARTING and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            what = "GPUs" if handle.gpus else "CPUs"
            why = "" if failed.failure is Failure.TIMED_OUT else f": {failed}"
            raise ShardUnavailable(
                f"shard {config.shard} of {config.num_shards} did not start within {START_DEADLINE_S:g} s{why}; the "
                f"cluster has too few free {what} (see `ray status`: ask for fewer shards), or is too busy (try again)"
            ) from failed
    expected = {"code": code_version(), **asdict(config)}
    if found != expected:
        raise _mismatch(name, found, expected)


def _mismatch(name: str | None, found: dict[str, Any], expected: dict[str, Any]) -> VersionMismatch:
    """Code first: another version may well have other options as well."""
    if name is None:  # started by this job a moment ago
        return VersionMismatch(
            f"expected every node to run the code of this job, {expected['code']}, found {found.get('code')} on one; "
            "submit the job with --working-dir, which brings its code, or install the same code on all nodes"
        )
    way_out = f"stop it with `hmn cluster stop {name}` once nobody needs it, or open the memory under another name"
    if found.get("code") != expected["code"]:
        return VersionMismatch(
            f"expected the memory {name!r} to run the code of this job, {expected['code']}, found {found.get('code')}; "
            f"submit the job from the code that started it, or {way_out}"
        )
    other = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    differs = ", ".join(f"{key}={found.get(key)!r} instead of {expected.get(key)!r}" for key in other)
    return VersionMismatch(
        redact(f"memory {name!r} is already running with {differs}; open it with the same options, or {way_out}")
    )


def named_shards() -> dict[str, str]:
    """Of every shard actor that lives in the cluster, whoever started it: its name -> the memory it was named for.

    The memory is "" for shards that belong to one job alone.
    """
    ensure_ray()
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX)
    ]
    memories = {name: name.removeprefix(PREFIX).rpartition(":")[0] for name in names}
    return {name: "" if memory.startswith(UNSHARED) else memory for name, memory in memories.items()}
