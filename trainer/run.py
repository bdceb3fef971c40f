"""A trained run, opened for use: its settings, its model, and the memory in the generation the checkpoint names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

__all__ = ["OpenRun", "load_run", "memory_of", "open_run"]


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

    Of relative paths in the settings, the memory and the questions are found from any folder; see `memory_of`.

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
    data = replace(config.data, questions=_found(config.data.questions, checkpoint))
    memory = replace(config.memory, url=_found(config.memory.url, checkpoint))
    return replace(config, data=data, memory=memory), checkpoint, encoder.eval()


def memory_of(checkpoint: CheckpointInfo) -> str:
    """Where the memory of a run is: a relative path counts from here, or else from where the training was started."""
    return _found(checkpoint.memory, checkpoint)


def _found(path: str, checkpoint: CheckpointInfo) -> str:
    """path: also a pattern, a URL or the name of something built in, which no folder holds."""
    folder = checkpoint.started_in
    if not folder or not path or Path(path).is_absolute() or any(Path().glob(path)):
        return path
    return str(Path(folder, path)) if any(Path(folder).glob(path)) else path


@contextmanager
def open_run(
    run_dir: str | Path, *, memory: str | None = None, generation: int | None = None, backend: str | None = None
) -> Iterator[OpenRun]:
    """Open a run and its memory.

    memory, generation: serve another memory or generation than the checkpoint names; its vectors must have been made
    by this model (VersionMismatch). backend: "local" or "ray" instead of what the run was trained with.
    """
    config, checkpoint, encoder = load_run(run_dir)
    url = memory or memory_of(checkpoint)
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
