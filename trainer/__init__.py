"""Encoders, K-MIPS attention, loss, training loop, checkpoints, evaluation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import memory_store  # noqa: F401  # sets how threads wait, before torch is loaded

if TYPE_CHECKING:
    from trainer.ask import Answer, Answerer
    from trainer.attention import KMipsAttention, Reading
    from trainer.config import RunConfig, load_config
    from trainer.evaluation import Evaluation, evaluate
    from trainer.loop import RunResult, train

__all__ = [
    "Answer",
    "Answerer",
    "Evaluation",
    "KMipsAttention",
    "Reading",
    "RunConfig",
    "RunResult",
    "evaluate",
    "load_config",
    "train",
]

_HOME = {
    "Answer": "trainer.ask",
    "Answerer": "trainer.ask",
    "Evaluation": "trainer.evaluation",
    "KMipsAttention": "trainer.attention",
    "Reading": "trainer.attention",
    "RunConfig": "trainer.config",
    "RunResult": "trainer.loop",
    "evaluate": "trainer.evaluation",
    "load_config": "trainer.config",
    "train": "trainer.loop",
}


def __getattr__(name: str) -> Any:
    # torch and ray load when a name is used, so that `hmn --help` answers at once
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:  # what Tab completes: a name that is not loaded yet is none of the module's own
    return sorted(__all__)
