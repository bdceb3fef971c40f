"""A trained run, opened for use: its settings, its model, and the memory in the generation the checkpoint names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memory_store.errors import ConfigError, VersionMismatch
from memory_store.memory import Memory
from memory_store.notebook import html_pairs
from memory_store.opening import open_memory
from memory_store.storage import Storage, redact
from pipeline.features import FEATURES_VERSION
from trainer.checkpoint import CheckpointInfo, load_checkpoint, newest_checkpoint
from trainer.config import RunConfig, load_config
from trainer.encoders.base import Encoder
from trainer.encoders.registry import make_encoder
from trainer.state import restore_encoder

__all__ = ["OpenRun", "load_run", "open_run"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenRun:
    """config as trained; encoder in evaluation mode; memory embedded by it."""

    config: RunConfig
    checkpoint: CheckpointInfo
    encoder: Encoder
    memory: Memory

    def __repr__(self) -> str:
        return (
            f"OpenRun({redact(self.config.run_dir)!r}, step={self.checkpoint.step}, "
            f"encoder={self.checkpoint.fingerprint!r}, memory={self.memory!r})"
        )

    def _repr_html_(self) -> str:
        return html_pairs(
            redact(self.config.run_dir),
            {
                "step": f"{self.checkpoint.step:,} of {self.checkpoint.total_steps:,}",
                "encoder": self.checkpoint.fingerprint,
                "K": self.config.train.k,
                "memory": repr(self.memory),
            },
        )


def load_run(run_dir: str | Path) -> tuple[RunConfig, CheckpointInfo, Encoder]:
    """(settings, newest checkpoint, model in evaluation mode) of a run directory; the memory stays closed.

    Raises ConfigError for a directory without a checkpoint, CorruptFile, VersionMismatch for other features.
    """
    storage = Storage(str(run_dir))
    checkpoint = newest_checkpoint(storage)
    if checkpoint is None:
        raise ConfigError(f"expected a run with a checkpoint in {run_dir}, found none; train it with `hmn train`")
    if checkpoint.features != FEATURES_VERSION:
        raise VersionMismatch(
            f"expected a run trained with the text features {FEATURES_VERSION}, found {checkpoint.features}; train it "
            "again, or use the version of hmn that trained it"
        )
    config = load_config(Path(run_dir) / "config.toml")
    encoder = make_encoder(config.model, config.seed)
    restore_encoder(load_checkpoint(storage, checkpoint), encoder)
    return config, checkpoint, encoder.eval()


@contextmanager
def open_run(
    run_dir: str | Path, *, memory: str | None = None, generation: int | None = None, backend: str | None = None
) -> Iterator[OpenRun]:
    """Open a run and its memory.

    memory, generation: serve another memory or generation than the checkpoint names; its vectors must have been made
    by this model (VersionMismatch). backend: "local" or "ray" instead of what the run was trained with.
    """
    config, checkpoint, encoder = load_run(run_dir)
    url = memory or checkpoint.memory
    if generation is None and memory is None:
        generation = checkpoint.generation
    chosen = backend or config.memory.backend
    with open_memory(
        url,
        config.memory.shards,
        config.memory.index,
        backend="ray" if chosen == "ray" else "local",
        generation=generation,
        replicas=config.memory.replicas,
        recall_share=config.memory.recall_share,
        target_recall=config.memory.target_recall or None,
    ) as opened:
        encoder.check_fingerprint(opened.manifest.encoder)
        yield OpenRun(config=config, checkpoint=checkpoint, encoder=encoder, memory=opened)
