"""hmn bench kb: why a larger memory answers a question wrongly."""

import pytest

from deploy.bench.kb import REASONS, reason_of

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
