"""Triples of some subjects into their facts: grouped, deduplicated, named, sorted by id, with features. Pure arrays."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.errors import DuplicateFact
from memory_store.parts import FACTS_SCHEMA
from pipeline.facts import fact_ids
from pipeline.features import Ragged, relation_features, text_features

# N triples as read, U distinct triples, F facts, S subjects, M names of all subjects together

__all__ = ["Grouped", "group_facts"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouped:
    """facts: a table of FACTS_SCHEMA sorted by fact_id. triples: distinct ones; known: those of the first rows."""

    facts: pa.Table
    triples: int
    known: int
    subjects: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coded:
    """Texts as codes: text n is values[codes_N[n]]; a null has code -1."""

    codes_N: NDArray[np.int64]
    values: pa.Array


def group_facts(
    triples: pa.Table, names: pa.Table, object_names: pa.Table, *, grouping: str, known_rows: int = 0
) -> Grouped:
    """All facts of the subjects in `triples`, which holds every triple that these subjects have.

    triples: TRIPLES_SCHEMA, in order of reading; the first known_rows are facts that the memory has already. names and
    object_names: NAMES_SCHEMA; what subjects are called beside what the triples say, and what unnamed objects are
    called. grouping: "relation" (one fact per subject and relation) or "triple" (one fact per triple).
    Nothing here depends on which other subjects are in the table. DuplicateFact if two facts get one id.
    """
    subject, relation, object_ = (_coded(triples.column(name)) for name in ("subject_id", "relation", "object_id"))
    _, pair_N = np.unique(subject.codes_N * len(relation.values) + relation.codes_N, return_inverse=True)
    key_N = pair_N * len(object_.values) + object_.codes_N
    _, first_U, triple_N = np.unique(key_N, return_index=True, return_inverse=True)
    label_N = np.arange(len(first_U)) if grouping == "triple" else pair_N[first_U]
    row_U = first_U[np.lexsort((first_U, label_N))]  # facts together, objects in order of reading
    of_fact_U = label_N[np.lexsort((first_U, label_N))]
    start_F = np.flatnonzero(np.diff(of_fact_U, prepend=-1))
    row_F = row_U[start_F]

    id_N = triples.column("object_id").combine_chunks() if grouping == "triple" else None
    subject_F = subject.codes_N[row_F]
    subject_id_F = subject.values.take(pa.array(subject_F))
    relation_F = relation.values.take(pa.array(relation.codes_N[row_F]))
    id_F = fact_ids(subject_id_F, relation_F, None if id_N is None else id_N.take(pa.array(row_F)))
    order_F = np.argsort(id_F, kind="stable")
    _refuse_equal_ids(id_F, order_F, subject_id_F, relation_F)

    objects_U = _object_names(triples, object_, object_names, row_U, triple_N)
    offsets = np.append(start_F, len(row_U)).astype(np.int32)
    object_ids = pa.ListArray.from_arrays(offsets, object_.values.take(pa.array(object_.codes_N[row_U])))
    objects = pa.ListArray.from_arrays(offsets, objects_U)
    called = _subject_names(triples, names, subject)
    columns = {
        "fact_id": pa.array(id_F),
        "subject_id": subject_id_F,
        "subject": called.first_S.take(pa.array(subject_F)),
        "aliases": called.aliases_S.take(pa.array(subject_F)),
        "relation": relation_F,
        "object_ids": object_ids,
        "objects": objects,
        "features": pa.StructArray.from_arrays(
            [
                called.features_S.take(pa.array(subject_F)),
                _lists(relation_features(relation.values.to_pylist())).take(pa.array(relation.codes_N[row_F])),
            ],
            fields=list(FACTS_SCHEMA.field("features").type),
        ),
    }
    facts = pa.table([columns[name] for name in FACTS_SCHEMA.names], schema=FACTS_SCHEMA).take(pa.array(order_F))
    return Grouped(
        facts=facts,
        triples=len(first_U),
        known=int(np.count_nonzero(first_U < known_rows)),
        subjects=len(subject.values),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Called:
    """What each subject is called: string [S], list<string> [S], list<list<uint32>> [S] with the subject first."""

    first_S: pa.Array
    aliases_S: pa.Array
    features_S: pa.Array


def _subject_names(triples: pa.Table, names: pa.Table, subject: _Coded) -> _Called:
    """Names given for the subject first, then those that stand in its triples; its id if it has none."""
    given_M = pc.index_in(names.column("entity_id").combine_chunks(), subject.values)
    inline_N = triples.column("subject").combine_chunks()
    own_S = np.arange(len(subject.values))
    subject_M = np.concatenate([_codes(given_M), subject.codes_N, own_S])
    name = _coded(pa.chunked_array([*names.column("name").chunks, inline_N, subject.values], pa.string()))
    is_id_M = np.arange(len(subject_M)) >= len(subject_M) - len(own_S)
    known_M = (subject_M >= 0) & (name.codes_N >= 0)
    has_name_S = np.bincount(subject_M[known_M & ~is_id_M], minlength=len(own_S)) > 0
    kept_M = np.flatnonzero(known_M & ~(is_id_M & has_name_S[subject_M]))
    # The first time that each subject is called each name, in order of reading within the subject.
    _, first_M = np.unique(subject_M[kept_M] * len(name.values) + name.codes_N[kept_M], return_index=True)
    kept_M = kept_M[first_M]
    kept_M = kept_M[np.lexsort((kept_M, subject_M[kept_M]))]
    offsets_S = np.searchsorted(subject_M[kept_M], np.arange(len(own_S) + 1)).astype(np.int32)

    used, code_M = np.unique(name.codes_N[kept_M], return_inverse=True)
    distinct = name.values.take(pa.array(used))
    features_M = _lists(text_features(distinct.to_pylist())).take(pa.array(code_M))
    text_M = distinct.take(pa.array(code_M))
    is_alias_M = np.ones(len(kept_M), dtype=np.bool_)
    is_alias_M[offsets_S[:-1]] = False
    return _Called(
        first_S=text_M.take(pa.array(offsets_S[:-1])),
        aliases_S=pa.ListArray.from_arrays(
            (offsets_S - np.arange(len(offsets_S))).astype(np.int32), text_M.filter(pa.array(is_alias_M))
        ),
        features_S=pa.ListArray.from_arrays(offsets_S, features_M),
    )


def _object_names(
    triples: pa.Table, object_: _Coded, object_names: pa.Table, row_U: NDArray[np.int64], triple_N: NDArray[np.int64]
) -> pa.Array:
    """What each distinct triple calls its object: what the first of its rows says, what the names say, the id."""
    inline_N = triples.column("object").combine_chunks()
    named_N = np.flatnonzero(np.asarray(pc.is_valid(inline_N)))
    _, first_named = np.unique(triple_N[named_N], return_index=True)
    naming_row = np.full(len(row_U), -1, dtype=np.int64)
    naming_row[triple_N[named_N[first_named]]] = named_N[first_named]
    naming_row_U = naming_row[triple_N[row_U]]
    said_U = inline_N.take(pa.array(naming_row_U, mask=naming_row_U < 0))
    # index_in finds the first of several names
    at_O = pc.index_in(object_.values, object_names.column("entity_id").combine_chunks())
    name_O = pc.coalesce(object_names.column("name").combine_chunks().take(at_O), object_.values)
    return pc.coalesce(said_U, name_O.take(pa.array(object_.codes_N[row_U])))


def _refuse_equal_ids(
    id_F: NDArray[np.int64], order_F: NDArray[np.int64], subject_id_F: pa.Array, relation_F: pa.Array
) -> None:
    equal = np.flatnonzero(np.diff(id_F[order_F]) == 0)
    if len(equal):
        one, two = (int(order_F[equal[0] + step]) for step in (0, 1))
        raise DuplicateFact(
            f"two facts have the id {id_F[one]}: ({subject_id_F[one]}, {relation_F[one]}) and "
            f"({subject_id_F[two]}, {relation_F[two]}); rename one of the subjects"
        )


def _coded(column: pa.ChunkedArray) -> _Coded:
    encoded = column.combine_chunks()
    encoded = (encoded if isinstance(encoded, pa.Array) else pa.concat_arrays(encoded.chunks)).dictionary_encode()
    return _Coded(codes_N=_codes(encoded.indices), values=encoded.dictionary)


def _codes(indices: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(indices, -1)).astype(np.int64)


def _lists(ragged: Ragged) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ragged.offsets.astype(np.int32)), pa.array(ragged.values))
