"""One training step: encode questions, search, encode the candidates, softmax, loss, gradients, update."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.mips.workers import InTurn, Workers
from pipeline.features import question_features
from trainer.attention import FactSource, KMipsAttention
from trainer.config import TrainConfig
from trainer.data import Batch
from trainer.encoders.base import Encoder
from trainer.encoders.tables import RowAdagrad
from trainer.extra import Drawn
from trainer.loss import reading_loss

__all__ = ["Optimizers", "StepReport", "training_step"]

_MOST_SIDE_BY_SIDE = 2**14  # candidates: with more, encoding them is nearly all of a step, and takes all threads

Average = Callable[[list[Tensor], dict[str, tuple[Tensor, Tensor]]], dict[str, tuple[Tensor, Tensor]]]
"""Averages gradients over workers: those of the parameters in place; returns the average of the tables' rows."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """loss: of the batch; candidates: facts in the shared softmax; softmax_size: mean over the questions; seconds.

    stages_s: seconds of encode (the questions, to search), search, forward (candidates fetched and encoded, softmax and
    loss), backward and update. retrieved_BK: what the search found; None for a full softmax.
    """

    loss: float
    candidates: int
    softmax_size: float
    step_s: float
    stages_s: Mapping[str, float]
    retrieved_BK: NDArray[np.int64] | None


@dataclass
class _Laps:
    """Seconds by stage; a stage ends where it is named."""

    began_s: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def end(self, stage: str) -> None:
        now_s = time.perf_counter()
        self.seconds[stage] = now_s - self.began_s - sum(self.seconds.values())


class Optimizers:
    """Row-wise Adagrad for the feature tables, Adam for everything else, one linear decay for both."""

    def __init__(self, encoder: Encoder, settings: TrainConfig) -> None:
        # The loss is a mean: a question's share of a gradient shrinks with the batch, and so does what counts as noise.
        self.tables = RowAdagrad(encoder.tables, start=(settings.table_damping / settings.batch_questions) ** 2)
        readers, others = encoder.reader_parameters()
        self.network = torch.optim.Adam([{"params": others}, {"params": readers}], lr=settings.network_rate, fused=True)
        self._table_rate = settings.table_rate
        self._network_rates = (settings.network_rate, settings.reader_rate)

    def zero(self) -> None:
        self.network.zero_grad(set_to_none=True)

    def updates(self, decay: float, average: Average | None, *, shares: int) -> list[Callable[[], None]]:
        """Calls that apply the gradients, in any order or side by side; decay in (0, 1] multiplies all rates."""
        for group, rate in zip(self.network.param_groups, self._network_rates, strict=True):
            group["lr"] = rate * decay
        rows = None
        if average is not None:
            dense = [p.grad for g in self.network.param_groups for p in g["params"] if p.grad is not None]
            rows = average(dense, self.tables.take_gradients())
        return [*self.tables.updates(self._table_rate * decay, rows, shares=shares), self.network.step]


def training_step(
    encoder: Encoder,
    attention: KMipsAttention,
    facts: FactSource,
    batch: Batch,
    optimizers: Optimizers,
    *,
    member: int | None = None,
    decay: float = 1.0,
    feature_dropout: float = 0.0,
    generator: torch.Generator | None = None,
    average: Average | None = None,
    workers: Workers | InTurn,
    drawn: Drawn | None = None,
    corrected: bool = False,
) -> StepReport:
    """Learn from one batch. The encoder and the attention are in training mode.

    member: the member that learns; `facts` are then the facts as it sees them. The search uses the question as it is
    asked, with all its features; the gradient flows through the question with some of its features hidden. Dropout
    draws from `generator` only. workers: do questions and facts side by side. drawn: facts that join the candidates at
    random; corrected: the loss weighs them by the chance that they had.
    """
    laps = _Laps()
    optimizers.zero()
    features = question_features(batch.texts)
    retrieved_BK = None
    if attention.candidates != "full":
        encoder.eval()
        with torch.no_grad():
            asked_BD = encoder.encode_questions(features, member=member)
        encoder.train()
        laps.end("encode")
        retrieved_BK = facts.search(asked_BD.numpy(), attention.k)
        laps.end("search")
    selection = attention.select(facts, batch.gold_BG, retrieved_BK=retrieved_BK, drawn=drawn)
    if len(selection.fact_ids_C) > _MOST_SIDE_BY_SIDE:
        workers = InTurn()
    query_BD, fact_CD = workers.side_by_side(
        [
            partial(
                encoder.encode_questions, features, member=member, feature_dropout=feature_dropout, generator=generator
            ),
            partial(facts.encode, selection.fact_ids_C),
        ]
    )
    # The gradient stops at the vectors, and goes on from there through questions and facts side by side.
    query_leaf_BD, fact_leaf_CD = (vectors.detach().requires_grad_() for vectors in (query_BD, fact_CD))
    reading = attention.read(query_leaf_BD, fact_leaf_CD, selection)
    assert reading.gold_BC is not None, "training batches have gold facts"
    loss = reading_loss(reading.logits_BC, reading.gold_BC, reading.log_chance_C if corrected else None)
    laps.end("forward")
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    workers.side_by_side(
        [
            partial(vectors.backward, leaf.grad)
            for vectors, leaf in ((query_BD, query_leaf_BD), (fact_CD, fact_leaf_CD))
            if vectors.requires_grad
        ]
    )
    laps.end("backward")
    workers.side_by_side(optimizers.updates(decay, average, shares=workers.count))
    laps.end("update")
    return StepReport(
        loss=loss.item(),
        candidates=len(reading.fact_ids_C),
        softmax_size=float(reading.softmax_size_B.mean()),
        step_s=sum(laps.seconds.values()),
        stages_s=laps.seconds,
        retrieved_BK=retrieved_BK,
    )
