"""When to switch to a newer generation or model; reports in, a decision out; nothing here acts."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Move", "Rollout", "Seen", "Serving", "decide"]


class Move(Enum):
    """What the service does next about what it serves."""

    STAY = "stay"
    GENERATION = "generation"  # same model: the memory loads the generation beside and switches
    MODEL = "model"  # another model: it is opened beside with its own generation, and both switch at once


@dataclass(frozen=True)
class Rollout:
    """generation: the one to serve after the move; None where nothing moves."""

    move: Move
    generation: int | None = None


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What answers now. checkpoint: which one, of which memory; fingerprint: of its fact encoder."""

    checkpoint: str
    fingerprint: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is there to serve. newest_encoder: the fingerprint that the newest generation names.

    newest: of the memory that the checkpoint is served with. checkpoint_generation: None where the checkpoint speaks of
    another memory than that.
    """

    checkpoint: str
    fingerprint: str
    checkpoint_generation: int | None
    newest: int
    newest_encoder: str | None


def decide(serving: Serving, seen: Seen) -> Rollout:
    """A generation is served only with the model that embedded it, and a model only with a generation of its own.

    So a training run that writes a generation every few steps disturbs nobody: its generations wait for its checkpoint.
    Nothing older than what is served is rolled out while the model stays.
    """
    if seen.checkpoint != serving.checkpoint:
        if seen.newest_encoder == seen.fingerprint:
            return Rollout(Move.MODEL, seen.newest)
        if seen.checkpoint_generation is not None:
            return Rollout(Move.MODEL, seen.checkpoint_generation)
    if seen.newest_encoder == serving.fingerprint and seen.newest > serving.generation:
        return Rollout(Move.GENERATION, seen.newest)
    return Rollout(Move.STAY)
