"""Facts written over HTTP: stated or named by id, embedded by the model that answers, visible when it is said so."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.serve.failures import Refused
from memory_store.errors import (
    CommitUnknown,
    ConfigError,
    DuplicateFact,
    GenerationConflict,
    InputError,
    StorageFailed,
    UnknownFact,
)
from memory_store.memory import Memory
from memory_store.parts import fact_ids_of
from pipeline.features import FEATURES_VERSION
from pipeline.stated import StatedFact, facts_table
from trainer.encoders.base import Encoder
from trainer.refresh import FactEmbedder

__all__ = ["Deletion", "Upsert", "Write", "Written", "write_facts"]

LARGEST_ID = 2**63 - 1
DELETES_TRIED = 5  # others may delete the same facts meanwhile
NOTE = "written over HTTP"


@dataclass(frozen=True, kw_only=True)
class Upsert:
    """Facts to put into the memory, new or in place of what they said before."""

    facts: Sequence[StatedFact]


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Ids of facts to delete, each at least 0; what the memory does not hold is deleted already."""

    fact_ids: Sequence[int]


Write = Upsert | Deletion


@dataclass(frozen=True, kw_only=True)
class Written:
    """generation: the one that shows it. fact_ids: written or deleted; unknown: those to delete that were not there."""

    generation: int
    fact_ids: tuple[int, ...]
    unknown: tuple[int, ...] = ()


def write_facts(memory: Memory, encoder: Encoder, write: Write) -> Written:
    """Carry a write out; durable and visible through this memory on return. The same write again is safe.

    Raises Refused: invalid_request for facts that are none, conflict where the memory is another model's by now or was
    written with other features, unavailable where the storage failed.
    """
    try:
        return _upsert(memory, encoder, write) if isinstance(write, Upsert) else _delete(memory, write)
    except InputError as error:  # says which fact, and repeats nothing of it
        raise Refused("invalid_request", f"upsert: {error}") from error
    except DuplicateFact as error:
        raise Refused(
            "invalid_request", "upsert: two different facts have one id; rename one of the subjects"
        ) from error
    except (GenerationConflict, ConfigError) as error:
        raise Refused("conflict", "others change the memory at the moment; nothing was written, try again") from error
    except CommitUnknown as error:
        raise Refused("unavailable", "it is not known whether this was written; the same again is safe", 5) from error
    except StorageFailed as error:
        raise Refused("unavailable", "the memory cannot be written at the moment; nothing was written", 5) from error


def _upsert(memory: Memory, encoder: Encoder, write: Upsert) -> Written:
    manifest = memory.manifest
    if manifest.features not in (None, FEATURES_VERSION):
        raise Refused("conflict", "the facts of the memory have other text features; ingest them again")
    facts = facts_table(write.facts, grouping=manifest.grouping or "relation")
    # an embedder of its own: the same ids may come with other names the next time
    generation = memory.upsert(facts, FactEmbedder(encoder)(facts), note=f"{facts.num_rows:,} facts {NOTE}")
    return Written(generation=generation, fact_ids=tuple(fact_ids_of(facts).tolist()))


def _delete(memory: Memory, write: Deletion) -> Written:
    asked = list(dict.fromkeys(write.fact_ids))
    known = np.array([fact_id for fact_id in asked if fact_id <= LARGEST_ID], dtype=np.int64)
    for _ in range(DELETES_TRIED):
        held = known[memory.holds(known)]
        try:
            note = f"delete of {len(held):,} facts over HTTP"
            generation = memory.delete(held, note=note) if len(held) else memory.generation
        except UnknownFact:
            memory.refresh()  # somebody else deleted one of them first
            continue
        deleted = set(held.tolist())
        return Written(
            generation=generation,
            fact_ids=tuple(fact_id for fact_id in asked if fact_id in deleted),
            unknown=tuple(fact_id for fact_id in asked if fact_id not in deleted),
        )
    raise Refused("conflict", "others delete the same facts at the moment; nothing was deleted, try again")
