"""Refreshing a memory while a model trains: embed, commit, switch, sweep. The old generation serves meanwhile."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray

from memory_store.memory import Memory
from memory_store.storage import Storage
from memory_store.upkeep import pin, sweep, unpin
from pipeline.embed import embed
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FactFeatures
from trainer.process import give_memory_back

# N facts of a part, D dimension

__all__ = ["FactEmbedder", "Refresher"]

_REMEMBERED_FACTS = 4_000_000  # about 1 GiB of features at the most; a larger memory is read again at every refresh


class FactEmbedder:
    """Facts tables to vectors by an encoder as it is now; remembers the features of parts it has seen.

    member: the member of the encoder that is asked, or all. remember: of so many facts at most; 0 where every part is
    seen once.
    """

    def __init__(self, encoder: Encoder, *, remember: int = _REMEMBERED_FACTS) -> None:
        self.member: int | None = None
        self._encoder = encoder
        self._remember = remember
        self._remembered: dict[str, FactFeatures] = {}
        self._used: set[str] = set()  # since the last `forget_unused`

    def of(self, encoder: Encoder, member: int | None) -> "FactEmbedder":
        """The same facts, remembered once, by another encoder."""
        other = copy.copy(self)
        other._encoder, other.member = encoder, member
        return other

    def __call__(self, facts: pa.Table) -> NDArray[np.float32]:
        """float32 [N, D], one vector per fact."""
        features = self._features(facts)
        was_training = self._encoder.training
        self._encoder.eval()
        with torch.no_grad():
            fact_ND = self._encoder.encode_facts(features, member=self.member).numpy()
        self._encoder.train(was_training)
        return fact_ND

    def forget_unused(self) -> None:
        """After all facts were embedded: forget parts that were not among them, which others replaced."""
        if self._used:  # else nothing was embedded, as the memory was up to date
            for key in self._remembered.keys() - self._used:
                del self._remembered[key]
            self._used.clear()

    def _features(self, facts: pa.Table) -> FactFeatures:
        if self._remember == 0:
            return FactFeatures.from_table(facts)
        key = _content(facts["features"])
        self._used.add(key)
        if key not in self._remembered:
            features = FactFeatures.from_table(facts)
            if sum(map(len, self._remembered.values())) + len(features) > self._remember:
                return features
            self._remembered[key] = features
        return self._remembered[key]


def _content(features: pa.ChunkedArray) -> str:
    """Names what the column holds. An upsert may give a fact other names under its id, so the ids would not do."""
    digest = xxhash.xxh3_128()
    for chunk in features.chunks:
        digest.update(f"{chunk.offset} {len(chunk)}".encode())
        for buffer in chunk.buffers():
            digest.update(b"-" if buffer is None else buffer)
    return digest.hexdigest()


class _Abandoned(Exception):
    """Nobody waits for this refresh any more."""


class Refresher:
    """Keeps a memory's vectors in step with an encoder that learns.

    name: of the run. The generations that its refreshes made are swept once they are superseded, unless a checkpoint
    pins them, and nobody else's are.
    """

    def __init__(self, memory: Memory, encoder: Encoder, *, name: str, dtype: str) -> None:
        self._memory = memory
        self._encoder = encoder
        self._embedder = FactEmbedder(encoder)
        self._storage = Storage(memory.url)
        self._note = f"refresh of {name}"
        self._coming = f"{name}-coming"
        self._dtype = dtype
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="hmn-refresh")
        self._begun: Future[int] | None = None
        self._is_abandoned = False

    def refresh(self, committed: Callable[[int], None] | None = None, *, member: int | None = None) -> int:
        """Embed all facts as the encoder, or one member of it, is now; commit, serve; returns the generation."""
        self._embedder.member = member
        generation = self._embed(self._encoder, self._embedder, member)
        if committed is not None:
            committed(generation)
        return self._serve(generation)

    def begin(self, *, member: int | None = None, save: Callable[[Encoder, int], None] | None = None) -> None:
        """Start to embed all facts as the encoder is now, by a copy of it, beside whatever comes next.

        The generation is committed when it is done, pinned and loaded, and served from `take_over` on. One at a time.
        save: called first, there, with the copy and a generation that all its members embedded.
        """
        assert self._begun is None, "the one before is taken over first"
        encoder = copy.deepcopy(self._encoder).eval()

        def work() -> int:
            if save is not None:
                save(encoder, self._embed(encoder, self._embedder.of(encoder, None), None))
            generation = self._embed(encoder, self._embedder.of(encoder, member), member)
            pin(self._storage, self._coming, generation)  # others may commit, and sweep, before it is taken over
            self._memory.prepare(generation)
            return generation

        self._begun = self._beside.submit(work)

    def is_ready(self) -> bool:
        """Whether `take_over` would return, or raise, at once."""
        return self._begun is not None and self._begun.done()

    def take_over(self) -> int:
        """Serve what `begin` started, waiting for it if need be; returns the generation. Raises what it met."""
        assert self._begun is not None, "something was begun"
        begun, self._begun = self._begun, None
        generation = self._serve(begun.result())
        unpin(self._storage, self._coming)
        return generation

    def abandon(self) -> None:
        """End what was begun, after the part of facts that it is at: its result is not wanted. Raises what it met."""
        begun, self._begun = self._begun, None
        self._is_abandoned = True
        try:
            if begun is not None:
                begun.result()
        except _Abandoned:
            pass
        finally:
            self._is_abandoned = False
            unpin(self._storage, self._coming)

    def close(self) -> None:
        """End what was begun and not taken over, after the part of facts that it is at; it commits nothing."""
        self._is_abandoned = True
        self._beside.shutdown(wait=True)
        unpin(self._storage, self._coming)

    def _embed(self, encoder: Encoder, embedder: FactEmbedder, member: int | None) -> int:
        done = embed(
            self._memory.url,
            lambda: embedder,
            fingerprint=encoder.fingerprint(member),
            dim=encoder.dim_of(member),
            dtype=self._dtype,
            note=self._note,
            progress=self._go_on,
        )
        embedder.forget_unused()
        return done.generation

    def _go_on(self, task: str, done: int, total: int | None = None, **_: str) -> None:
        if self._is_abandoned:
            raise _Abandoned

    def _serve(self, generation: int) -> int:
        self._memory.refresh(generation)
        self._memory.release_others()
        give_memory_back()
        return generation

    def sweep(self) -> None:
        """Delete the generations of this run that are superseded; pinned and current ones stay."""
        sweep(self._storage, keep_last=1, only_note=self._note)
