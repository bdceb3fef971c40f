"""open_memory and Memory: search and fetch over one generation at a time, in-process or on Ray."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from memory_store.backends import Backend, default_threads, local_backend, ray_backend
from memory_store.coordinator import Coordinator, Served
from memory_store.errors import ConfigError, DimensionMismatch, InvalidVectors, NoVectors, UnknownFact
from memory_store.manifest import Manifest, current_generation, read_manifest
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES
from memory_store.notebook import html_pairs
from memory_store.parts import FACTS_SCHEMA
from memory_store.policy import Partial, ShardPolicy
from memory_store.shard import ShardConfig, ShardStats
from memory_store.storage import Storage
from memory_store.topk import TopK

# B queries, D dimension, C fact ids asked for

__all__ = ["Memory", "MemoryStats", "open_memory", "stop_memory"]

SEARCH_DEADLINE_S = 60.0
LOAD_DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """What `stats()` reports. recall: recall@K of the index against exact search; 1.0 for the exact index."""

    url: str
    generation: int
    dim: int
    facts: int
    encoder: str | None
    recall: float | None
    shards: tuple[ShardStats, ...]


class Memory:
    """A memory that serves one generation at a time; thread-safe. Open it with `open_memory`.

    Answers carry the generation that gave them. `refresh` loads a newer generation beside the one being served and then
    switches in one step: calls under way finish on the old one, calls that begin later use the new one.
    """

    def __init__(
        self,
        storage: Storage,
        coordinator: Coordinator,
        backend: Backend,
        *,
        index: str,
        partial: Partial,
        deadline_s: float,
    ) -> None:
        self._storage = storage
        self._coordinator = coordinator
        self._backend = backend
        self._index = index
        self._partial = partial
        self._deadline_s = deadline_s
        self._refresh_lock = threading.Lock()
        self._served: tuple[Manifest, Served] | None = None
        self._closed = False

    @property
    def url(self) -> str:
        return self._storage.url

    @property
    def generation(self) -> int:
        """The generation that answers now."""
        return self._now()[1].generation

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation that answers now."""
        return self._now()[0]

    @property
    def dim(self) -> int:
        """Dimension of the vectors; 0 while the facts are not embedded."""
        return self._now()[1].dim

    def __len__(self) -> int:
        return self._now()[1].fact_count

    def __repr__(self) -> str:
        if self._closed:
            return f"Memory({self._storage.shown!r}, closed)"
        _, served = self._now()
        return (
            f"Memory({self._storage.shown!r}, generation={served.generation}, facts={served.fact_count:,}, "
            f"dim={served.dim}, shards={len(served.rows_by_shard)}, index={self._index!r}, "
            f"backend={self._backend.name!r})"
        )

    def _repr_html_(self) -> str:
        if self._closed:
            return html_pairs(self._storage.shown, {"state": "closed"})
        manifest, served = self._now()
        return html_pairs(
            self._storage.shown,
            {
                "facts": f"{served.fact_count:,}",
                "vectors": f"{manifest.dtype} [{served.dim}]" if manifest.vectors else "none",
                "generation": served.generation,
                "shards": " + ".join(f"{rows:,}" for rows in served.rows_by_shard) + f" rows, {self._backend.name}",
                "index": self._index,
                "encoder": manifest.encoder or "–",
            },
        )

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        partial: Literal["refuse", "allow"] | None = None,
        deadline_s: float | None = None,
    ) -> TopK:
        """The k facts of largest inner product for each query.

        queries: finite floats [B, D]. A k larger than the memory pads with id -1, score -inf. A shard that died is
        waited for until `deadline_s` seconds have passed; with partial="allow" the answer leaves it out and says so in
        `coverage`.
        Raises DimensionMismatch, InvalidVectors, NoVectors, ConfigError (k < 1), ShardUnavailable.
        """
        manifest, served = self._now()
        if k < 1:
            raise ConfigError(f"expected k >= 1, found {k}")
        if not manifest.vectors:
            raise NoVectors(
                f"expected embedded facts, found generation {served.generation} of {self._storage.shown} with facts "
                "but no vectors; run `hmn embed` or open an older generation"
            )
        queries_BD = _checked_queries(queries, served.dim)
        if len(queries_BD) == 0:
            return TopK(
                fact_ids_BK=np.empty((0, k), dtype=np.int64),
                scores_BK=np.empty((0, k), dtype=np.float32),
                generation=served.generation,
            )
        return self._coordinator.search(
            served,
            queries_BD,
            k,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            partial=self._partial if partial is None else _partial(partial),
        )

    def fetch(self, fact_ids: ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """The facts with these ids, one row each, in the order asked; ids may repeat.

        columns: of DESIGN's facts schema; all of them when None. Raises UnknownFact, ConfigError (unknown column).
        """
        _, served = self._now()
        ids_C = _checked_ids(fact_ids)
        if columns is not None:
            known = set(FACTS_SCHEMA.names)
            unknown = [column for column in columns if column not in known]
            if unknown:
                raise ConfigError(f"expected columns among {', '.join(sorted(known))}, found {unknown[0]!r}")
        return self._coordinator.fetch(served, ids_C, columns, deadline_s=self._deadline_s)

    def vectors(self, fact_ids: ArrayLike) -> NDArray[np.float32]:
        """The stored vectors of these facts, float32 [n, D], in the order asked. Raises UnknownFact, NoVectors."""
        _, served = self._now()
        return self._coordinator.vectors(served, _checked_ids(fact_ids), deadline_s=self._deadline_s)

    def refresh(self, generation: int | None = None) -> int:
        """Serve the newest committed generation, or the one named; returns the generation served.

        The old generation answers until every shard has the new one. Raises GenerationNotFound, CorruptFile; then the
        old generation goes on serving.
        """
        with self._refresh_lock:
            wanted = read_manifest(self._storage, generation)
            if self._served is not None and self._served[1].generation == wanted.generation:
                return wanted.generation
            rows = self._coordinator.load(wanted.generation, deadline_s=LOAD_DEADLINE_S)
            served = Served(
                generation=wanted.generation, dim=wanted.dim, fact_count=wanted.fact_count, rows_by_shard=rows
            )
            self._served = (wanted, served)
            return wanted.generation

    def newest_generation(self) -> int | None:
        """The newest committed generation, whether it is served or not."""
        return current_generation(self._storage)

    def release_others(self) -> None:
        """Let the shards drop every generation but the one served: frees memory after a refresh.

        Other users of a named memory who serve another generation have it loaded again at their next call.
        """
        self._coordinator.release(self.generation, deadline_s=self._deadline_s)

    def stats(self) -> MemoryStats:
        """What is served, and the state of each shard."""
        manifest, served = self._now()
        shards = self._coordinator.stats(served, deadline_s=self._deadline_s)
        return MemoryStats(
            url=self._storage.shown,
            generation=served.generation,
            dim=served.dim,
            facts=served.fact_count,
            encoder=manifest.encoder,
            recall=1.0 if INDEXES[parse_index(self._index, INDEXES).name].exact else None,
            shards=shards,
        )

    def close(self) -> None:
        """Stop what this memory started; a named memory goes on serving its other users. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _now(self) -> tuple[Manifest, Served]:
        if self._closed or self._served is None:
            raise ConfigError(f"the memory at {self._storage.shown} is closed; open it again with open_memory")
        return self._served


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
) -> Memory:
    """Open the memory at a URL for searching; use it as a context manager.

    url: a path or any fsspec URL. shards: how many ways its rows are divided; one shard actor per processor at most.
    index: see `hmn indexes`. backend: "local" runs the shards in this process, "ray" runs one actor for each.
    generation: the one to serve; the newest when None. name (ray only): share the shards with every process that opens
    the same name; they go on until `stop_memory(name)`. threads: intra-op threads per shard; by default the processors
    divided by the shards in-process, and 1 per actor. partial, deadline_s: defaults for `search`. shard_cpus: CPUs that
    Ray reserves per actor.

    Raises MemoryNotFound, GenerationNotFound, CorruptFile, UnknownIndex, ConfigError; VersionMismatch when the name is
    in use with other options; ShardUnavailable when the cluster cannot place a shard.
    """
    if shards < 1:
        raise ConfigError(f"expected shards >= 1, found {shards}")
    if backend not in ("local", "ray"):
        raise ConfigError(f"expected backend 'local' or 'ray', found {backend!r}")
    if name is not None and backend != "ray":
        raise ConfigError("expected backend='ray' with a name: only actors can be shared between processes")
    if threads is not None and threads < 1:
        raise ConfigError(f"expected threads >= 1, found {threads}")
    if deadline_s <= 0:
        raise ConfigError(f"expected deadline_s > 0, found {deadline_s}")
    parse_index(index, INDEXES)
    allowed = _partial(partial)
    storage = Storage(url)
    read_manifest(storage, generation)  # a wrong URL or generation is refused before anything starts
    threads_per_shard = threads or (default_threads(shards) if backend == "local" else 1)
    configs = [
        ShardConfig(url=storage.url, shard=shard, num_shards=shards, index=index, threads=threads_per_shard)
        for shard in range(shards)
    ]
    serving = local_backend(configs) if backend == "local" else ray_backend(configs, name=name, cpus=shard_cpus)
    memory = Memory(
        storage,
        Coordinator(shards=serving.handles, policy=policy or ShardPolicy()),
        serving,
        index=index,
        partial=allowed,
        deadline_s=deadline_s,
    )
    try:
        memory.refresh(generation)
    except BaseException:
        memory.close()
        raise
    return memory


def stop_memory(name: str) -> int:
    """Stop the shards of a named memory, whoever started it; returns how many there were."""
    from memory_store.actors import stop_named  # ray loads only where it is used

    return stop_named(name)


def _partial(value: str) -> Partial:
    try:
        return Partial(value)
    except ValueError:
        raise ConfigError(f"expected partial='refuse' or 'allow', found {value!r}") from None


def _checked_queries(queries: ArrayLike, dim: int) -> NDArray[np.float32]:
    given = np.asarray(queries)
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise InvalidVectors(f"expected queries as floats [B, {dim}], found {given.dtype} of shape {list(given.shape)}")
    if given.shape[1] != dim:
        raise DimensionMismatch(f"expected queries of dimension {dim}, found {given.shape[1]}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, and that is refused below
        queries_BD = np.ascontiguousarray(given, dtype=np.float32)
    finite_B = np.isfinite(queries_BD).all(axis=1)
    if not finite_B.all():
        raise InvalidVectors(f"expected finite queries, found NaN or infinity in query {int(np.argmin(finite_B))}")
    return queries_BD


def _checked_ids(fact_ids: ArrayLike) -> NDArray[np.int64]:
    given = np.asarray(fact_ids)
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise UnknownFact(f"expected fact ids as integers [n], found {given.dtype} of shape {list(given.shape)}")
    return given.astype(np.int64)
