"""The encoders, registered in one place."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from trainer.encoders.base import Encoder
from trainer.encoders.gru import make_gru
from trainer.encoders.ngram import make_ngram
from trainer.encoders.settings import ModelConfig
from trainer.settings import one_of

__all__ = ["ENCODERS", "make_encoder"]

ENCODERS: Mapping[str, Callable[[ModelConfig, torch.Generator], Encoder]] = MappingProxyType(
    {"ngram": make_ngram, "gru": make_gru}
)
"""Name in [model] encoder -> its maker."""


def make_encoder(config: ModelConfig, seed: int) -> Encoder:
    """A fresh encoder; equal settings and seeds give equal weights. Raises ConfigError for an unknown name."""
    one_of("model.encoder", config.encoder, ENCODERS)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator: leave it as it was
        torch.manual_seed(seed)
        return ENCODERS[config.encoder](config, generator)
