"""What answers: the model and the memory of a run, searched for a whole batch at once, replaced while they answer."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.serve.failures import Refused
from deploy.serve.rollout import Move, Rollout, Seen, Serving, decide
from deploy.serve.settings import Source
from deploy.serve.source import checkpoint_of, first_generation, memory_storage, shared_name
from deploy.serve.writing import Write, Written, write_facts
from memory_store.errors import HmnError, UnknownFact
from memory_store.manifest import read_manifest
from memory_store.memory import Memory
from memory_store.opening import open_memory
from memory_store.shard import ShardStats
from memory_store.storage import Storage, redact
from memory_store.topk import NO_FACT, TopK
from trainer.ask import Answers, read_facts
from trainer.checkpoint import CheckpointInfo
from trainer.config import MemoryConfig
from trainer.encoders.base import Encoder
from trainer.run import load_run

# B questions or vectors in a batch, K facts of the one that wants most, D dimension

__all__ = ["Asked", "Batch", "Engine", "RunEngine", "Status", "Wanted"]

WRITES_HELD = 16  # generations that the shards hold before those of earlier writes are let go
SWITCHES_WAITED_FOR = 5  # how often a batch begins again because the generation changed between its search and fetch

log = logging.getLogger("hmn.serve")


@dataclass(frozen=True)
class Asked:
    """A question, and how many facts it may read."""

    text: str
    k: int


@dataclass(frozen=True, eq=False)
class Wanted:
    """A vector, float32 [D], and how many facts are wanted."""

    vector_D: NDArray[np.float32]
    k: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One search. results: per item, what was found or why nothing was; stages_s: seconds per stage of the batch."""

    results: Sequence[Any]
    generation: int
    encoder: str
    coverage: float
    stages_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is served, as of the last check."""

    ready: bool
    generation: int
    created_at: str
    facts: int
    dim: int
    encoder: str
    checkpoint_step: int
    index: str
    backend: str
    shards: tuple[ShardStats, ...] = ()
    generations_rolled_out: int = 0
    models_rolled_out: int = 0
    failed_rollouts: int = 0


class Engine(Protocol):
    """What the application needs; `RunEngine`, or a double in a test. All methods block; `ask` and `search` are called
    from one thread, the others from another."""

    def ask(self, asked: Sequence[Asked]) -> Batch: ...
    def search(self, wanted: Sequence[Wanted]) -> Batch: ...
    def status(self) -> Status: ...
    def check(self) -> None: ...
    def roll_out(self) -> Rollout: ...
    def write(self, write: Write) -> Written: ...
    def close(self) -> None: ...


class _Opened:
    """A model and the memory that it embedded. Closed when it is retired and the last batch that uses it has ended."""

    def __init__(
        self, settings: MemoryConfig, encoder: Encoder, checkpoint: CheckpointInfo, storage: Storage, memory: Memory
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.fingerprint = encoder.fingerprint()
        self.checkpoint = checkpoint
        self.storage = storage
        self.memory = memory
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    @contextmanager
    def used(self) -> Iterator[bool]:
        """Whether it may be used; until the end of the block it is not closed then."""
        with self._lock:
            usable = not self._retired
            self._users += usable
        try:
            yield usable
        finally:
            if usable:
                self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            close = self._retired and self._users == 0
        if close:
            self.memory.close()

    def retire(self) -> None:
        with self._lock:
            self._retired = True
            close = self._users == 0
        if close:
            self.memory.close()


class RunEngine:
    """Answers from a trained run. `roll_out` replaces generation or model while batches are being answered."""

    def __init__(self, source: Source) -> None:
        """Load the model and open its memory. Raises what `load_run` and `open_memory` raise."""
        self._source = source
        self._run_storage = Storage(source.run_dir)
        self._opened = self._open(None)
        self._rollout_lock = threading.Lock()
        self._unreleased = False
        self._writes_held = 0
        self._status = self._describe(self._opened)
        self.check()

    def ask(self, asked: Sequence[Asked]) -> Batch:
        """results: a list of `Answer` per question, best first."""
        with self._use() as opened:
            began_s = time.perf_counter()
            query_BD = opened.encoder.ask([one.text for one in asked]).numpy()
            encoded_s = time.perf_counter()
            found, facts, searched_s = self._search_and_fetch(opened, query_BD, [one.k for one in asked])
            return Batch(
                results=facts,
                generation=found.generation,
                encoder=opened.fingerprint,
                coverage=found.coverage,
                stages_s={
                    "encode": encoded_s - began_s,
                    "search": searched_s - encoded_s,
                    "fetch": time.perf_counter() - searched_s,
                },
            )

    def search(self, wanted: Sequence[Wanted]) -> Batch:
        """results: (fact ids [k], scores [k]) per vector, or the `Refused` of a vector of another dimension."""
        with self._use() as opened:
            dim = opened.memory.dim
            fits_B = [len(one.vector_D) == dim for one in wanted]
            fitting = [one for one, fits in zip(wanted, fits_B, strict=True) if fits]
            began_s = time.perf_counter()
            vectors_BD = np.array([one.vector_D for one in fitting], dtype=np.float32).reshape(len(fitting), dim)
            found = opened.memory.search(vectors_BD, max((one.k for one in fitting), default=1))
            rows = iter(zip(fitting, found.fact_ids_BK, found.scores_BK, strict=True))
            results: list[Any] = []
            for one, fits in zip(wanted, fits_B, strict=True):
                if fits:
                    _, ids_K, scores_K = next(rows)
                    results.append((ids_K[: one.k], scores_K[: one.k]))
                else:
                    results.append(
                        Refused("invalid_request", f"expected vectors of dimension {dim}, found {len(one.vector_D)}")
                    )
            return Batch(
                results=results,
                generation=found.generation,
                encoder=opened.fingerprint,
                coverage=found.coverage,
                stages_s={"search": time.perf_counter() - began_s},
            )

    def status(self) -> Status:
        return self._status

    def check(self) -> None:
        """Ask the shards how they are; what they say, or that they do not answer, becomes the status."""
        with self._use() as opened:
            try:
                stats = opened.memory.stats()
            except (HmnError, OSError) as error:
                log.warning("not ready: %s", redact(str(error)))
                self._status = replace(self._status, ready=False)
                return
            self._status = replace(
                self._describe(opened),
                ready=True,
                shards=stats.shards,
                generations_rolled_out=self._status.generations_rolled_out,
                models_rolled_out=self._status.models_rolled_out,
                failed_rollouts=self._status.failed_rollouts,
            )

    def roll_out(self) -> Rollout:
        """Serve a newer generation or model if there is one. What fails changes nothing, and raises HmnError."""
        with self._rollout_lock:
            try:
                rollout = self._decide()
                self._carry_out(rollout)
            except (HmnError, OSError):
                self._status = replace(self._status, failed_rollouts=self._status.failed_rollouts + 1)
                raise
            return rollout

    def write(self, write: Write) -> Written:
        """Upsert or delete facts, and serve the generation that shows it. Raises Refused, and what `roll_out` raises.

        A write goes on top of the newest generation, which must be this model's: what is newer is rolled out first.
        """
        if self._source.generation is not None:
            raise Refused("conflict", f"the service stays at generation {self._source.generation}: it cannot write")
        with self._rollout_lock:
            self._carry_out(self._decide())
            opened = self._opened
            before = opened.memory.generation
            if read_manifest(opened.storage).encoder != opened.fingerprint:
                raise Refused("conflict", "the memory is being embedded by another model; write when that answers")
            written = write_facts(opened.memory, opened.encoder, write)
            if opened.memory.manifest.encoder != opened.fingerprint:  # embedded anew between that look and this write
                opened.memory.refresh(before)
                raise Refused("conflict", "written, but shown only when the model answers that embeds the memory now")
            self._unreleased = True
            self._writes_held += 1
            if self._writes_held >= WRITES_HELD:
                opened.memory.release_others()
                self._writes_held = 0
        self.check()
        return written

    def close(self) -> None:
        """Close the memory when the batch under way has ended."""
        self._opened.retire()

    def _decide(self) -> Rollout:
        if self._source.generation is not None:
            return Rollout(Move.STAY)
        opened = self._opened
        checkpoint = checkpoint_of(self._run_storage)
        storage = memory_storage(checkpoint, self._source)
        newest = read_manifest(storage)
        return decide(
            Serving(
                checkpoint=_identity(opened.checkpoint, opened.storage),
                fingerprint=opened.fingerprint,
                generation=opened.memory.generation,
            ),
            Seen(
                checkpoint=_identity(checkpoint, storage),
                fingerprint=checkpoint.fingerprint,
                checkpoint_generation=checkpoint.generation if self._source.follows_checkpoint else None,
                newest=newest.generation,
                newest_encoder=newest.encoder,
            ),
        )

    def _carry_out(self, rollout: Rollout) -> None:
        if rollout.move is Move.STAY or rollout.generation is None:
            if self._unreleased:  # by now every batch that began on the older generation has ended
                self._opened.memory.release_others()
                self._unreleased = False
                self._writes_held = 0
            return
        if rollout.move is Move.GENERATION:
            self._opened.memory.refresh(rollout.generation)
            self._unreleased = True
            counted = replace(self._status, generations_rolled_out=self._status.generations_rolled_out + 1)
        else:
            self._opened, before = self._open(rollout.generation), self._opened
            before.retire()
            counted = replace(self._status, models_rolled_out=self._status.models_rolled_out + 1)
        self._status = counted
        log.info("rolled out: %s, generation %d", rollout.move.value, rollout.generation)
        self.check()

    def _open(self, generation: int | None) -> _Opened:
        """The run's newest model, with this generation of the memory that it speaks of; None: the one to begin with."""
        source = self._source
        config, checkpoint, encoder = load_run(source.run_dir)
        storage, settings = memory_storage(checkpoint, source), config.memory
        generation = generation or first_generation(storage, checkpoint, source)
        backend = source.backend or settings.backend
        memory = open_memory(
            storage.url,
            source.shards or settings.shards,
            settings.index,
            backend="ray" if backend == "ray" else "local",
            generation=generation,
            name=shared_name(storage, source) if backend == "ray" else None,
            partial="allow" if source.partial else "refuse",
            deadline_s=source.deadline_s,
            replicas=source.shard_replicas or settings.replicas,
            recall_share=settings.recall_share,
            target_recall=settings.target_recall or None,
        )
        try:
            encoder.check_fingerprint(memory.manifest.encoder)
        except HmnError:
            memory.close()
            raise
        return _Opened(settings, encoder, checkpoint, storage, memory)

    @contextmanager
    def _use(self) -> Iterator[_Opened]:
        while True:
            opened = self._opened
            with opened.used() as usable:
                if usable:
                    yield opened
                    return
            if opened is self._opened:  # retired without a successor: the engine is closed
                raise Refused("unavailable", "the service is shutting down", 1)

    def _search_and_fetch(
        self, opened: _Opened, query_BD: NDArray[np.float32], k_B: Sequence[int]
    ) -> tuple[TopK, list[Answers], float]:
        """A search and the facts it found, of one generation; begins again where a rollout came in between."""
        memory = opened.memory
        for _ in range(SWITCHES_WAITED_FOR):
            found = _cut(memory.search(query_BD, max(k_B)), k_B)
            searched_s = time.perf_counter()
            try:
                facts = read_facts(memory, found)
            except UnknownFact:
                if memory.generation == found.generation:
                    raise
                continue
            if memory.generation == found.generation:
                return found, facts, searched_s
        raise Refused("unavailable", "the memory changes too quickly at the moment; try again", 1)

    def _describe(self, opened: _Opened) -> Status:
        manifest = opened.memory.manifest
        return Status(
            ready=False,
            generation=manifest.generation,
            created_at=manifest.created_at,
            facts=manifest.fact_count,
            dim=manifest.dim,
            encoder=opened.fingerprint,
            checkpoint_step=opened.checkpoint.step,
            index=opened.settings.index,
            backend=self._source.backend or opened.settings.backend,
        )


def _identity(checkpoint: CheckpointInfo, storage: Storage) -> str:
    """Two runs may end with the same weights over different memories."""
    return f"{checkpoint.checksum} {storage.url}"


def _cut(found: TopK, k_B: Sequence[int]) -> TopK:
    """Each question's own first k; the slots behind them become absent."""
    width = found.fact_ids_BK.shape[1]
    if all(k >= width for k in k_B):
        return found
    beyond_BK = np.arange(width)[None, :] >= np.asarray(k_B)[:, None]
    return replace(
        found,
        fact_ids_BK=np.where(beyond_BK, NO_FACT, found.fact_ids_BK),
        scores_BK=np.where(beyond_BK, -np.inf, found.scores_BK),
    )
