"""Everything that learns, as named tensors and back; random numbers need none, they follow from seed and step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from memory_store.errors import VersionMismatch
from trainer.encoders.base import Encoder
from trainer.step import Optimizers

__all__ = ["capture", "capture_encoder", "capture_optimizers", "restore", "restore_encoder"]

_ADAM = ("exp_avg", "exp_avg_sq", "step")


def capture(encoder: Encoder, optimizers: Optimizers) -> dict[str, Tensor]:
    """The model and its optimisers' state; the tensors are the live ones, to be written at once."""
    return capture_encoder(encoder) | capture_optimizers(encoder, optimizers)


def capture_encoder(encoder: Encoder) -> dict[str, Tensor]:
    """The part of `capture` that is the model."""
    return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}


def capture_optimizers(encoder: Encoder, optimizers: Optimizers) -> dict[str, Tensor]:
    """The part of `capture` that is how it learns."""
    tensors = {f"adagrad.{name}": tensor for name, tensor in optimizers.tables.accumulator.items()}
    for name, parameter in encoder.named_parameters():
        for key, value in optimizers.network.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value
    return tensors


def restore_encoder(tensors: Mapping[str, Tensor], encoder: Encoder) -> None:
    """Put a captured model into an encoder of the same settings. Raises VersionMismatch for another shape."""
    state = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    expected = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))[0]
        raise VersionMismatch(
            f"expected a checkpoint of this model, found {odd} as {found.get(odd)} instead of {expected.get(odd)}; "
            "use the run's own config.toml"
        )
    encoder.load_state_dict(state)


def restore(tensors: Mapping[str, Tensor], encoder: Encoder, optimizers: Optimizers) -> None:
    """Put everything back as `capture` found it."""
    restore_encoder(tensors, encoder)
    for name, accumulator in optimizers.tables.accumulator.items():
        accumulator.copy_(tensors[f"adagrad.{name}"])
    for name, parameter in encoder.named_parameters():
        if f"adam.step.{name}" in tensors:
            optimizers.network.state[parameter] = {key: torch.clone(tensors[f"adam.{key}.{name}"]) for key in _ADAM}
