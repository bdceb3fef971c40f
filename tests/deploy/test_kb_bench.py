"""hmn bench kb: why a larger memory answers a question wrongly."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.bench.kb import REASONS, _gold_objects, reason_of
from pipeline.ingest import ingest

ASKED = "who directed the film The Third Man"


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("not held", {"is_held": False, "read_objects": ("Carol Reed",)}),
        ("same answer", {"read_subject": "third man", "read_objects": ("carol reed",)}),
        ("same name", {"read_subject": "the third-man"}),
        ("named too", {"read_subject": "Third"}),
        ("named too", {"read_subject": "The Third"}),
        ("misread", {"read_subject": "hird Man"}),
        ("misread", {"read_subject": None}),
        ("misread", {"read_subject": ""}),
    ],
)
def test_the_first_reason_that_holds_is_given(reason: str, changed: dict[str, object]) -> None:
    facts = {"is_held": True, "gold_subject": "The Third Man", "read_subject": "Vienna", "read_objects": ("1949",)}
    assert reason_of(ASKED, gold_objects=("Carol Reed",), **{**facts, **changed}) == reason  # type: ignore[arg-type]
    assert reason in REASONS


def test_names_without_letters_are_not_taken_for_equal() -> None:
    reason = reason_of(
        "who?", is_held=True, gold_subject="!!!", read_subject="???", gold_objects=("!",), read_objects=("?",)
    )
    assert reason == "misread"


@pytest.mark.parametrize("grouping", ["relation", "triple"])
def test_what_a_path_leads_to_is_found_however_facts_are_grouped(tmp_path: Path, grouping: str) -> None:
    (tmp_path / "facts.tsv").write_text("m.0a\tfilm/directed_by\tm.0b\nm.0a\tfilm/directed_by\tm.0c\n")
    (tmp_path / "names.tsv").write_text("m.0b\tCarol Reed\n")
    ingest(str(tmp_path / "facts.tsv"), str(tmp_path / "memory"), names=str(tmp_path / "names.tsv"), grouping=grouping)
    lost = [SimpleNamespace(gold_subject_id=subject, gold_relation="film/directed_by") for subject in ("m.0a", "m.0z")]
    held, missing = _gold_objects(tmp_path / "memory", lost)
    assert held is not None
    assert sorted(held) == ["Carol Reed", "m.0c"]
    assert missing is None
