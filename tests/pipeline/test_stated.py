"""Facts that a caller states become what an ingest would have made of them."""

from pathlib import Path

import pytest

from memory_store.errors import InputError
from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from pipeline.ingest import ingest
from pipeline.stated import StatedFact, facts_table

PERU = StatedFact(
    subject_id="/m/016wzw", subject=" Peru ", relation="capital", object_ids=("/m/04lh6",), objects=("Lima",)
)


@pytest.mark.parametrize("grouping", ["relation", "triple"])
def test_a_stated_fact_is_the_fact_that_an_ingest_makes_of_it(tmp_path: Path, grouping: str) -> None:
    head = "subject_id\tsubject\trelation\tobject_id\tobject\n"
    rows = "/m/016wzw\tPeru\tcapital\t/m/04lh6\tLima\n/m/016wzw\tPeru\tcity\tc1\t\n/m/016wzw\tPeru\tcity\tc2\tCusco\n"
    (tmp_path / "facts.tsv").write_text(head + rows)
    ingest([str(tmp_path / "facts.tsv")], str(tmp_path / "kb"), grouping=grouping)
    storage = Storage(str(tmp_path / "kb"))
    (ingested,) = scan_facts(storage, read_manifest(storage))
    cities = StatedFact(
        subject_id="m.016wzw", subject="Peru", relation="city", object_ids=("c1", "c2"), objects=(None, "Cusco")
    )
    assert facts_table([PERU, cities], grouping=grouping).to_pylist() == ingested.to_pylist()


def test_aliases_are_names_beside_the_first() -> None:
    stated = StatedFact(subject_id="p", subject="Peru", aliases=("Perú", "Peru"), relation="r", object_ids=("o",))
    (row,) = facts_table([stated], grouping="relation").to_pylist()
    assert (row["subject"], row["aliases"], row["objects"]) == ("Peru", ["Perú"], ["o"])
    assert len(row["features"]["subject"]) == 2


def test_facts_of_one_subject_and_relation_are_one_fact() -> None:
    more = StatedFact(subject_id="m.016wzw", relation="capital", object_ids=("m.04lh6", "x"))
    (row,) = facts_table([PERU, more], grouping="relation").to_pylist()
    assert row["object_ids"] == ["m.04lh6", "x"]


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        (StatedFact(subject_id=" \x00 ", relation="r", object_ids=("o",)), "fact 1: empty subject_id"),
        (StatedFact(subject_id="s", relation="r", object_ids=("o", "\u200b")), "fact 1: empty object_id"),
        (StatedFact(subject_id="s", relation="r" * 70_000, object_ids=("o",)), "fact 1: relation has 70,000 bytes"),
        (StatedFact(subject_id="s", relation="r", object_ids=("o",), aliases=("\x00",)), "fact 1: empty name"),
        (StatedFact(subject_id="s", relation="r", object_ids=("o",), objects=("a", "b")), "fact 1: expected as many"),
    ],
)
def test_a_fact_that_an_ingest_would_reject_is_refused_by_its_number(fact: StatedFact, message: str) -> None:
    with pytest.raises(InputError, match=message):
        facts_table([PERU, fact], grouping="relation")
