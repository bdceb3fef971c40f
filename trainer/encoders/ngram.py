"""The default encoder: hashed n-grams, and two convolutions that read the words around each word."""

import torch

from trainer.encoders.base import Encoder
from trainer.encoders.context import ConvolutionContext
from trainer.encoders.settings import ModelConfig

__all__ = ["make_ngram"]


def make_ngram(config: ModelConfig, generator: torch.Generator) -> Encoder:
    """An encoder whose question network sees two words to either side."""
    return Encoder(
        "ngram",
        ConvolutionContext(config.relation_dim, config.reader_hidden),
        entity_dim=config.entity_dim,
        relation_dim=config.relation_dim,
        feature_bits=config.feature_bits,
        hidden=config.hidden,
        reader_hidden=config.reader_hidden,
        entity_scale=config.entity_scale,
        generator=generator,
    )
