"""Memory: search, fetch and write over one generation at a time, in-process or on Ray."""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from memory_store.background import BackgroundCompaction
from memory_store.compaction import CompactionPolicy, compact
from memory_store.engine import LOAD_DEADLINE_S, Engine, Engines, State, load
from memory_store.engine_source import EngineSource
from memory_store.errors import (
    ConfigError,
    CorruptFile,
    GenerationNotFound,
    NoVectors,
    ReindexRunning,
    ShardsReplaced,
)
from memory_store.leases import ReadLease
from memory_store.manifest import Manifest, current_generation, generations, read_manifest
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES
from memory_store.notebook import html_pairs
from memory_store.parts import FACTS_SCHEMA
from memory_store.policy import Partial
from memory_store.progress import Progress, silent
from memory_store.recall import pooled
from memory_store.reembed import Encode, Reembedding
from memory_store.reindex import plan_reindex, run_reindex
from memory_store.reindex_steps import MemoryReindex
from memory_store.requests import checked_ids, checked_k, checked_queries, parse_partial
from memory_store.stats import MemoryStats
from memory_store.storage import Storage
from memory_store.topk import TopK
from memory_store.writes import Located, delete_facts, same_encoder, upsert_facts

# B queries, D dimension, C fact ids asked for

__all__ = ["LOAD_DEADLINE_S", "Memory"]

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class Memory:
    """A memory that serves one generation at a time; thread-safe. Open it with `open_memory`.

    Answers carry the generation that gave them. `refresh` loads a newer generation beside the one being served and then
    switches in one step: calls under way finish on the old one, calls that begin later use the new one.
    """

    def __init__(
        self,
        storage: Storage,
        engine: Engine,
        *,
        source: EngineSource,
        partial: Partial,
        deadline_s: float,
        compaction: CompactionPolicy | None = None,
    ) -> None:
        self._storage = storage
        self._engines = Engines(engine)
        self._source = source
        self._partial = partial
        self._deadline_s = deadline_s
        self._stays_at: int | None = None  # the generation that was asked for by number, if any
        self._background = BackgroundCompaction(compaction, self._compact_if_due, storage.shown)
        self._compaction_lock = threading.Lock()
        self._reindex_lock = threading.Lock()
        self._refresh_lock = threading.Lock()
        self._write_lock = threading.Lock()  # writers of one process queue here and need not race for the commit
        self._closed = False
        self._drift: tuple[int, float | None] = (0, None)
        self._lease = ReadLease(storage)
        weakref.finalize(self, self._lease.close).atexit = False  # for a memory that nobody closes, but forgets

    @property
    def url(self) -> str:
        return self._storage.url

    @property
    def generation(self) -> int:
        """The generation that answers now."""
        return self._now()[2].generation

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation that answers now."""
        return self._now()[1]

    @property
    def is_exact(self) -> bool:
        """Whether the index that answers now finds the true top k."""
        return INDEXES[parse_index(self._now()[0].index, INDEXES).name].exact

    @property
    def dim(self) -> int:
        """Dimension of the vectors; 0 while the facts are not embedded."""
        return self._now()[2].dim

    def __len__(self) -> int:
        return self._now()[2].fact_count

    def __repr__(self) -> str:
        if self._closed:
            return f"Memory({self._storage.shown!r}, closed)"
        engine, _, served = self._now()
        return (
            f"Memory({self._storage.shown!r}, generation={served.generation}, facts={served.fact_count:,}, dim="
            f"{served.dim}, shards={engine.shards}, index={engine.index!r}, backend={engine.backend.name!r})"
        )

    def _repr_html_(self) -> str:
        if self._closed:
            return html_pairs(self._storage.shown, {"state": "closed"})
        engine, manifest, served = self._now()
        return html_pairs(
            self._storage.shown,
            {
                "facts": f"{served.fact_count:,}",
                "vectors": f"{manifest.dtype} [{served.dim}]" if manifest.vectors else "none",
                "generation": served.generation,
                "shards": " + ".join(f"{rows:,}" for rows in served.rows_by_shard) + f" rows, {engine.backend.name}",
                "index": engine.index,
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
        wanted = checked_k(k)
        return self._ask(lambda state: self._search(state, queries, wanted, partial, deadline_s))

    def _search(self, state: State, queries: ArrayLike, k: int, partial: str | None, deadline_s: float | None) -> TopK:
        engine, manifest, served = state
        if not manifest.vectors:
            raise NoVectors(
                f"expected embedded facts, found generation {served.generation} of {self._storage.shown} with facts "
                "but no vectors; run `hmn embed` or open an older generation"
            )
        queries_BD = checked_queries(queries, served.dim)
        if len(queries_BD) == 0:
            return TopK(
                fact_ids_BK=np.empty((0, k), dtype=np.int64),
                scores_BK=np.empty((0, k), dtype=np.float32),
                generation=served.generation,
            )
        return engine.coordinator.search(
            served,
            queries_BD,
            k,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            partial=self._partial if partial is None else parse_partial(partial),
        )

    def fetch(self, fact_ids: ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """The facts with these ids, one row each, in the order asked; ids may repeat.

        columns: of DESIGN's facts schema; all of them when None. Raises UnknownFact, ConfigError (unknown column).
        """
        ids_C = checked_ids(fact_ids)
        if columns is not None:
            known = set(FACTS_SCHEMA.names)
            unknown = [column for column in columns if column not in known]
            if unknown:
                raise ConfigError(f"expected columns among {', '.join(sorted(known))}, found {unknown[0]!r}")
        return self._ask(
            lambda state: state[0].coordinator.fetch(state[2], ids_C, columns, deadline_s=self._deadline_s)
        )

    def vectors(self, fact_ids: ArrayLike) -> NDArray[np.float32]:
        """The stored vectors of these facts, float32 [n, D], in the order asked. Raises UnknownFact, NoVectors."""
        ids_C = checked_ids(fact_ids)
        return self._ask(lambda state: state[0].coordinator.vectors(state[2], ids_C, deadline_s=self._deadline_s))

    def holds(self, fact_ids: ArrayLike) -> NDArray[np.bool_]:
        """Which of these ids stand for a fact of the generation served, bool [n]; ids may repeat."""
        ids_C, place_n = np.unique(checked_ids(fact_ids), return_inverse=True)
        if not len(ids_C):
            return np.zeros(0, dtype=np.bool_)
        held_C: NDArray[np.bool_] = self._locate(self.manifest, ids_C).part_C >= 0
        return held_C[place_n]

    def refresh(self, generation: int | None = None) -> int:
        """Serve the newest committed generation, or the one named; returns the generation served.

        The old generation answers until every shard has the new one. Raises GenerationNotFound, CorruptFile; then the
        old generation goes on serving.
        """
        with self._refresh_lock:
            self._stays_at = generation
            with self._reading(generation) as wanted:
                self._serve(wanted)
            return wanted.generation

    def prepare(self, generation: int) -> None:
        """Have the shards load a generation beside the one they serve, so that `refresh` to it has only to switch.

        Raises GenerationNotFound, CorruptFile.
        """
        wanted = read_manifest(self._storage, generation)
        self._ask(lambda state: state[0].coordinator.load(wanted.generation, deadline_s=LOAD_DEADLINE_S))

    def upsert(self, facts: pa.Table, vectors: ArrayLike, *, note: str | None = None) -> int:
        """Add facts, or put them in the place of those that have their ids; returns the generation that holds them.

        facts: a table with the column fact_id (int64, at least 0, each once); the other columns of the facts schema are
        optional. vectors: finite floats [n, dim], made by the encoder of the generation served. On return the facts are
        durable, and visible on all shards of this memory; other processes see them at their refresh. The main index is
        not rebuilt: fresh rows are searched exactly beside it. Thousands of rows at once cost little more than one.
        Raises InputError, DuplicateFact, DimensionMismatch, InvalidVectors, NoVectors, StorageFailed, ShardUnavailable,
        and GenerationConflict if the memory was embedded by another encoder since; then nothing has changed.
        CommitUnknown if that cannot be told; the same call again is safe.
        """
        made_for = self._writable()
        with self._write_lock:
            new = upsert_facts(self._storage, facts, vectors, locate=self._locate, made_for=made_for, note=note)
        shown = self._show(new.generation)
        self._background.start_if_due(self.manifest)
        return shown

    def delete(self, fact_ids: ArrayLike, *, note: str | None = None) -> int:
        """Delete facts; returns the generation without them, durable and visible as for `upsert`.

        Raises UnknownFact, deleting nothing, if an id is not in the newest generation; GenerationConflict, deleting
        nothing, if the memory was embedded by another encoder since: call `refresh`, which goes over to its vectors.
        StorageFailed, ShardUnavailable, CommitUnknown.
        """
        self._writable()
        with self._write_lock:
            ids_N = checked_ids(fact_ids)
            new = delete_facts(self._storage, ids_N, locate=self._locate, serves=self._stays_with, note=note)
        shown = self._show(new.generation)
        self._background.start_if_due(self.manifest)
        return shown

    def compact(self, policy: CompactionPolicy | None = None) -> int:
        """Merge what was written and deleted into parts for the main index, and serve the generation that holds them.

        Rewrites what changed. A main index that takes long to build is kept, what was merged is searched exactly beside
        it, until that is a tenth of its rows or a quarter of them were rewritten; then it is built anew.
        Search and writes never stop. Returns the generation served: the same if there is nothing to merge, or if
        another encoder embedded it since (`refresh` goes over to that). Raises GenerationConflict, StorageFailed.
        """
        self._writable()
        with self._compaction_lock:
            self._show(compact(self._storage, policy=policy).generation)
        return self.generation

    def reindex(
        self,
        encode: Encode | None = None,
        index: str | None = None,
        shards: int | None = None,
        *,
        fingerprint: str | None = None,
        dtype: str | None = None,
        least_recall: float = 0.0,
        move: bool = False,
        backend: str = "local",
        workers: int | None = None,
        progress: Progress = silent,
    ) -> int:
        """Embed all facts anew, build another index, or divide the rows otherwise; returns the generation served.

        Everything is made beside what serves and verified (counts, checksums, recall on sampled vectors of at least
        least_recall against brute force); then it is committed, and all shards switch in one step. Search and writes
        never stop, and what is written meanwhile is carried over. encode: a facts table with N rows -> vectors [N, D];
        fingerprint: its name, by which a run that was killed goes on and a memory that it embedded already, in that
        dtype, is left as it is. dtype: of the vectors as stored; None: as the memory has it. backend, workers: "ray"
        has so many processes of the cluster embed, each with a copy of encode. move: other shards even where index and
        number stay, on the nodes that take shards now. Raises ReindexRunning while another one is under way, and
        ReindexFailed, which says why; what served before goes on serving. Index and shards are this memory's alone.
        """
        self._writable()
        if shards is not None and shards < 1:
            raise ConfigError(f"expected shards >= 1, found {shards}")
        if dtype is not None and encode is None:
            raise ConfigError(f"expected encode with dtype={dtype!r}, found none: vectors are made anew, not converted")
        if index is not None:
            parse_index(index, INDEXES)
        if not self._reindex_lock.acquire(blocking=False):
            raise ReindexRunning(f"a re-index of {self._storage.shown} is under way in this process; wait for it")
        try:
            engine = self._engines.now
            served = (engine.index, engine.shards)
            plan = plan_reindex(embed=encode is not None, index=index, shards=shards, served=served, move=move)
            embedding = encode and Reembedding(
                self._storage,
                encode,
                fingerprint=fingerprint,
                dtype=dtype,
                backend=backend,
                workers=workers,
                progress=progress,
            )
            run_reindex(plan, MemoryReindex(self, embedding, least_recall))
            return self.generation
        finally:
            self._reindex_lock.release()

    def _compact_if_due(self, policy: CompactionPolicy) -> None:
        with self._compaction_lock:
            self._show(compact(self._storage, policy=policy, only_if_due=True).generation)

    def _writable(self) -> Manifest:
        manifest = self.manifest
        if self._stays_at is not None and self._stays_at != self.newest_generation():
            raise ConfigError(
                f"expected a memory that serves the newest generation, found {self._storage.shown} opened at "
                f"generation {self._stays_at}; call refresh(), or open it without generation="
            )
        return manifest

    def _locate(self, manifest: Manifest, fact_ids_C: NDArray[np.int64]) -> Located:
        def ask(state: State) -> Located:
            coordinator = state[0].coordinator
            if manifest.generation != state[2].generation:  # what serves is loaded; after a restart, at this call
                coordinator.load(manifest.generation, deadline_s=LOAD_DEADLINE_S)
            part_C, row_C = coordinator.locate(manifest.generation, fact_ids_C, deadline_s=self._deadline_s)
            return Located(part_C=part_C, row_C=row_C)

        return self._ask(ask)

    def _show(self, generation: int) -> int:
        """Serve this generation unless a newer one, which holds what it holds, is served already."""
        with self._refresh_lock:
            self._stays_at = None
            if self.generation < generation:
                try:
                    self._serve_alike(read_manifest(self._storage, generation))
                except (CorruptFile, GenerationNotFound, FileNotFoundError):
                    if self.newest_generation() == generation:
                        raise
                    with self._reading() as newest:  # others wrote on and swept before this one was loaded
                        self._serve_alike(newest)
                self._lease.hold_soon([self.generation])
        return generation

    def _serve_alike(self, wanted: Manifest) -> None:
        """Serve it, but never the vectors of another encoder in the place of those that whoever searches asks for."""
        stays_with = self._stays_with()
        if stays_with is None or same_encoder(stays_with, wanted):
            self._serve(wanted)
            return
        _log.warning(
            "generation %d of %s was embedded by %s: generation %d, by %s, goes on serving until refresh() is called",
            *(wanted.generation, self._storage.shown, wanted.encoder, stays_with.generation, stays_with.encoder),
        )

    def _stays_with(self) -> Manifest | None:
        """The generation served, whose encoder's vectors are to be; None while a re-index goes over to the newest."""
        return None if self._reindex_lock.locked() else self.manifest

    @contextmanager
    def _reading(self, generation: int | None = None) -> Iterator[Manifest]:
        """A generation to load, the newest by default: meanwhile both it and the one that serves are leased."""
        served = [] if self._engines.state is None else [self.generation]
        while True:
            wanted = read_manifest(self._storage, generation)
            self._lease.hold([*served, wanted.generation])
            if wanted.generation < 0 or wanted.generation in generations(self._storage):
                break  # else a sweep ran before it could see the lease; what is proposed is not swept
        try:
            yield wanted
        finally:
            if self._engines.state is not None:
                self._lease.hold([self.generation])

    def _serve(self, wanted: Manifest) -> None:
        """Load, then switch in one step; the caller holds the refresh lock. Follows whoever re-divided the memory."""
        while True:
            now, state = self._engines.now, self._engines.state
            engine = now if state is None else self._source.newer(now) or now
            if state is not None and engine is now and state[2].generation == wanted.generation:
                return
            try:
                loaded = load(engine, wanted)
            except BaseException as error:
                if engine is not now:
                    engine.backend.close()
                if isinstance(error, ShardsReplaced):
                    continue
                raise
            replaced = self._engines.show((engine, wanted, loaded))
            if replaced is not None:
                self._engines.retire(replaced, stop=False)
            return

    def _follow(self, gone: Engine) -> None:
        """Another job put others in the place of these shards: use those, in the generation that is served here."""
        with self._refresh_lock:
            if self._engines.now is gone:
                self._serve(self.manifest)

    def newest_generation(self) -> int | None:
        """The newest committed generation, whether it is served or not."""
        return current_generation(self._storage)

    def release_others(self) -> None:
        """Let the shards drop every generation but the one served: frees memory after a refresh.

        Other users of a named memory who serve another generation have it loaded again at their next call.
        """
        self._ask(lambda state: state[0].coordinator.release(state[2].generation, deadline_s=self._deadline_s))

    def stats(self) -> MemoryStats:
        """What is served, and the state of each shard."""
        (_, manifest, served), shards = self._ask(
            lambda state: (state, state[0].coordinator.stats(state[2], deadline_s=self._deadline_s))
        )
        exact = self.is_exact
        report = pooled(line.recall for line in shards if line.recall is not None)
        return MemoryStats(
            url=self._storage.shown,
            generation=served.generation,
            dim=served.dim,
            facts=served.fact_count,
            encoder=manifest.encoder,
            recall=1.0 if exact else (None if report is None else report.recall),
            shards=shards,
            recall_report=report,
            created_at=manifest.created_at,
            drift=self._drift[1] if self._drift[0] == served.generation else None,
        )

    def note_drift(self, drift: float) -> None:
        """Have `stats` say how far the vectors of the generation served are from their encoder as it is now."""
        self._drift = (self.generation, drift)

    def close(self) -> None:
        """Stop what this memory started, a compaction once it is done; a named memory goes on serving its other users.
        Safe to call twice."""
        if not self._closed:
            self._background.join()
            self._closed = True
            try:
                self._engines.now.backend.close()
            finally:  # else it would be renewed for as long as this process lives
                self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, ask: Callable[[State], _Answer]) -> _Answer:
        """Ask what serves; if another job replaced its shards meanwhile, ask those that it put there."""
        while True:
            with self._call() as state:
                try:
                    return ask(state)
                except ShardsReplaced:
                    pass
            self._follow(state[0])

    def _call(self) -> AbstractContextManager[State]:
        """What serves, held on to until the call ends."""
        self._now()
        return self._engines.call()

    def _now(self) -> State:
        if self._closed or self._engines.state is None:
            raise ConfigError(f"the memory at {self._storage.shown} is closed; open it again with open_memory")
        return self._engines.state
