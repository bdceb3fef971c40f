"""The relation part of a vector: what is asked about a thing, against what a fact says about it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.features import QuestionFeatures
from trainer.encoders.context import WordReader
from trainer.encoders.facts import FactFeatures
from trainer.encoders.lookups import Lookup
from trainer.encoders.tables import FeatureTable

# B questions, R relations, V features, W words, F width of the relation part, H hidden width

__all__ = ["RelationPart"]

_QUESTION_BITS = 18  # rows of question features: fewer than names need, for questions repeat themselves
_RELATION_BITS = 16
_SUMMARY_DROPOUT = 0.1


class RelationPart(nn.Module):
    """Relations are sums of the vectors of their words; questions are sums of feature vectors plus what was read.

    The question side is x + MLP(x) + summary, where x sums the features of words that the gates leave to the relation,
    and the summary comes from a network that reads the words in their order.
    """

    def __init__(
        self,
        reader: WordReader,
        *,
        width: int,
        hidden: int,
        reader_hidden: int,
        bits: int,
        multiplier: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        question_rows, relation_rows = 1 << min(bits, _QUESTION_BITS), 1 << min(bits, _RELATION_BITS)
        spread = width**-0.5
        vectors_QF = torch.randn(question_rows, width, generator=generator).mul_(0.1 * spread)
        self.questions = FeatureTable(vectors_QF, multiplier=multiplier)
        vectors_RF = torch.randn(relation_rows, width, generator=generator).mul_(spread)
        self.relations = FeatureTable(vectors_RF, multiplier=multiplier)
        self.reader = reader
        self.reader_hidden = reader_hidden
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        last = self.network[2]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # Sequential does not know what it holds
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.zeros(width))

    def read(
        self, questions: QuestionFeatures, seen: QuestionFeatures, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(question vectors [B, F], entity gate of each feature that is seen [V])."""
        looked_up = self.questions.lookup(self.questions.places_of(self.questions.rows_of(seen.values)))
        word_WF = _word_vectors(questions, seen, looked_up)
        keep_BH = _keep((len(questions), self.reader_hidden), _SUMMARY_DROPOUT if self.training else 0.0, generator)
        gates_W2, summary_BF = self.reader(word_WF, questions.word_offsets, keep_BH)
        # A feature over several words is gated by the first and the last of them.
        first_V, last_V = torch.from_numpy(seen.first_word_V), torch.from_numpy(seen.last_word_V)
        gates_V2 = (gates_W2[first_V] + gates_W2[last_V]) / 2
        length_B1 = torch.from_numpy(np.maximum(np.diff(questions.offsets), 1)).float().unsqueeze(1)
        sum_BF = looked_up.bags(seen.offsets, gates_V2[:, 1])
        # Feature vectors start small and sums of random ones grow by the square root: about one tenth to begin with.
        x_BF = 3 * sum_BF * length_B1.rsqrt()
        return self.scale * (x_BF + self.network(x_BF) + summary_BF) + self.bias, gates_V2[:, 0]

    def encode_relations(self, facts: FactFeatures) -> Tensor:
        """[R, F]."""
        places = self.relations.places_of(self.relations.rows_of(facts.relations.values))
        sum_RF = self.relations.lookup(places).bags(facts.relations.offsets)
        length_R1 = torch.from_numpy(np.maximum(np.diff(facts.relations.offsets), 1)).float().unsqueeze(1)
        return sum_RF * length_R1.rsqrt()


def _word_vectors(questions: QuestionFeatures, seen: QuestionFeatures, looked_up: Lookup) -> Tensor:
    """[W, F]: each word as the sum of the features that are seen of those that lie within it."""
    _, all_bounds = _within_words(questions)
    within_X, seen_bounds = _within_words(seen)
    count_W = torch.from_numpy(np.maximum(np.diff(all_bounds), 1)).float()
    return 10 * looked_up.only(within_X).bags(seen_bounds) * count_W.rsqrt().unsqueeze(1)


def _within_words(questions: QuestionFeatures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the X features that lie within one word; bounds: those of word w are bounds[w] to bounds[w + 1] of them)."""
    within_X = np.flatnonzero(questions.first_word_V == questions.last_word_V)
    word_X = questions.first_word_V[within_X]  # ascending: features are ordered by the first word they cover
    return within_X, np.searchsorted(word_X, np.arange(int(questions.word_offsets[-1]) + 1))


def _keep(shape: tuple[int, ...], dropout: float, generator: torch.Generator | None) -> Tensor:
    """A dropout mask, scaled so that its mean is 1."""
    if dropout == 0:
        return torch.ones(shape)
    return (torch.rand(shape, generator=generator) >= dropout).float() / (1 - dropout)
