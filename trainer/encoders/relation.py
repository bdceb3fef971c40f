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
        lies_within_V = seen.first_word_V == seen.last_word_V
        word_WF = _sum_words(seen, looked_up, lies_within_V)
        keep_BH = _keep((len(questions), self.reader_hidden), _SUMMARY_DROPOUT if self.training else 0.0, generator)
        gates_W2, summary_BF = self.reader(word_WF * _word_scale(questions), questions.word_offsets, keep_BH)
        # A feature over several words is gated by the first and the last of them.
        first_V, last_V = torch.from_numpy(seen.first_word_V), torch.from_numpy(seen.last_word_V)
        gates_V2 = (torch.index_select(gates_W2, 0, first_V) + torch.index_select(gates_W2, 0, last_V)) / 2
        length_B1 = torch.from_numpy(np.maximum(np.diff(questions.offsets), 1)).float().unsqueeze(1)
        sum_BF = _sum_gated(questions, word_WF, gates_W2[:, 1:])
        sum_BF = sum_BF + _sum_across(seen, looked_up, ~lies_within_V, gates_V2[:, 1])
        # Feature vectors start small and sums of random ones grow by the square root: about one tenth to begin with.
        x_BF = 3 * sum_BF * length_B1.rsqrt()
        return self.scale * (x_BF + self.network(x_BF) + summary_BF) + self.bias, gates_V2[:, 0]

    def encode_relations(self, facts: FactFeatures) -> Tensor:
        """[R, F]."""
        places = self.relations.places_of(self.relations.rows_of(facts.relations.values))
        sum_RF = self.relations.lookup(places).bags(facts.relations.offsets)
        length_R1 = torch.from_numpy(np.maximum(np.diff(facts.relations.offsets), 1)).float().unsqueeze(1)
        return sum_RF * length_R1.rsqrt()


def _sum_words(seen: QuestionFeatures, looked_up: Lookup, lies_within_V: NDArray[np.bool_]) -> Tensor:
    """[W, F]: of each word, the sum of the features that are seen of those that lie within it."""
    return looked_up.only(np.flatnonzero(lies_within_V)).bags(_word_bounds(seen, lies_within_V))


def _word_scale(questions: QuestionFeatures) -> Tensor:
    """[W, 1]: what sums of as many features as a word has are brought to one size by."""
    bounds = _word_bounds(questions, questions.first_word_V == questions.last_word_V)
    return 10 * torch.from_numpy(np.maximum(np.diff(bounds), 1)).float().rsqrt().unsqueeze(1)


def _word_bounds(questions: QuestionFeatures, lies_within_V: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of the features that lie within a word, bounds[w] to bounds[w + 1] are those of word w."""
    word_X = questions.first_word_V[lies_within_V]  # ascending: features are ordered by the first word they cover
    return np.searchsorted(word_X, np.arange(int(questions.word_offsets[-1]) + 1))


def _sum_gated(questions: QuestionFeatures, word_WF: Tensor, gate_W1: Tensor) -> Tensor:
    """[B, F]: the features within words, all of a word by its gate."""
    question_W = torch.from_numpy(np.repeat(np.arange(len(questions)), np.diff(questions.word_offsets)))
    return word_WF.new_zeros(len(questions), word_WF.shape[1]).index_add(0, question_W, word_WF * gate_W1)


def _sum_across(seen: QuestionFeatures, looked_up: Lookup, lies_across_V: NDArray[np.bool_], gate_V: Tensor) -> Tensor:
    """[B, F]: the features over several words, each by its own gate."""
    across = np.flatnonzero(lies_across_V)
    bounds = np.searchsorted(across, seen.offsets)
    return looked_up.only(across).bags(bounds, torch.index_select(gate_V, 0, torch.from_numpy(across)))


def _keep(shape: tuple[int, ...], dropout: float, generator: torch.Generator | None) -> Tensor:
    """A dropout mask, scaled so that its mean is 1."""
    if dropout == 0:
        return torch.ones(shape)
    return (torch.rand(shape, generator=generator) >= dropout).float() / (1 - dropout)
