"""Which generation of which memory a run is served from, and the name that its shards have."""

import hashlib
from dataclasses import replace
from pathlib import Path

from deploy.serve.settings import Source
from memory_store.errors import ConfigError, VersionMismatch
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from trainer.checkpoint import CheckpointInfo, newest_checkpoint
from trainer.run import memory_of

__all__ = ["belongs_to", "checkpoint_of", "first_generation", "located", "memory_storage", "shared_name"]


def located(source: Source) -> Source:
    """The same source with absolute places, for processes that run in other directories; refuses what cannot be served.

    Raises ConfigError (no checkpoint), MemoryNotFound, GenerationNotFound, VersionMismatch.
    """
    run_dir = str(Path(source.run_dir).absolute())
    checkpoint = checkpoint_of(Storage(run_dir))
    storage = Storage(source.memory or memory_of(checkpoint))
    found = replace(
        source,
        run_dir=run_dir,
        memory=storage.url,
        follows_checkpoint=source.follows_checkpoint and not source.memory and source.generation is None,
        spoken_of=_spoken_of(checkpoint),
    )
    first_generation(storage, checkpoint, found)
    return found


def checkpoint_of(run: Storage) -> CheckpointInfo:
    """The checkpoint in force of a run directory. Raises ConfigError if there is none."""
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"expected a run with a checkpoint in {run.shown}, found none; train it with `hmn train`")
    return checkpoint


def memory_storage(checkpoint: CheckpointInfo, source: Source) -> Storage:
    """The memory that a checkpoint is served with: the one found at the start, unless it speaks of another."""
    if source.memory and (not source.follows_checkpoint or source.spoken_of in (None, _spoken_of(checkpoint))):
        return Storage(source.memory)
    return Storage(memory_of(checkpoint))


def shared_name(storage: Storage, source: Source) -> str | None:
    """The name under which the replicas share the shards of a memory; None where each has its own.

    One that is rolled out in the place of the first has a name of its own beside it: all replicas derive the same.
    """
    if source.name is None or source.memory in (None, storage.url):
        return source.name
    return f"{source.name}-{hashlib.sha256(storage.url.encode()).hexdigest()[:12]}"


def belongs_to(name: str, service: str | None) -> bool:
    """Whether shards of this name are those of a service, of its first memory or of one rolled out since."""
    return service is not None and (name == service or name.startswith(f"{service}-"))


def _spoken_of(checkpoint: CheckpointInfo) -> tuple[str, str]:
    return checkpoint.memory, checkpoint.started_in


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
