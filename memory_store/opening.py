"""open_memory: a memory's shards started in this process or on Ray, or found where somebody else started them."""

from typing import Literal

from memory_store.backends import SharedAs, default_threads, local_backend, ray_backend
from memory_store.code_version import code_version
from memory_store.compaction import CompactionPolicy
from memory_store.coordinator import Coordinator
from memory_store.editions import Edition
from memory_store.engine import Engine
from memory_store.engine_source import EngineSource, OwnEngines
from memory_store.errors import ConfigError
from memory_store.manifest import read_manifest
from memory_store.memory import Memory
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES
from memory_store.policy import ShardPolicy
from memory_store.requests import parse_partial
from memory_store.shard import ShardConfig
from memory_store.storage import Storage

__all__ = ["open_memory", "open_shared", "stop_memory"]

SEARCH_DEADLINE_S = 60.0
RECALL_SHARE = 0.01
_COMPACTION = CompactionPolicy()


def open_memory(
    url: str,
    shards: int = 1,
    index: str = "exact",
    backend: Literal["local", "ray"] = "local",
    generation: int | None = None,
    *,
    name: str | None = None,
    threads: int | None = None,
    partial: Literal["refuse", "allow"] = "refuse",
    deadline_s: float = SEARCH_DEADLINE_S,
    shard_cpus: float = 0.0,
    policy: ShardPolicy | None = None,
    compaction: CompactionPolicy | None = _COMPACTION,
    recall_share: float = RECALL_SHARE,
    target_recall: float | None = None,
    replicas: int = 1,
) -> Memory:
    """Open the memory at a URL for searching; use it as a context manager.

    url: a path or any fsspec URL. shards: how many ways its rows are divided; one shard actor per processor at most.
    index: see `hmn indexes`. backend: "local" runs the shards in this process, "ray" runs one actor for each.
    generation: the one to serve; the newest when None. name (ray only): share the shards with every process that opens
    the same name; they go on until `stop_memory(name)`. If one of them re-divided the memory or changed its index since
    it was started, all follow, and index and shards may be those of then or of now. threads: intra-op threads per
    shard; by default the processors divided by the shards in-process, and 1 per actor. partial, deadline_s: defaults
    for `search`; fetches and writes wait as long for a shard. shard_cpus: CPUs that Ray reserves per actor. compaction:
    when a write through this memory has it compact in the background; None: never. recall_share: share of the queries
    that an approximate index answers once more, exactly, in the background, so that `stats` knows its recall; 0 for
    none. target_recall: the recall that it keeps on live queries by raising its effort (nprobe, ef, leaves, tables),
    and lowering it where it can. replicas: copies of each shard, on different machines where Ray has them. Where a copy
    dies, another answers at once; a call that takes longer than most is sent to a second copy as well.

    Raises MemoryNotFound, GenerationNotFound, CorruptFile, UnknownIndex, ConfigError; VersionMismatch when the name is
    in use with other options; ShardUnavailable when the cluster cannot place a shard.
    """
    if shards < 1:
        raise ConfigError(f"expected shards >= 1, found {shards}")
    if replicas < 1:
        raise ConfigError(f"expected replicas >= 1, found {replicas}")
    if backend not in ("local", "ray"):
        raise ConfigError(f"expected backend 'local' or 'ray', found {backend!r}")
    if name is not None and backend != "ray":
        raise ConfigError("expected backend='ray' with a name: only actors can be shared between processes")
    if threads is not None and threads < 1:
        raise ConfigError(f"expected threads >= 1, found {threads}")
    if deadline_s <= 0:
        raise ConfigError(f"expected deadline_s > 0, found {deadline_s}")
    if not 0 <= recall_share <= 1:
        raise ConfigError(f"expected recall_share from 0 to 1, found {recall_share}")
    if target_recall is not None and not (0 < target_recall < 1 and recall_share > 0):
        raise ConfigError(
            f"expected target_recall between 0 and 1 with a recall_share above 0, found {target_recall} with "
            f"{recall_share}; for a recall of 1 use the index exact"
        )
    parse_index(index, INDEXES)
    allowed = parse_partial(partial)
    storage = Storage(url)
    read_manifest(storage, generation)  # a wrong URL or generation is refused before anything starts

    def start(index: str, shards: int, shared: SharedAs | None = None, edition: Edition | None = None) -> Engine:
        threads_per_shard = threads or (default_threads(shards) if backend == "local" else 1)
        configs = [
            ShardConfig(
                url=storage.url,
                shard=shard,
                num_shards=shards,
                index=index,
                threads=threads_per_shard,
                recall_share=recall_share,
                target_recall=target_recall,
                replica=replica,
            )
            for shard in range(shards)
            for replica in range(replicas)
        ]
        serving = local_backend(configs) if backend == "local" else ray_backend(configs, cpus=shard_cpus, shared=shared)
        return Engine(Coordinator(shards=serving.handles, policy=policy or ShardPolicy()), serving, index, edition)

    source: EngineSource = OwnEngines(start)
    if name is not None:
        from memory_store.shared import shared_engines  # ray loads only where it is used

        source = shared_engines(
            name,
            start,
            Edition(
                code=code_version(),
                url=storage.url,
                index=index,
                shards=shards,
                first_index=index,
                first_shards=shards,
                replicas=replicas,
                threads=threads or 1,
                shard_cpus=shard_cpus,
                recall_share=recall_share,
                target_recall=target_recall,
            ),
        )
    memory = Memory(
        storage,
        source.first(index, shards),
        source=source,
        partial=allowed,
        deadline_s=deadline_s,
        compaction=compaction,
    )
    try:
        memory.refresh(generation)
    except BaseException:
        memory.close()
        raise
    return memory


def open_shared(name: str) -> Memory:
    """Open the memory that jobs of the cluster share by this name, with the options that it has there.

    The cluster is that of RAY_ADDRESS, or the one that runs on this machine. Raises RayUnavailable, ConfigError where
    nobody shares a memory by that name, VersionMismatch where its shards run other code.
    """
    from memory_store.ray_session import ensure_ray
    from memory_store.shared import shared_memories

    ensure_ray(join="auto")
    found = shared_memories().get(name)
    if found is None:
        raise ConfigError(f"expected the name of a memory that runs here, found {name!r}; see `hmn cluster status`")
    return open_memory(
        found.url,
        found.shards,
        found.index,
        "ray",
        name=name,
        threads=found.threads,
        shard_cpus=found.shard_cpus,
        recall_share=found.recall_share,
        target_recall=found.target_recall,
        replicas=found.replicas,
    )


def stop_memory(name: str) -> int:
    """Stop the shards of a named memory, whoever started it; returns how many there were."""
    from memory_store.shared import stop_named  # ray loads only where it is used

    return stop_named(name)
