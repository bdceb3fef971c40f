"""Evaluation: what a trained run reads for each question of a split, and how often that is right."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.errors import ConfigError, EmptyInput, InputError
from memory_store.memory import Memory
from memory_store.notebook import html_table
from memory_store.progress import Progress, silent
from memory_store.requests import checked_k
from memory_store.storage import Storage, redact
from memory_store.topk import NO_FACT
from pipeline.sources.questions import read_questions
from trainer.asked import Rejected, questions_of
from trainer.data import Paths, Questions
from trainer.encoders.base import Encoder
from trainer.metrics import gold_ranks, of_mean, wilson
from trainer.missing import question_words
from trainer.report.write import write_report
from trainer.run import open_run

# Q questions, K facts retrieved per question, G gold facts of a question (padded with -1)

__all__ = ["Evaluation", "RightAnswer", "Score", "WrongAnswer", "evaluate", "evaluate_questions"]

_QUESTIONS_AT_ONCE = 512
_READ_COLUMNS = ("fact_id", "subject_id", "subject", "relation", "object_ids")
_RIGHT_SHOWN = 100  # right answers that are kept; of the wrong ones all are
_OBJECTS_SHOWN = 4  # some facts lead to hundreds


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares in [0, 1] of `questions` questions.

    path_accuracy: the fact read has the question's subject and relation. fact_accuracy: it is a gold fact (the same
    thing where facts are grouped by relation). answer_accuracy: it leads to the question's answer, by whatever path.
    recall: a gold fact is among the K retrieved. mrr: mean of 1 / rank of the first gold fact, 0 beyond K.
    intervals: of each of these, by name, the 95 % interval (Wilson's for shares, the normal one for the mean).
    """

    questions: int
    path_accuracy: float
    fact_accuracy: float
    answer_accuracy: float
    recall: float
    mrr: float
    intervals: Mapping[str, tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of path_accuracy."""
        return self.intervals["path_accuracy"]


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """A question that was answered by another path than the gold one, and what was read instead.

    read_objects: the first few names, or ids, of what the fact read leads to.
    """

    question: str
    gold_subject_id: str
    gold_subject: str | None
    gold_relation: str
    read_subject_id: str | None
    read_subject: str | None
    read_relation: str | None
    read_objects: tuple[str, ...]
    gold_rank: int | None  # from 1; None: not among the K retrieved

    @property
    def read_a_namesake(self) -> bool:
        """Whether another subject of the very name that was meant was read: the question tells them not apart."""
        return self.read_subject == self.gold_subject is not None and self.read_subject_id != self.gold_subject_id


@dataclass(frozen=True, kw_only=True)
class RightAnswer:
    """A question that was answered by the gold path, and what was read."""

    question: str
    read_subject_id: str | None
    read_subject: str | None
    read_relation: str | None
    read_objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `hmn evaluate` shows. softmax_size: mean facts under a question's softmax; relations: scores by relation.

    questions_by_rank: how many questions have their first gold fact at rank 1, 2, ... K. wrong: all of them; right:
    some, from all over the split.
    """

    split: str
    source: str | None  # of the questions, where they are not the run's own
    k: int
    generation: int
    softmax_size: float
    missing: int  # questions whose gold path the memory does not hold; they count as wrong
    missing_example: str | None  # one of them
    overall: Score
    relations: Mapping[str, Score]
    questions_by_rank: tuple[int, ...]
    wrong: tuple[WrongAnswer, ...]
    right: tuple[RightAnswer, ...]
    rejected: Rejected = field(default_factory=Rejected)  # rows of the split that cannot be asked, and are not counted

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __repr__(self) -> str:
        low, high = self.overall.interval
        return (
            f"Evaluation(split={self.split!r}, k={self.k}, questions={self.overall.questions:,}, "
            f"path_accuracy={self.overall.path_accuracy:.4f} ({low:.4f} to {high:.4f}), "
            f"recall={self.overall.recall:.4f})"
        )

    def _repr_html_(self) -> str:
        most = sorted(self.relations.items(), key=lambda item: (-item[1].questions, item[0]))[:10]
        rows = [
            (name, f"{score.questions:,}", f"{score.path_accuracy:.1%}", "{:.1%} – {:.1%}".format(*score.interval))
            for name, score in [("all relations", self.overall), *most]
        ]
        return html_table(f"{self.split}, k = {self.k}", ("relation", "questions", "right path", "95 % interval"), rows)

    def table(self, relations: int = 20) -> str:
        """A readable table: all questions, then the relations asked about most."""
        shown = sorted(self.relations.items(), key=lambda item: (-item[1].questions, item[0]))[:relations]
        width = max([len("all relations"), *(len(name) for name, _ in shown)])
        header = f"{'':{width}}  {'asked':>6}  {'path':>6}  {'95 % interval':>15}  {'answer':>6}  "
        lines = [f"{header}{f'recall@{self.k}':>9}  {'MRR':>5}"]
        for name, score in [("all relations", self.overall), *shown]:
            low, high = score.interval
            lines.append(
                f"{name:{width}}  {score.questions:6,}  {100 * score.path_accuracy:5.1f}%  "
                f"{100 * low:5.1f}% - {100 * high:4.1f}%  {100 * score.answer_accuracy:5.1f}%  "
                f"{100 * score.recall:8.1f}%  {score.mrr:5.3f}"
            )
        return "\n".join(lines)


def evaluate(
    run_dir: str | Path,
    split: str = "valid",
    *,
    questions: str | None = None,
    k: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a run's newest checkpoint on a split of its questions; also writes evaluation-<split>.json there, and
    the run's report anew.

    questions: asked as this split instead of the run's own, as read_questions reads them; a single file is this split.
    The memory is served in the generation that the checkpoint names. Raises ConfigError for a directory without a
    checkpoint, and for the questions of training under the name of another split; EmptyInput for a split without
    questions.
    """
    with open_run(run_dir) as run:
        own, storage = run.config.data.questions, Storage(str(run_dir))
        table, rejected = (
            questions_of(own, split, storage) if questions is None else _other_questions(questions, split, own, storage)
        )
        found = evaluate_questions(
            run.memory,
            run.encoder,
            Questions.of(table),
            split=split,
            k=run.config.train.k if k is None else k,
            progress=progress,
        )
        found = replace(found, source=None if questions is None else redact(questions), rejected=rejected)
    content = json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n"
    storage.write_atomic(f"evaluation-{split}.json", content.encode())
    write_report(run_dir)
    return found


def _other_questions(source: str, split: str, own: str, run: Storage) -> tuple[pa.Table, Rejected]:
    """Questions of this split that are not those which the run was trained on, unless that split is asked for."""
    table, rejected = questions_of(source, split, run, alone_is=split)
    if split != "train":
        with suppress(InputError):  # the run's own may be gone: then there is nothing to compare with
            trained = read_questions(own, "train", rejected=[])
            if table.equals(trained):
                raise ConfigError(
                    f"expected questions of split {split!r}, found those of training in {redact(source)}; name others, "
                    "or add --split train"
                )
    return table, rejected


def evaluate_questions(
    memory: Memory, encoder: Encoder, questions: Questions, *, split: str, k: int, progress: Progress = silent
) -> Evaluation:
    """Evaluate an encoder over an open memory that it embedded."""
    k = checked_k(k)
    if not len(questions):
        raise EmptyInput(f"expected questions to evaluate on, found none in split {split!r}")
    paths = Paths.scan(Storage(memory.url), memory.manifest)
    gold_QG = paths.gold(questions.key_Q)
    texts = questions.texts
    retrieved = []
    was_training = encoder.training
    encoder.eval()
    for start in range(0, len(texts), _QUESTIONS_AT_ONCE):
        query_BD = encoder.ask(texts[start : start + _QUESTIONS_AT_ONCE])
        retrieved.append(memory.search(query_BD.numpy(), k).fact_ids_BK)
        progress("evaluate", min(start + _QUESTIONS_AT_ONCE, len(texts)), len(texts), unit="questions")
    encoder.train(was_training)
    ids_QK = np.concatenate(retrieved)
    return _judge(memory, questions, gold_QG, ids_QK, split=split)


def _judge(
    memory: Memory, questions: Questions, gold_QG: NDArray[np.int64], ids_QK: NDArray[np.int64], *, split: str
) -> Evaluation:
    read = memory.fetch(ids_QK[:, 0], _READ_COLUMNS)
    table = questions.table
    same_subject_Q = np.asarray(pc.equal(read["subject_id"], table["subject_id"]).fill_null(False))
    path_Q = same_subject_Q & np.asarray(pc.equal(read["relation"], table["relation"]).fill_null(False))
    rank_Q = gold_ranks(ids_QK, gold_QG)
    found_Q = rank_Q > 0
    missing_at = np.flatnonzero((gold_QG < 0).all(axis=1))
    answer_Q = _leads_to(read["object_ids"], table["object_id"])
    judged = {
        "path": path_Q,
        "fact": rank_Q == 1,
        "answer": answer_Q,
        "recall": found_Q,
        "mrr": np.where(found_Q, 1 / np.maximum(rank_Q, 1), 0.0),
    }
    relation_Q = np.asarray(table["relation"].to_pylist(), dtype=object)
    relations = {
        str(relation): _score({name: value[relation_Q == relation] for name, value in judged.items()})
        for relation in np.unique(relation_Q)
    }
    return Evaluation(
        split=split,
        source=None,
        k=ids_QK.shape[1],
        generation=memory.generation,
        softmax_size=float((ids_QK >= 0).sum(axis=1).mean()),
        missing=len(missing_at),
        missing_example=question_words(table.take(pa.array(missing_at[:1])).to_pylist()[0])
        if len(missing_at)
        else None,
        overall=_score(judged),
        relations=relations,
        questions_by_rank=tuple(np.bincount(rank_Q, minlength=ids_QK.shape[1] + 1)[1:].tolist()),
        wrong=_wrong(memory, table, ids_QK, gold_QG, path_Q, rank_Q),
        right=_right(memory, table, ids_QK, path_Q),
    )


def _leads_to(object_ids: pa.ChunkedArray, answer: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether each list of objects holds the question's answer; False where the question does not say it."""
    pairs = zip(object_ids.to_pylist(), answer.to_pylist(), strict=True)
    return np.fromiter((wanted is not None and wanted in (held or ()) for held, wanted in pairs), np.bool_)


def _score(judged: dict[str, NDArray[Any]]) -> Score:
    asked = len(judged["path"])
    shares = {
        "path_accuracy": judged["path"],
        "fact_accuracy": judged["fact"],
        "answer_accuracy": judged["answer"],
        "recall": judged["recall"],
    }
    intervals = {name: wilson(int(value_Q.sum()), asked) for name, value_Q in shares.items()}
    return Score(
        questions=asked,
        **{name: float(value_Q.mean()) for name, value_Q in shares.items()},
        mrr=float(judged["mrr"].mean()),
        intervals=intervals | {"mrr": of_mean(judged["mrr"])},
    )


def _wrong(
    memory: Memory,
    table: pa.Table,
    ids_QK: NDArray[np.int64],
    gold_QG: NDArray[np.int64],
    path_Q: NDArray[np.bool_],
    rank_Q: NDArray[np.int64],
) -> tuple[WrongAnswer, ...]:
    at = np.flatnonzero(~path_Q)
    gold_at = gold_QG[at, 0] if gold_QG.shape[1] else np.full(len(at), NO_FACT)
    held_at = gold_at >= 0
    names = iter(memory.fetch(gold_at[held_at], ["subject"])["subject"].to_pylist())
    return tuple(
        WrongAnswer(
            question=question["question"],
            gold_subject_id=question["subject_id"],
            gold_subject=next(names) if held else None,
            gold_relation=question["relation"],
            gold_rank=int(rank) or None,
            **read,
        )
        for question, read, held, rank in zip(
            table.take(pa.array(at)).to_pylist(), _read(memory, ids_QK[at, 0]), held_at, rank_Q[at], strict=True
        )
    )


def _right(
    memory: Memory, table: pa.Table, ids_QK: NDArray[np.int64], path_Q: NDArray[np.bool_]
) -> tuple[RightAnswer, ...]:
    every = np.flatnonzero(path_Q)
    at = every[np.linspace(0, len(every) - 1, min(_RIGHT_SHOWN, len(every))).astype(np.int64)]
    texts = table["question"].take(pa.array(at)).to_pylist()
    read = _read(memory, ids_QK[at, 0])
    return tuple(RightAnswer(question=text, **fact) for text, fact in zip(texts, read, strict=True))


def _read(memory: Memory, fact_ids: NDArray[np.int64]) -> list[dict[str, Any]]:
    """What answers tell of the facts they read."""
    rows = memory.fetch(fact_ids, ["subject_id", "subject", "relation", "object_ids", "objects"]).to_pylist()
    return [
        {
            "read_subject_id": row["subject_id"],
            "read_subject": row["subject"],
            "read_relation": row["relation"],
            "read_objects": tuple(
                name or identity
                for name, identity in zip(
                    (row["objects"] or row["object_ids"] or ())[:_OBJECTS_SHOWN],
                    (row["object_ids"] or ())[:_OBJECTS_SHOWN],
                    strict=True,
                )
            ),
        }
        for row in rows
    ]
