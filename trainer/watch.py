"""What a run records while it trains: lines of metrics, time by stage, and what a stale memory still finds."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.memory import Memory
from pipeline.features import QuestionFeatures, question_features
from trainer.asked import held_out_questions
from trainer.data import Batch, Paths, Questions
from trainer.metrics import MetricsStream, among, gold_ranks
from trainer.staleness import Staleness
from trainer.step import StepReport

# B questions of a batch, Q questions of the sample, K facts retrieved per question, G gold facts of a question

__all__ = ["REPORT_EVERY_STEPS", "Sample", "Watch"]

REPORT_EVERY_STEPS = 10
_SAMPLE_QUESTIONS = 128

Encode = Callable[[QuestionFeatures], Tensor]
"""Questions to query_BD, with the model as it is."""


class Sample:
    """Questions that are asked again at every refresh, held out of training where the data has a valid split."""

    def __init__(self, questions: Questions, gold_QG: NDArray[np.int64], *, held_out: bool) -> None:
        self.features = question_features(questions.texts)
        self.gold_QG = gold_QG
        self.held_out = held_out

    @classmethod
    def draw(
        cls, source: str, train: Questions, paths: Paths, seed: int, questions: int = _SAMPLE_QUESTIONS
    ) -> "Sample":
        """Some of the questions whose facts the memory holds; the same for every run of a seed."""
        valid = held_out_questions(source, train, paths)
        chosen = train.held(paths) if valid is None else valid
        order_Q = np.random.default_rng([seed, len(chosen)]).permutation(len(chosen))
        sampled = chosen.take(np.sort(order_Q[:questions]))
        return cls(sampled, paths.gold(sampled.key_Q), held_out=valid is not None)


class Watch:
    """Writes metrics.jsonl for the one process that reports.

    A line "train" every few steps: loss, candidates, softmax_size of that step; accuracy and recall are the shares of
    its questions whose gold fact the memory, as stale as it then was, returned first and among the K; stale_steps: the
    steps since the memory was embedded; drift and index_recall, where a policy measures them, as trainer.staleness
    found them last. Its timing is the mean of the steps since the line before, by stage.
    A line "refresh" at every refresh: accuracy and recall of the sample with the new vectors; stale_accuracy and
    stale_recall with the vectors that were served until then; overlap: mean share of the K facts that the new vectors
    find which the old ones found too (the recall of the stale index); made_at: the step whose model made the vectors.
    The timing of both has the generation that was searched as well, as that may differ between two runs of one seed.
    """

    def __init__(self, run_dir: Path, sample: Sample, *, k: int, resume_step: int, fresh_at: int) -> None:
        self._stream = MetricsStream(run_dir, resume_step=resume_step)
        self._sample = sample
        self._k = k
        self._resume_step = resume_step
        self._spent_s: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._stale_QK: NDArray[np.int64] | None = None
        self._refresh_began_s = 0.0
        self._fresh_at = fresh_at
        self._staleness: Staleness | None = None

    def step(self, done: int, report: StepReport, batch: Batch, batch_s: float, *, generation: int, last: bool) -> bool:
        """Count a step in; whether it was one that is written.

        batch_s: what making the batch took. generation: that the step searched.
        """
        for stage, spent_s in {**report.stages_s, "batch": batch_s, "step": report.step_s}.items():
            self._spent_s[stage] += spent_s
        self._steps += 1
        if done % REPORT_EVERY_STEPS and not last:
            return False
        values: dict[str, float] = {
            "loss": report.loss,
            "candidates": report.candidates,
            "softmax_size": report.softmax_size,
            "stale_steps": done - 1 - self._fresh_at,
        }
        if self._staleness is not None:
            values |= {"drift": self._staleness.drift, "index_recall": self._staleness.recall}
        if report.retrieved_BK is not None:
            values |= _shares("", gold_ranks(report.retrieved_BK, batch.gold_BG))
        timing = {f"{name}_s": spent_s / self._steps for name, spent_s in self._spent_s.items()}
        self._stream.write("train", done, values, {**timing, "generation": generation})
        self._spent_s.clear()
        self._steps = 0
        return True

    def measured(self, found: Staleness) -> None:
        """Note how stale the memory was found."""
        self._staleness = found

    def before_refresh(self, memory: Memory, encode: Encode | None) -> None:
        """Ask the sample while the vectors are still the old ones; None where they are not of the model that learns."""
        self._stale_QK = None if encode is None else self._ask(memory, encode)
        self._refresh_began_s = time.perf_counter()

    def refreshed(self, step: int, memory: Memory, encode: Encode, *, as_of: int | None = None) -> None:
        """Ask it again, before the checkpoint of this step: a resumed run has the lines up to its checkpoint.

        as_of: the step whose model made the vectors, where that was an earlier one.
        """
        refresh_s = time.perf_counter() - self._refresh_began_s
        self._fresh_at = step if as_of is None else as_of
        if step == self._resume_step and step > 0:
            return  # written by the run that was interrupted
        fresh_QK = self._ask(memory, encode)
        values: dict[str, float] = {
            "questions": len(fresh_QK),
            "held_out": int(self._sample.held_out),
            "facts": len(memory),
            "made_at": self._fresh_at,
        }
        values |= _shares("", gold_ranks(fresh_QK, self._sample.gold_QG))
        if self._stale_QK is not None:
            values |= _shares("stale_", gold_ranks(self._stale_QK, self._sample.gold_QG))
            both_QK = among(fresh_QK, self._stale_QK)
            values["overlap"] = float(both_QK.sum() / max(1, (fresh_QK >= 0).sum()))
        self._stream.write("refresh", step, values, {"refresh_s": refresh_s, "generation": memory.generation})

    def close(self) -> None:
        self._stream.close()

    def _ask(self, memory: Memory, encode: Encode) -> NDArray[np.int64]:
        with torch.no_grad():
            query_QD = encode(self._sample.features)
        return memory.search(query_QD.numpy(), self._k).fact_ids_BK


def _shares(prefix: str, rank_Q: NDArray[np.int64]) -> dict[str, float]:
    return {f"{prefix}accuracy": float((rank_Q == 1).mean()), f"{prefix}recall": float((rank_Q > 0).mean())}
