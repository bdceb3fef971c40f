"""[model]: the settings of the encoders."""

from dataclasses import dataclass

from trainer.settings import at_least, between

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """[model]: the encoder of questions and facts.

    encoder: one of those registered in trainer.encoders.registry. members: how many models stand side by side, each
    with its own weights; one more costs as much again and errs less. entity_dim, relation_dim: widths of the two parts
    of a member's vectors; D is their sum times the members. feature_bits: the tables of name features have
    2 ** feature_bits rows. hidden, reader_hidden: widths of the question's two networks. entity_scale: where the
    weight of the entity part starts. unknown_weight: of a question's features that no name of the memory has, in the
    entity part; the others weigh 1.
    """

    encoder: str = "ngram"
    members: int = 1
    entity_dim: int = 128
    relation_dim: int = 128
    feature_bits: int = 19
    hidden: int = 256
    reader_hidden: int = 128
    entity_scale: float = 16.0
    unknown_weight: float = 0.25

    def __post_init__(self) -> None:
        for name in ("members", "entity_dim", "relation_dim", "hidden"):
            at_least(f"model.{name}", getattr(self, name), 1)
        at_least("model.reader_hidden", self.reader_hidden, 2)
        at_least("model.unknown_weight", self.unknown_weight, 0)
        between("model.feature_bits", self.feature_bits, 4, 31)

    @property
    def dim(self) -> int:
        """D, the dimension of the memory's vectors."""
        return self.members * (self.entity_dim + self.relation_dim)
