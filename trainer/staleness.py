"""How stale a memory is while its model learns, on a sample; and when that is enough to embed it again."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.memory import Memory
from memory_store.topk import NO_FACT, select
from trainer.metrics import among
from trainer.sources import EncodedFacts

# Q questions, K facts per question, W facts retrieved for each, C for all, c of these in a sample, D dimension

__all__ = ["SAMPLE_QUESTIONS", "RefreshPolicy", "Staleness", "measure_staleness"]

SAMPLE_QUESTIONS = 32
_SAMPLE_FACTS = 256
_TIMES = 8  # facts retrieved per question, times k: of these the best k by fresh vectors are the truth


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """drift: mean distance of sampled facts from their stored vectors, as a share of the mean stored norm.

    recall: of the k best facts by fresh vectors among 8 k that the stored ones find, the share that is in the stored
    ones' best k. What lies beyond the 8 k is not seen, so the true recall may be a little less.
    """

    drift: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class RefreshPolicy:
    """most_drift, least_recall: beyond which the memory is embedded again; 0 for never. Pure."""

    most_drift: float
    least_recall: float
    check_every_steps: int

    def is_checked_at(self, step: int) -> bool:
        """Whether staleness is measured before this step."""
        return (self.most_drift > 0 or self.least_recall > 0) and step % self.check_every_steps == 0

    def is_due(self, found: Staleness) -> bool:
        """Whether the memory is too stale to go on with."""
        return 0 < self.most_drift < found.drift or found.recall < self.least_recall


def measure_staleness(
    memory: Memory,
    facts: EncodedFacts,
    encode_questions: Callable[[], Tensor],
    k: int,
    *,
    seed: int,
) -> Staleness:
    """Hold a sample of facts, and what some questions find, against the model as it is.

    facts: encodes them as the model is now, which must be in evaluation mode. encode_questions: the questions' vectors
    [Q, D]. The sample is of the facts that the questions find, and the same for the same seed.
    """
    with torch.no_grad():
        query_QD = encode_questions().numpy()
        stale_QW = memory.search(query_QD, _TIMES * k).fact_ids_BK
        ids_C = np.unique(stale_QW[stale_QW != NO_FACT])
        fresh_CD = facts.encode(ids_C).numpy().astype(np.float64)
    sample_c = np.random.default_rng(seed).permutation(len(ids_C))[:_SAMPLE_FACTS]
    stored_cD = memory.vectors(ids_C[sample_c]).astype(np.float64)
    moved = float(np.linalg.norm(fresh_CD[sample_c] - stored_cD, axis=1).mean())
    norm = float(np.linalg.norm(stored_cD, axis=1).mean())
    score_QC = query_QD.astype(np.float64) @ fresh_CD.T
    place_QW = np.searchsorted(ids_C, stale_QW).clip(max=len(ids_C) - 1)
    fresh_QW = np.where(stale_QW != NO_FACT, np.take_along_axis(score_QC, place_QW, axis=1), -np.inf)
    return Staleness(
        drift=moved / norm if norm > 0 else float("inf"),
        recall=_shared(select(stale_QW, fresh_QW, k).fact_ids_BK, stale_QW[:, :k]),
    )


def _shared(wanted_QK: NDArray[np.int64], found_QK: NDArray[np.int64]) -> float:
    """The share of the wanted facts that were found."""
    return float(among(wanted_QK, found_QK).sum() / max(1, (wanted_QK != NO_FACT).sum()))
