"""Asking a trained run: text in, facts out."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from memory_store.errors import ConfigError
from memory_store.memory import Memory
from memory_store.notebook import html_table
from memory_store.requests import checked_k
from memory_store.topk import TopK
from trainer.encoders.base import Encoder
from trainer.run import open_run

# B questions, K facts read

__all__ = ["Answer", "Answerer", "Answers", "answer_questions", "read_facts"]

_OBJECTS_SHOWN = 6

_COLUMNS = ("fact_id", "subject_id", "subject", "relation", "object_ids", "objects")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One fact that was read. weight: its share of the attention, the K weights of a question sum to 1.

    objects: names of the answers, or their ids where they have no name.
    """

    fact_id: int
    subject_id: str | None
    subject: str | None
    relation: str | None
    objects: tuple[str, ...]
    object_ids: tuple[str, ...]
    score: float
    weight: float


class Answers(list[Answer]):
    """What was read for one question, best first; a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{one.weight:.2f}",
                one.subject or one.subject_id or one.fact_id,
                one.relation or "–",
                _shown(one.objects),
            )
            for one in self
        ]
        return html_table("read, best first", ("weight", "subject", "relation", "leads to"), rows)


class Answerer:
    """Answers questions from a run; opens its memory once. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        run_dir: str | Path,
        *,
        memory: str | None = None,
        generation: int | None = None,
        backend: str | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._run = self._stack.enter_context(open_run(run_dir, memory=memory, generation=generation, backend=backend))

    @property
    def memory(self) -> Memory:
        """The memory that is read."""
        return self._run.memory

    def ask(self, text: str, k: int = 3) -> Answers:
        """The k facts that answer the question best, best first.

        Raises ConfigError for an empty question, and for what is no text: `ask_many` takes several.
        """
        if not isinstance(text, str):
            raise ConfigError(f"expected one question as text, found {type(text).__name__}; ask_many takes several")
        return self.ask_many([text], k)[0]

    def ask_many(self, texts: Sequence[str], k: int = 3) -> list[Answers]:
        """`ask` for several questions at once: one search, an Answers for each, in their order."""
        return answer_questions(self._run.memory, self._run.encoder, texts, k)

    def __repr__(self) -> str:
        return f"Answerer({self._run!r})"

    def close(self) -> None:
        """Close the memory. Safe to call twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer_questions(memory: Memory, encoder: Encoder, texts: Sequence[str], k: int = 3) -> list[Answers]:
    """The k facts that an encoder reads for each question, best first."""
    k = checked_k(k)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ConfigError(f"expected a list of questions, found {type(texts).__name__}; put it in a list")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"expected questions as texts, found {type(text).__name__} among them; leave it out")
        if not text.strip():
            raise ConfigError("expected a question, found an empty text")
    if not texts:
        return []
    return read_facts(memory, memory.search(encoder.ask(texts).numpy(), k))


def read_facts(memory: Memory, found: TopK) -> list[Answers]:
    """The facts that a search found, fetched and weighed: per question, best first. Raises UnknownFact."""
    held_BK = found.fact_ids_BK >= 0
    rows = iter(memory.fetch(found.fact_ids_BK[held_BK], _COLUMNS).to_pylist())
    answers = []
    for scores_K, held_K in zip(found.scores_BK, held_BK, strict=True):
        kept_K = scores_K[held_K].astype(np.float64)
        weights_K = np.exp(kept_K - kept_K.max()) if len(kept_K) else kept_K
        total = weights_K.sum()
        answers.append(
            Answers(
                _answer(next(rows), float(score), float(weight / total))
                for score, weight in zip(kept_K, weights_K, strict=True)
            )
        )
    return answers


def _answer(row: dict[str, object], score: float, weight: float) -> Answer:
    object_ids = [str(one) for one in _items(row["object_ids"])]
    names = [None if one is None else str(one) for one in _items(row["objects"])] or [None] * len(object_ids)
    return Answer(
        fact_id=int(str(row["fact_id"])),
        subject_id=_text(row["subject_id"]),
        subject=_text(row["subject"]),
        relation=_text(row["relation"]),
        objects=tuple(name or identity for name, identity in zip(names, object_ids, strict=True)),
        object_ids=tuple(object_ids),
        score=score,
        weight=weight,
    )


def _shown(objects: Sequence[str]) -> str:
    more = len(objects) - _OBJECTS_SHOWN
    return ", ".join(objects[:_OBJECTS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)
