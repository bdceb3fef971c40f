"""Questions about places from paraphrases; some paraphrases and some places are held out for validation and test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from pipeline.sources.geonames import Place
from pipeline.sources.geonames_phrases import PHRASES
from pipeline.sources.place_names import PlaceNames

__all__ = ["Asked", "ask", "split_of_phrase", "split_of_place"]

_HELD_OUT_PLACES = {"valid": range(0, 10), "test": range(10, 20)}  # percent
_HELD_OUT_PHRASES = 6  # of so many paraphrases of a relation, one is for validation and one for test

_OTHER_NAME = 0.35  # of the questions call the place by one of its other names
_LOWER_CASE = 0.5  # are typed without capitals
_NO_MARK = 0.4  # are typed without the question mark

_IN_CONTEXT = ("{name}, {context}", "{name} in {context}", "{name} ({context})", "the {name} in {context}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and the fact it asks for; object_id is the first of the fact's objects."""

    question: str
    subject_id: str
    relation: str
    object_id: str


def ask(
    places: Sequence[Place], names: Sequence[PlaceNames], *, split: str, per_fact: int, most: int, seed: int
) -> list[Asked]:
    """Questions about the split's places in the split's words, deterministic in seed; places without a telling name
    are not asked about.

    per_fact: questions for each fact of a training place (one for each held-out fact). most: questions in all, drawn
    evenly from what there is.
    """
    facts = [
        (place, called, fact)
        for place, called in zip(places, names, strict=True)
        if called.telling and split_of_place(place.id, seed) == split
        for fact in place.facts
    ]
    facts = facts * (per_fact if split == "train" else 1)
    generator = np.random.default_rng([seed, xxhash.xxh32_intdigest(split.encode())])
    phrases = {
        relation: [text for number, text in enumerate(texts) if split_of_phrase(number, relation, seed) == split]
        for relation, texts in PHRASES.items()
    }
    chosen = generator.permutation(len(facts))[:most]
    asked = []
    for place, called, fact in (facts[number] for number in chosen):
        dice = generator.random(6)
        name = _name(place, called, dice)
        of_relation = phrases[fact.relation]
        asked.append(
            Asked(
                question=_typed(of_relation[int(dice[0] * len(of_relation))].replace("{x}", name), dice),
                subject_id=place.id,
                relation=fact.relation,
                object_id=fact.objects[0][0],
            )
        )
    return asked


def split_of_place(place_id: str, seed: int) -> str:
    """By a hash of the id: a place stays in its split however many others there are."""
    percent = xxhash.xxh3_64_intdigest(place_id.encode(), seed=seed) % 100
    return next((split for split, percents in _HELD_OUT_PLACES.items() if percent in percents), "train")


def split_of_phrase(number: int, relation: str, seed: int) -> str:
    """Which split uses paraphrase `number` of a relation: of every six, one is for validation and one for test."""
    turn = (number + xxhash.xxh32_intdigest(relation.encode(), seed=seed)) % _HELD_OUT_PHRASES
    return {0: "valid", 1: "test"}.get(turn, "train")


def _name(place: Place, called: PlaceNames, dice: np.ndarray) -> str:
    """One of the telling names, most often the usual one; a context that belongs to it is put in a way people write."""
    name = called.telling[0]
    if dice[1] < _OTHER_NAME:
        name = called.telling[int(dice[2] * len(called.telling))]
    bare = name.removesuffix(f", {place.context}")
    if place.context is None or bare == name:
        return name
    return _IN_CONTEXT[int(dice[3] * len(_IN_CONTEXT))].format(name=bare, context=place.context)


def _typed(question: str, dice: np.ndarray) -> str:
    question = question[0].upper() + question[1:]
    if dice[4] < _LOWER_CASE:
        question = question.lower()
    return question.rstrip("?") if dice[5] < _NO_MARK else question
