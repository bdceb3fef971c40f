"""One member of an encoder: an entity part and a relation part, whose inner products add up to one score."""

import torch
from torch import Tensor, nn

from pipeline.features import QuestionFeatures
from trainer.encoders.context import WordReader
from trainer.encoders.entity import EntityPart
from trainer.encoders.facts import FactFeatures
from trainer.encoders.relation import RelationPart

# B questions, C facts, V features, S subjects, R relations, D dimension = E of the entity part + F of the relation part

__all__ = ["Member"]


class Member(nn.Module):
    """query = [entity part, relation part], fact = [subject's names, relation]: query . fact scores the pair."""

    def __init__(
        self,
        reader: WordReader,
        *,
        entity_dim: int,
        relation_dim: int,
        feature_bits: int,
        hidden: int,
        reader_hidden: int,
        entity_scale: float,
        unknown_weight: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.dim = entity_dim + relation_dim
        # Features that share a row in one member do not in the next: what one confuses, the others tell apart.
        multiplier = 2 * int(torch.randint(1 << 31, (1,), generator=generator)) + 1
        self.entity = EntityPart(
            width=entity_dim,
            bits=feature_bits,
            scale=entity_scale,
            unknown=unknown_weight,
            multiplier=multiplier,
            generator=generator,
        )
        self.relation = RelationPart(
            reader,
            width=relation_dim,
            hidden=hidden,
            reader_hidden=reader_hidden,
            bits=feature_bits,
            multiplier=multiplier,
            generator=generator,
        )

    @property
    def multiplier(self) -> int:
        """How the member's features are hashed into rows."""
        return self.entity.vectors.multiplier

    def encode_questions(
        self, questions: QuestionFeatures, seen: QuestionFeatures, generator: torch.Generator | None
    ) -> Tensor:
        """query_BD, float32. seen: the questions without the features that are hidden."""
        relation_BF, gate_V = self.relation.read(questions, seen, generator)
        entity_BE = self.entity.encode_questions(seen, gate_V)
        return torch.cat([entity_BE, relation_BF], dim=1)

    def encode_facts(self, facts: FactFeatures) -> Tensor:
        """fact_CD, float32; distinct subjects and relations are computed once each."""
        subject_SE = self.entity.encode_subjects(facts)
        relation_RF = self.relation.encode_relations(facts)
        subject_CE = subject_SE[torch.from_numpy(facts.subject_C)]
        return torch.cat([subject_CE, relation_RF[torch.from_numpy(facts.relation_C)]], dim=1)

    @property
    def of_facts(self) -> tuple[Tensor, ...]:
        """Everything that `encode_facts` depends on."""
        return (
            self.entity.vectors.weight_VW,
            self.entity.name_weights.weight_VW,
            self.entity.name_power.detach(),
            self.relation.relations.weight_VW,
        )
