"""What a run asks: the rows that are questions, how many of those the memory can answer, and whether others are held
out."""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from memory_store.errors import EmptyInput
from memory_store.storage import Storage
from pipeline.quarantine import QUARANTINE, write_quarantine
from pipeline.sources.questions import RejectedQuestion, read_questions
from trainer.data import Paths, Questions
from trainer.missing import missing_words, question_words

__all__ = ["Asked", "Rejected", "held_out_questions", "questions_of"]

_FILE = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Rows of a split that cannot be asked, which are left out. quarantine: the file that holds them all."""

    rows: int = 0
    first: str | None = None  # file, line and reason
    quarantine: str | None = None

    @property
    def words(self) -> str:
        """For a person; "" where there are none."""
        if not self.rows:
            return ""
        rows = "1 row of questions was" if self.rows == 1 else f"{self.rows:,} rows of questions were"
        return f"{rows} rejected ({self.first}); see {self.quarantine}"


def questions_of(
    source: str, split: str, run: Storage, *, alone_is: str = "train", write: bool = True
) -> tuple[pa.Table, Rejected]:
    """The questions of a split, and the rows that are none, which go to quarantine in the run's directory.

    What an earlier call put there is replaced. write: whether they go there; one of several workers writes. Raises as
    `read_questions` does, for files as a whole.
    """
    found: list[RejectedQuestion] = []
    table = read_questions(source, split, alone_is=alone_is, rejected=found)
    name = f"questions-{split}"
    if not found:
        if write:
            run.delete(f"{QUARANTINE}/{name}.jsonl")
        return table, Rejected()
    if write:
        write_quarantine(
            run, name, ((one.file, {"line": one.line, "reason": one.reason, "raw": one.raw}) for one in found)
        )
    first = f"the first is {found[0].file}, line {found[0].line}: {found[0].reason}"
    return table, Rejected(rows=len(found), first=first, quarantine=f"{run.shown}/{QUARANTINE}/{name}.jsonl")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """questions: of training, in all. rejected: rows of training that are none. missing: questions whose facts the
    memory does not hold, which are left out; missing_example: one of them. held_out: whether there are valid questions
    that training does not ask.
    """

    questions: int
    missing: int
    missing_example: str | None
    held_out: bool
    rejected: Rejected = field(default_factory=Rejected)

    @classmethod
    def of(cls, train: Questions, paths: Paths, *, held_out: bool, rejected: Rejected) -> "Asked":
        missing_at = np.flatnonzero(~np.isin(train.key_Q, paths.key_P))
        return cls(
            questions=len(train),
            missing=len(missing_at),
            missing_example=question_words(train.take(missing_at[:1]).table.to_pylist()[0])
            if len(missing_at)
            else None,
            held_out=held_out,
            rejected=rejected,
        )

    @classmethod
    def load(cls, run: Storage) -> "Asked":
        """What `save` wrote to this run directory."""
        found = json.loads(run.read_bytes(_FILE))
        return cls(**{**found, "rejected": Rejected(**found.get("rejected", {}))})

    def save(self, run: Storage) -> None:
        """For the process that started the workers, which may not have the questions."""
        run.write_atomic(_FILE, json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n")

    @property
    def missing_words(self) -> str:
        """For a person; "" where none is missing."""
        return missing_words(self.missing, self.questions, kind="training", example=self.missing_example)


def held_out_questions(source: str, train: Questions, paths: Paths) -> Questions | None:
    """The valid questions whose facts the memory holds; None without any, or where they are those of training.

    Rows that cannot be asked are left out here too; the evaluation says which. Raises InputError for a valid file that
    cannot be read: better now than when the run is evaluated.
    """
    rejected: list[RejectedQuestion] = []
    try:
        table = read_questions(source, "valid", rejected=rejected)
    except EmptyInput:
        if rejected:  # it is there, and nothing in it is a question
            raise
        return None
    if table.equals(train.table):  # the same questions under another name
        return None
    held = Questions.of(table).held(paths)
    return held if len(held) else None
