"""Which generation of which memory a run is served from."""

from dataclasses import replace
from pathlib import Path

from deploy.serve.settings import Source
from memory_store.errors import ConfigError, VersionMismatch
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from trainer.checkpoint import CheckpointInfo, newest_checkpoint
from trainer.run import memory_of

__all__ = ["checkpoint_of", "first_generation", "located"]


def located(source: Source) -> Source:
    """The same source with absolute places, for processes that run in other directories; refuses what cannot be served.

    Raises ConfigError (no checkpoint), MemoryNotFound, GenerationNotFound, VersionMismatch.
    """
    run_dir = str(Path(source.run_dir).absolute())
    checkpoint = checkpoint_of(Storage(run_dir))
    storage = Storage(source.memory or memory_of(checkpoint))
    found = replace(
        source, run_dir=run_dir, memory=storage.url, follows_checkpoint=source.follows_checkpoint and not source.memory
    )
    first_generation(storage, checkpoint, found)
    return found


def checkpoint_of(run: Storage) -> CheckpointInfo:
    """The checkpoint in force of a run directory. Raises ConfigError if there is none."""
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"expected a run with a checkpoint in {run.shown}, found none; train it with `hmn train`")
    return checkpoint


def first_generation(storage: Storage, checkpoint: CheckpointInfo, source: Source) -> int:
    """The generation to begin with: the one named, else the newest if this model embedded it, else the checkpoint's.

    Raises MemoryNotFound, GenerationNotFound; VersionMismatch where no such generation is this model's.
    """
    newest = read_manifest(storage, source.generation)
    if newest.encoder == checkpoint.fingerprint:
        return newest.generation
    if source.generation is None and source.follows_checkpoint:
        return read_manifest(storage, checkpoint.generation).generation
    raise VersionMismatch(
        f"expected facts embedded by this model ({checkpoint.fingerprint}), found {newest.encoder or 'no name'} in "
        f"generation {newest.generation} of {storage.shown}; run `hmn embed --model` with this run"
    )
