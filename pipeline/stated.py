"""Facts that a caller states one by one: cleaned, spelled, grouped and given their ids and features as by an ingest."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from memory_store.errors import InputError
from pipeline.facts import NAMES_SCHEMA
from pipeline.group import group_facts
from pipeline.sources.rows import BadRow, check_names, check_triples

__all__ = ["StatedFact", "facts_table"]


@dataclass(frozen=True, kw_only=True)
class StatedFact:
    """A subject, a relation and what they lead to. aliases: further names of the subject.

    objects: the names of the object_ids, None for one without a name; or none at all.
    """

    subject_id: str
    relation: str
    object_ids: tuple[str, ...]
    subject: str | None = None
    aliases: tuple[str, ...] = ()
    objects: tuple[str | None, ...] = ()


def facts_table(stated: Sequence[StatedFact], *, grouping: str) -> pa.Table:
    """The facts as a table of FACTS_SCHEMA, sorted by fact_id, without vectors.

    Those that share subject and relation become one fact, or each of their objects one: see `group_facts`. Raises
    InputError, which counts the facts from 0, for a fact that an ingest would put into quarantine; DuplicateFact.
    """
    for number, fact in enumerate(stated):
        if fact.objects and len(fact.objects) != len(fact.object_ids):
            raise InputError(
                f"fact {number}: expected as many objects as object_ids ({len(fact.object_ids)}) or none, "
                f"found {len(fact.objects)}"
            )
    triples = [
        (number, (fact.subject_id, fact.subject, fact.relation, object_id, name))
        for number, fact in enumerate(stated)
        for object_id, name in zip(fact.object_ids, fact.objects or (None,) * len(fact.object_ids), strict=True)
    ]
    columns = ("subject_id", "subject", "relation", "object_id", "object")
    clean, bad = check_triples(_columns(columns, [row for _, row in triples]), _numbers(triples), _nothing)
    _refuse(bad)
    named = [
        (number, (fact.subject_id, name))
        for number, fact in enumerate(stated)
        for name in chain((fact.subject,), fact.aliases)
        if name and name.strip()
    ]
    names, bad = check_names(_columns(NAMES_SCHEMA.names, [row for _, row in named]), _numbers(named), _nothing)
    _refuse(bad)
    return group_facts(clean, names, NAMES_SCHEMA.empty_table(), grouping=grouping).facts


def _columns(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> dict[str, pa.Array]:
    return {name: pa.array([row[column] for row in rows], pa.string()) for column, name in enumerate(names)}


def _numbers(rows: Sequence[tuple[int, object]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([number for number, _ in rows], dtype=np.int64)


def _refuse(bad: Sequence[BadRow]) -> None:
    if bad:
        raise InputError(f"fact {bad[0].line}: {bad[0].reason}")


def _nothing(_number: int) -> str:
    """What was sent is not repeated."""
    return ""
