"""What a run asks: how many of its training questions the memory can answer, and whether others are held out."""

import json
from dataclasses import asdict, dataclass

import numpy as np

from memory_store.errors import EmptyInput
from memory_store.storage import Storage
from pipeline.sources.questions import read_questions
from trainer.data import Paths, Questions
from trainer.missing import missing_words, question_words

__all__ = ["Asked", "held_out_questions"]

_FILE = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """questions: of training, in all. missing: those among them whose facts the memory does not hold, which are left
    out; missing_example: one of them. held_out: whether there are valid questions that training does not ask.
    """

    questions: int
    missing: int
    missing_example: str | None
    held_out: bool

    @classmethod
    def of(cls, train: Questions, paths: Paths, *, held_out: bool) -> "Asked":
        missing_at = np.flatnonzero(~np.isin(train.key_Q, paths.key_P))
        return cls(
            questions=len(train),
            missing=len(missing_at),
            missing_example=question_words(train.take(missing_at[:1]).table.to_pylist()[0])
            if len(missing_at)
            else None,
            held_out=held_out,
        )

    @classmethod
    def load(cls, run: Storage) -> "Asked":
        """What `save` wrote to this run directory."""
        return cls(**json.loads(run.read_bytes(_FILE)))

    def save(self, run: Storage) -> None:
        """For the process that started the workers, which may not have the questions."""
        run.write_atomic(_FILE, json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n")

    @property
    def missing_words(self) -> str:
        """For a person; "" where none is missing."""
        return missing_words(self.missing, self.questions, kind="training", example=self.missing_example)


def held_out_questions(source: str, train: Questions, paths: Paths) -> Questions | None:
    """The valid questions whose facts the memory holds; None without any, or where they are those of training.

    Raises InputError for a valid file that cannot be read: better now than when the run is evaluated.
    """
    try:
        table = read_questions(source, "valid")
    except EmptyInput:  # there is no such split
        return None
    if table.equals(train.table):  # the same questions under another name
        return None
    held = Questions.of(table).held(paths)
    return held if len(held) else None
