"""The recurrent encoder: a bidirectional GRU reads the words of the question (Chandar et al. 2016)."""

import torch

from trainer.encoders.base import Encoder
from trainer.encoders.context import RecurrentContext
from trainer.encoders.settings import ModelConfig

__all__ = ["make_gru"]


def make_gru(config: ModelConfig, generator: torch.Generator) -> Encoder:
    """An encoder whose question network sees all words to either side."""
    return Encoder("gru", lambda: RecurrentContext(config.relation_dim, config.reader_hidden), config, generator)
