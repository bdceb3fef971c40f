"""The recurrent encoder: a bidirectional GRU reads the words of the question (Chandar et al. 2016)."""

import torch

from trainer.encoders.base import Encoder
from trainer.encoders.context import RecurrentContext
from trainer.encoders.settings import ModelConfig

__all__ = ["make_gru"]


def make_gru(config: ModelConfig, generator: torch.Generator) -> Encoder:
    """An encoder whose question network sees all words to either side."""
    return Encoder(
        "gru",
        RecurrentContext(config.relation_dim, config.reader_hidden),
        entity_dim=config.entity_dim,
        relation_dim=config.relation_dim,
        feature_bits=config.feature_bits,
        hidden=config.hidden,
        reader_hidden=config.reader_hidden,
        entity_scale=config.entity_scale,
        generator=generator,
    )
