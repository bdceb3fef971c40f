"""The entity part of a vector: which thing a question or a fact is about, by the names of the thing."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.features import QuestionFeatures
from trainer.encoders.facts import FactFeatures, take_lists
from trainer.encoders.lookups import Lookup
from trainer.encoders.tables import FeatureTable

# B questions, S subjects, M names, V features, E width of the entity part, n names of one subject

__all__ = ["EntityPart"]

_SHARPNESS = 4.0  # weight of a feature = softplus(4 g): g = 1 weighs 4, g = 0 weighs 0.7, and the slope stays useful
_KNOWN_BITS = 26  # one bit for each of 2 ** 26 hashes (8 MiB): 5 million known features give 7 % false positives
_RIDGE = 0.1  # of the several-names solution: near-equal names share their strength instead of cancelling noise
_TINY = 1e-6


class EntityPart(nn.Module):
    """Unit-normalised sums of feature vectors, each weighted by a learned g that starts at idf / largest idf.

    Questions and names share the feature vectors and have weights of their own. In a question, the weight of a feature
    also depends on how much the words it covers look like a name (the gates), and features that no name of the memory
    has weigh little. Names are normalised by their length to a learned power, which starts at 1.
    """

    known: Tensor

    def __init__(
        self, *, width: int, bits: int, scale: float, unknown: float, multiplier: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors_VE = torch.randn(1 << bits, width, generator=generator).div_(width**0.5)
        self.vectors = FeatureTable(vectors_VE, multiplier=multiplier)
        self.question_weights = FeatureTable(torch.ones(1 << bits, 1), multiplier=multiplier)
        self.name_weights = FeatureTable(torch.ones(1 << bits, 1), multiplier=multiplier)
        self.register_buffer("known", torch.zeros((1 << _KNOWN_BITS) // 8, dtype=torch.uint8))
        self.scale = nn.Parameter(torch.tensor(scale))
        self.name_power = nn.Parameter(torch.tensor(1.0))
        self.unknown_weight = unknown

    def fit(self, counts: NDArray[np.int64], names: int) -> None:
        """Start the weights of features at idf / largest idf. counts: how many of the names have each table row."""
        idf = np.log((names + 1) / (counts + 1))
        start_V1 = torch.from_numpy(idf / max(float(idf.max()), _TINY)).float().unsqueeze(1)
        self.question_weights.weight_VW.copy_(start_V1)
        self.name_weights.weight_VW.copy_(start_V1)

    def count(self, features: FactFeatures, counts: NDArray[np.int64]) -> None:
        """Add the names of these subjects to `counts`, and remember which features names have."""
        rows = self.vectors.rows_of(features.names.values)
        counts += np.bincount(rows, minlength=len(counts))
        bits = self.known.numpy()
        hashes = np.unique(features.names.values & np.uint32((1 << _KNOWN_BITS) - 1))
        np.bitwise_or.at(bits, hashes >> np.uint32(3), np.uint8(1) << (hashes & np.uint32(7)).astype(np.uint8))

    def encode_questions(self, questions: QuestionFeatures, gate_V: Tensor) -> Tensor:
        """[B, E], of length `scale`; a question without any feature is zero. gate_V: weight of each feature's words."""
        places = self.vectors.places_of(self.vectors.rows_of(questions.values))
        weight_V = _weights(self.question_weights.lookup(places)) * gate_V
        known_V = torch.from_numpy(self._is_known(questions.values))
        weight_V = weight_V * torch.where(known_V, 1.0, self.unknown_weight)
        sum_BE = self.vectors.lookup(places).bags(questions.offsets, weight_V)
        query_BE: Tensor = self.scale * sum_BE / (sum_BE.norm(dim=1, keepdim=True) + _TINY)
        return query_BE

    def encode_subjects(self, facts: FactFeatures) -> Tensor:
        """[S, E]: near 1 times a question's direction when the question uses any one of the subject's names."""
        places = self.vectors.places_of(self.vectors.rows_of(facts.names.values))
        sum_ME = self.vectors.lookup(places).bags(facts.names.offsets, _weights(self.name_weights.lookup(places)))
        norm_M1 = sum_ME.norm(dim=1, keepdim=True) + _TINY
        return _join_names(sum_ME / norm_M1, norm_M1 ** (1 - self.name_power), facts.name_bounds)

    def _is_known(self, feature_V: NDArray[np.uint32]) -> NDArray[np.bool_]:
        hashes = feature_V & np.uint32((1 << _KNOWN_BITS) - 1)
        byte_V = self.known.numpy()[hashes >> np.uint32(3)]
        return cast(NDArray[np.bool_], (byte_V >> (hashes & np.uint32(7)).astype(np.uint8)) & 1 == 1)


def _weights(looked_up: Lookup) -> Tensor:
    return functional.softplus(_SHARPNESS * looked_up.values())


def _join_names(unit_ME: Tensor, strength_M1: Tensor, name_bounds: NDArray[np.int64]) -> Tensor:
    """One vector per subject whose inner product with each of its names' directions is that name's strength.

    The shortest such vector is U^T (U U^T)^-1 t. A plain sum would count near-equal names (Paris, Paris, Parigi)
    several times; a mean would weaken a subject by every alias it has. The ridge keeps near-equal names stable, and is
    divided out so that a single name is exactly itself.
    """
    names_S = np.diff(name_bounds)
    if (names_S == 1).all():
        return unit_ME * strength_M1
    # Subjects with equally many names together, by one permutation of all names: [P * n, E] -> [P, n, E] for P subjects
    # with n names each. Picking each lot out of all names would make a gradient as large as all for every lot.
    order_S = np.argsort(names_S, kind="stable")
    counts, subjects = np.unique(names_S, return_counts=True)
    _, name_X = take_lists(name_bounds, np.arange(len(unit_ME)), order_S)
    index_X = torch.from_numpy(name_X.astype(np.int64))
    sizes = (counts * subjects).tolist()
    units = torch.split(torch.index_select(unit_ME, 0, index_X), sizes)
    strengths = torch.split(torch.index_select(strength_M1, 0, index_X), sizes)
    pieces = []
    for count, number, unit_XE, strength_X1 in zip(counts.tolist(), subjects.tolist(), units, strengths, strict=True):
        if count == 0:  # nothing is known about the subject but that it exists
            pieces.append(unit_ME.new_zeros(number, unit_ME.shape[1]))
            continue
        unit_PnE = unit_XE.view(number, count, -1)
        gram_Pnn = unit_PnE @ unit_PnE.mT + _RIDGE * torch.eye(count)
        mix_Pn1 = torch.linalg.solve(gram_Pnn, strength_X1.view(number, count, 1)) * (1 + _RIDGE)
        pieces.append((unit_PnE * mix_Pn1).sum(dim=1))
    return torch.index_select(torch.cat(pieces), 0, torch.from_numpy(np.argsort(order_S, kind="stable")))
