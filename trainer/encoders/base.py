"""The encoder of questions and facts: one inner product of their vectors scores entity and relation together."""

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from memory_store.errors import VersionMismatch
from pipeline.features import FEATURES_VERSION, QuestionFeatures, question_features
from trainer.encoders.context import WordReader
from trainer.encoders.facts import FactFeatures
from trainer.encoders.member import Member
from trainer.encoders.settings import ModelConfig
from trainer.encoders.tables import FeatureTable

# B questions, C facts, V features, M members, D dimension of all members together

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Questions and facts as vectors of dimension D, so that one MIPS finds the best fact.

    The vectors of several members stand side by side: their scores add up, and what one member learned by chance the
    others outvote (an ensemble by concatenation). Each is trained alone, from batches, candidates and a softmax of its
    own: members that learn together make the same mistakes. Encoders differ in the network that reads the words of a
    question (`make_reader`).
    """

    def __init__(
        self, name: str, make_reader: Callable[[], WordReader], config: ModelConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.name = name
        self.members = nn.ModuleList(
            Member(
                make_reader(),
                entity_dim=config.entity_dim,
                relation_dim=config.relation_dim,
                feature_bits=config.feature_bits,
                hidden=config.hidden,
                reader_hidden=config.reader_hidden,
                entity_scale=config.entity_scale,
                unknown_weight=config.unknown_weight,
                generator=generator,
            )
            for _ in range(config.members)
        )
        self.dim = config.dim

    @property
    def _members(self) -> list[Member]:
        return cast(list[Member], list(self.members))

    def dim_of(self, member: int | None) -> int:
        """The dimension of one member's vectors, or D."""
        return sum(one.dim for one in self._chosen(member))

    def _chosen(self, member: int | None) -> list[Member]:
        return self._members if member is None else [self._members[member]]

    @property
    def tables(self) -> dict[str, FeatureTable]:
        """The feature tables, which RowAdagrad trains; everything else is an ordinary parameter."""
        return {name: module for name, module in self.named_modules() if isinstance(module, FeatureTable)}

    def reader_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(the parameters of the networks that read words, all others), each in the order of their names."""
        readers: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            (readers if ".reader." in name else others).append(parameter)
        return readers, others

    def fit(self, facts: Iterable[FactFeatures]) -> None:
        """Start the feature weights from how often the names of a memory have each feature; before training."""
        counts_by_member = [np.zeros(len(member.entity.vectors), dtype=np.int64) for member in self._members]
        names = 0
        for features in facts:
            names += len(features.names)
            for member, counts in zip(self._members, counts_by_member, strict=True):
                member.entity.count(features, counts)
        for member, counts in zip(self._members, counts_by_member, strict=True):
            member.entity.fit(counts, names)

    def encode_questions(
        self,
        questions: QuestionFeatures,
        *,
        member: int | None = None,
        feature_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """query_BD, float32; of one member alone, its columns [B, D / M].

        feature_dropout: share of the features that are hidden while the encoder is training.
        """
        dropout = feature_dropout if self.training else 0.0
        queries = []
        for one in self._chosen(member):
            seen = questions
            if dropout > 0:  # what is hidden is left out: it would be looked up, and updated, for nothing
                seen = questions.only((torch.rand(len(questions.values), generator=generator) >= dropout).numpy())
            queries.append(one.encode_questions(questions, seen, generator))
        return torch.cat(queries, dim=1)

    def encode_facts(self, facts: FactFeatures, *, member: int | None = None) -> Tensor:
        """fact_CD, float32; of one member alone, its columns [C, D / M]."""
        return torch.cat([one.encode_facts(facts) for one in self._chosen(member)], dim=1)

    @torch.no_grad()
    def ask(self, questions: list[str]) -> Tensor:
        """query_BD of question texts, as an evaluation computes it."""
        was_training = self.training
        self.eval()
        try:
            return self.encode_questions(question_features(questions))
        finally:
            self.train(was_training)

    def fingerprint(self, member: int | None = None) -> str:
        """Names the fact encoder: vectors of facts made under one fingerprint can be searched with each other.

        A hash of everything that `encode_facts` depends on, the version of the features included.
        """
        digest = xxhash.xxh3_128(FEATURES_VERSION.encode())
        for one in self._chosen(member):
            digest.update(str(one.multiplier).encode())
            for part in one.of_facts:
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().reshape(-1).view(np.uint8).data)
        return f"{self.name}-{digest.hexdigest()[:16]}"

    def check_fingerprint(self, found: str | None) -> None:
        """Refuse vectors that another encoder made: VersionMismatch."""
        expected = self.fingerprint()
        if found != expected:
            raise VersionMismatch(
                f"expected facts embedded by this model ({expected}), found {found or 'no encoder named'}; "
                "run `hmn embed --model` with this run, or open the generation its checkpoint names"
            )
