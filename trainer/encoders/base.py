"""The encoder of questions and facts: one inner product of their vectors scores entity and relation together."""

from collections.abc import Iterable

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from memory_store.errors import VersionMismatch
from pipeline.features import FEATURES_VERSION, QuestionFeatures, question_features
from trainer.encoders.context import WordReader
from trainer.encoders.entity import EntityPart
from trainer.encoders.facts import FactFeatures
from trainer.encoders.relation import RelationPart
from trainer.encoders.tables import FeatureTable

# B questions, C facts, V features, D dimension = E of the entity part + F of the relation part

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Questions and facts as vectors of dimension D.

    query = [entity part, relation part], fact = [subject's names, relation], so that query . fact is the sum of an
    entity score and a relation score and one MIPS finds the best pair. Encoders differ in the network that reads the
    words of a question (`reader`).
    """

    def __init__(
        self,
        name: str,
        reader: WordReader,
        *,
        entity_dim: int,
        relation_dim: int,
        feature_bits: int,
        hidden: int,
        reader_hidden: int,
        entity_scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.name = name
        self.dim = entity_dim + relation_dim
        self.entity = EntityPart(width=entity_dim, bits=feature_bits, scale=entity_scale, generator=generator)
        self.relation = RelationPart(
            reader,
            width=relation_dim,
            hidden=hidden,
            reader_hidden=reader_hidden,
            bits=feature_bits,
            generator=generator,
        )

    @property
    def tables(self) -> dict[str, FeatureTable]:
        """The feature tables, which RowAdagrad trains; everything else is an ordinary parameter."""
        return {name: module for name, module in self.named_modules() if isinstance(module, FeatureTable)}

    def fit(self, facts: Iterable[FactFeatures]) -> None:
        """Start the feature weights from how often the names of a memory have each feature; before training."""
        counts = np.zeros(len(self.entity.vectors), dtype=np.int64)
        names = 0
        for features in facts:
            self.entity.count(features, counts)
            names += len(features.names)
        self.entity.fit(counts, names)

    def encode_questions(
        self,
        questions: QuestionFeatures,
        *,
        feature_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """query_BD, float32. feature_dropout: share of the features that are hidden while the encoder is training."""
        dropout = feature_dropout if self.training else 0.0
        keep_V = torch.ones(len(questions.values))
        if dropout > 0:
            keep_V = (torch.rand(len(questions.values), generator=generator) >= dropout).float()
        relation_BF, gate_V = self.relation.read(questions, keep_V, generator)
        entity_BE = self.entity.encode_questions(questions, keep_V, gate_V)
        return torch.cat([entity_BE, relation_BF], dim=1)

    def encode_facts(self, facts: FactFeatures) -> Tensor:
        """fact_CD, float32; distinct subjects and relations are computed once each."""
        subject_SE = self.entity.encode_subjects(facts)
        relation_RF = self.relation.encode_relations(facts)
        subject_CE = subject_SE[torch.from_numpy(facts.subject_C)]
        return torch.cat([subject_CE, relation_RF[torch.from_numpy(facts.relation_C)]], dim=1)

    @torch.no_grad()
    def ask(self, questions: list[str]) -> Tensor:
        """query_BD of question texts, as an evaluation computes it."""
        was_training = self.training
        self.eval()
        try:
            return self.encode_questions(question_features(questions))
        finally:
            self.train(was_training)

    def fingerprint(self) -> str:
        """Names the fact encoder: vectors of facts made under one fingerprint can be searched with each other.

        A hash of everything that `encode_facts` depends on, the version of the features included.
        """
        digest = xxhash.xxh3_128(FEATURES_VERSION.encode())
        for part in (
            self.entity.vectors.weight_VW,
            self.entity.name_weights.weight_VW,
            self.entity.name_power.detach(),
            self.relation.relations.weight_VW,
        ):
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
