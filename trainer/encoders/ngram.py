"""The default encoder: hashed n-grams, and two convolutions that read the words around each word."""

import torch

from trainer.encoders.base import Encoder
from trainer.encoders.context import ConvolutionContext
from trainer.encoders.settings import ModelConfig

__all__ = ["make_ngram"]


def make_ngram(config: ModelConfig, generator: torch.Generator) -> Encoder:
    """An encoder whose question network sees two words to either side."""
    return Encoder("ngram", lambda: ConvolutionContext(config.relation_dim, config.reader_hidden), config, generator)
