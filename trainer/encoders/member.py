"""One member of an encoder: an entity part, a relation part and a prior, whose products add up to one score."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.features import QuestionFeatures
from trainer.encoders.context import WordReader
from trainer.encoders.entity import EntityPart
from trainer.encoders.facts import FactFeatures
from trainer.encoders.relation import RelationPart
from trainer.encoders.settings import PRIOR_DIM, ModelConfig

# B questions, C facts, V features, S subjects, R relations,
# D dimension = E of the entity part + F of the relation part + PRIOR_DIM

__all__ = ["Member"]


class Member(nn.Module):
    """query = [entity part, relation part, w], fact = [subject's names, relation, prior]: query . fact scores the pair.

    The prior speaks where the words cannot: knowledge bases are put together from sources that write names in different
    ways, and people ask more about some sources than about others. Among facts of equal names and relation it prefers,
    by a learned weight w, those whose subject is written without capitals, or those that are not.
    """

    def __init__(
        self, make_reader: Callable[[int], WordReader], config: ModelConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.entity = EntityPart(
            width=config.entity_dim, bits=config.feature_bits, scale=config.entity_scale, generator=generator
        )
        width = config.relation_dim - PRIOR_DIM
        self.relation = RelationPart(
            make_reader(width),
            width=width,
            hidden=config.hidden,
            reader_hidden=config.reader_hidden,
            bits=config.feature_bits,
            generator=generator,
        )
        self.prior_weight = nn.Parameter(torch.zeros(PRIOR_DIM))

    def encode_questions(
        self, questions: QuestionFeatures, keep_V: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """query_BD, float32. keep_V: 1 for the features of the questions that are seen, 0 for those that are hidden."""
        relation_BF, gate_V = self.relation.read(questions, keep_V, generator)
        entity_BE = self.entity.encode_questions(questions, keep_V, gate_V)
        return torch.cat([entity_BE, relation_BF, self.prior_weight.expand(len(questions), PRIOR_DIM)], dim=1)

    def encode_facts(self, facts: FactFeatures) -> Tensor:
        """fact_CD, float32; distinct subjects and relations are computed once each."""
        subject_SE = self.entity.encode_subjects(facts)
        relation_RF = self.relation.encode_relations(facts)
        subject_CE = subject_SE[torch.from_numpy(facts.subject_C)]
        relation_CF = relation_RF[torch.from_numpy(facts.relation_C)]
        prior_C1 = torch.from_numpy(facts.uncapitalised_C).float().unsqueeze(1)
        return torch.cat([subject_CE, relation_CF, prior_C1], dim=1)

    @property
    def of_facts(self) -> tuple[Tensor, ...]:
        """Everything that `encode_facts` depends on."""
        return (
            self.entity.vectors.weight_VW,
            self.entity.name_weights.weight_VW,
            self.entity.name_power.detach(),
            self.relation.relations.weight_VW,
        )
