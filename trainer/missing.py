"""Questions that ask for facts which the memory does not hold, in words for a person."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from memory_store.manifest import Manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage

__all__ = ["missing_words", "none_held_words", "question_words"]


def missing_words(missing: int, questions: int, *, kind: str = "", example: str | None = None) -> str:
    """`2 of 10 training questions ask for facts that the memory does not hold, for example ...`; "" where none does.

    kind: what goes before "questions". example: as `question_words` gives it.
    """
    if not missing:
        return ""
    named = f", for example {example}" if example else ""
    return (
        f"{missing:,} of {questions:,} {kind}{' ' if kind else ''}questions ask{'s' if missing == 1 else ''} for facts "
        f"that the memory does not hold{named}"
    )


def question_words(question: Mapping[str, Any]) -> str:
    """A question and what is looked up for it. question: a row of QUESTIONS_SCHEMA."""
    return f"{question['question']!r} (subject {question['subject_id']!r}, relation {question['relation']!r})"


def none_held_words(questions: pa.Table, storage: Storage, manifest: Manifest) -> str:
    """What is wrong where the memory holds the facts of no question: one that is looked up beside one that is there.

    questions: of QUESTIONS_SCHEMA, at least one.
    """
    (asked,) = questions.slice(0, 1).to_pylist()
    held = _like(asked["relation"], storage, manifest)
    named = f", named {held['subject']!r}" if held and held["subject"] not in (None, held["subject_id"]) else ""
    beside = f"subject {held['subject_id']!r}{named}, relation {held['relation']!r}" if held else "no fact at all"
    return (
        f"expected training questions about facts of the memory, found {questions.num_rows:,} questions, none of them "
        f"about a fact it holds: the first is {question_words(asked)}, and the memory holds, for example, {beside}; "
        "name the subject of a question by its id where the facts have ids, by its name where they have none, or "
        "ingest the facts they ask for"
    )


def _like(relation: str, storage: Storage, manifest: Manifest) -> dict[str, Any] | None:
    """A fact of the memory, with this relation if there is one."""
    first = None
    for facts in scan_facts(storage, manifest, columns=["subject_id", "subject", "relation"]):
        at = pc.index(facts["relation"], relation).as_py()
        if facts.num_rows and (at >= 0 or first is None):
            first = facts.slice(max(at, 0), 1).to_pylist()[0]
        if at >= 0:
            break
    return first
