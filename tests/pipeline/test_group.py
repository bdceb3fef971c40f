"""Grouping equals a plain dictionary model: facts, objects in order, names, ids; whatever else is in the table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.errors import DuplicateFact
from pipeline import group
from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA, fact_id_of
from pipeline.features import relation_features, text_features
from pipeline.group import Grouped, group_facts

some_id = st.sampled_from(["a", "b", "c"])
some_name = st.none() | st.sampled_from(["Anna", "Ben", "Ço"])
rows_of_triples = st.lists(st.tuples(some_id, some_name, st.sampled_from(["r", "s"]), some_id, some_name), min_size=1)
rows_of_names = st.lists(st.tuples(some_id, some_name.filter(bool)), max_size=6)
groupings = st.sampled_from(["relation", "triple"])


def table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=schema)


def grouped(triples: list[Any], names: list[Any], grouping: str, known_rows: int = 0) -> Grouped:
    called = table(names, NAMES_SCHEMA)
    return group_facts(table(triples, TRIPLES_SCHEMA), called, called, grouping=grouping, known_rows=known_rows)


def model(triples: list[Any], names: list[Any], grouping: str) -> dict[int, dict[str, Any]]:
    facts: dict[int, dict[str, Any]] = {}
    for subject, _, relation, object_id, _ in triples:
        fact_id = fact_id_of(subject, relation, object_id if grouping == "triple" else None)
        fact = facts.setdefault(fact_id, {"subject_id": subject, "relation": relation, "object_ids": []})
        if object_id not in fact["object_ids"]:
            fact["object_ids"].append(object_id)
    for fact in facts.values():
        subject = fact["subject_id"]
        called = [name for entity, name in names if entity == subject]
        called += [row[1] for row in triples if row[0] == subject and row[1]]
        distinct = list(dict.fromkeys(called)) or [subject]
        fact["subject"], fact["aliases"] = distinct[0], distinct[1:]
        fact["objects"] = []
        for object_id in fact["object_ids"]:
            said = [row[4] for row in triples if (row[0], row[2], row[3]) == (subject, fact["relation"], object_id)]
            given = [name for entity, name in names if entity == object_id]
            fact["objects"].append(([name for name in said if name] + given + [object_id])[0])
    return facts


@given(rows_of_triples, rows_of_names, groupings)
def test_grouping_equals_the_model(triples: list[Any], names: list[Any], grouping: str) -> None:
    result = grouped(triples, names, grouping)
    expected = model(triples, names, grouping)
    rows = result.facts.drop_columns("features").to_pylist()
    assert [row.pop("fact_id") for row in rows] == sorted(expected)
    assert rows == [expected[fact_id] for fact_id in sorted(expected)]
    assert result.triples == len({(row[0], row[2], row[3]) for row in triples})
    assert result.subjects == len({row[0] for row in triples})


@given(rows_of_triples, rows_of_names, groupings)
def test_facts_do_not_depend_on_the_other_subjects(triples: list[Any], names: list[Any], grouping: str) -> None:
    together = {row["fact_id"]: row for row in grouped(triples, names, grouping).facts.to_pylist()}
    alone = {}
    for subject in {row[0] for row in triples}:
        only = [row for row in triples if row[0] == subject]
        alone |= {row["fact_id"]: row for row in grouped(only, names, grouping).facts.to_pylist()}
    assert alone == together


@given(rows_of_triples, rows_of_names, groupings, st.integers(0, 5))
def test_known_triples_are_counted_once(triples: list[Any], names: list[Any], grouping: str, known_rows: int) -> None:
    known_rows = min(known_rows, len(triples))
    result = grouped(triples, names, grouping, known_rows)
    assert result.known == len({(row[0], row[2], row[3]) for row in triples[:known_rows]})


def test_features_are_one_list_per_name_and_one_for_the_relation() -> None:
    facts = grouped([("a", None, "born in", "b", None)], [("a", "Anna Lee"), ("a", "Анна")], "relation").facts
    (features,) = facts.column("features").to_pylist()
    expected = text_features(["Anna Lee", "Анна"])
    assert features["subject"] == [expected[0].tolist(), expected[1].tolist()]
    assert features["relation"] == relation_features(["born in"])[0].tolist()


def test_two_facts_with_one_id_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    same: Callable[..., Any] = lambda subject_id, *_: np.zeros(len(subject_id), dtype=np.int64)  # noqa: E731
    monkeypatch.setattr(group, "fact_ids", same)
    with pytest.raises(DuplicateFact, match=r"two facts have the id 0: \(a, r\) and \(b, s\)"):
        grouped([("a", None, "r", "x", None), ("b", None, "s", "x", None)], [], "relation")
