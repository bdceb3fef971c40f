"""Content ids, the one spelling of ids, and clean text."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.facts import clean, fact_id_of, fact_ids, normalise_entity, normalise_relation

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Z", "Cs")), min_size=1, max_size=8)


@pytest.mark.parametrize(
    "text",
    [
        "www.freebase.com/m/02mjmr",
        "http://www.freebase.com/m/02mjmr",
        "http://rdf.freebase.com/ns/m.02mjmr",
        "/m/02mjmr",
        "m.02mjmr",
        "  m.02mjmr\t",
    ],
)
def test_a_freebase_entity_has_one_spelling(text: str) -> None:
    assert normalise_entity(text) == "m.02mjmr"


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("www.freebase.com/people/person/place_of_birth", "people.person.place_of_birth"),
        ("/people/person/place_of_birth", "people.person.place_of_birth"),
        ("people.person.place_of_birth", "people.person.place_of_birth"),
        ("www.freebase.com/a/b/won//award/honor/winner", "a.b.won..award.honor.winner"),
        ("/a/b/won./award/honor/winner", "a.b.won..award.honor.winner"),
        ("born in", "born in"),
    ],
)
def test_a_relation_has_one_spelling(text: str, spelling: str) -> None:
    assert normalise_relation(text) == spelling


@pytest.mark.parametrize("text", ["Paris", "/usr/bin", "https://example.org/m/1", "mq291", "a/b/c", "wd:Q90"])
def test_ids_of_other_schemes_stay_as_they_are(text: str) -> None:
    assert normalise_entity(text) == text


def test_wikidata_and_dbpedia_addresses_are_shortened() -> None:
    assert normalise_entity("www.wikidata.org/entity/Q90") == "wd:Q90"
    assert normalise_entity("http://dbpedia.org/resource/Ab_C") == "dbr:Ab_C"


def test_clean_text_has_single_spaces_no_control_characters_and_composed_accents() -> None:
    dirty = pa.array(["  New\u00a0\u00a0York\r", "a\x00b\x07c", "Cafe\u0301", "\ufeffbom", "plain", None, "\u3000"])
    assert clean(dirty).to_pylist() == ["New York", "a b c", "Café", "bom", "plain", None, ""]


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean(pa.array([text], pa.string()))
    assert clean(once) == once


@given(words, words, words)
def test_every_spelling_and_both_ways_of_minting_give_one_id(subject: str, relation: str, object_id: str) -> None:
    spelled = [normalise_entity(subject), normalise_relation(relation), normalise_entity(object_id)]
    columns = [pa.array([text]) for text in spelled]
    assert fact_id_of(subject, relation) == int(fact_ids(*columns[:2])[0])
    assert fact_id_of(subject, relation, object_id) == int(fact_ids(*columns)[0])
    assert fact_id_of(f"www.freebase.com/m/{subject}", relation) == fact_id_of(f"/m/{subject}", relation)
    assert 0 <= fact_id_of(subject, relation, object_id) < 2**63


def test_the_borders_between_fields_count() -> None:
    ids = {fact_id_of("ab", "c"), fact_id_of("a", "bc"), fact_id_of("a", "b", "c"), fact_id_of("a", "b:c")}
    assert len(ids) == 4


def test_fact_ids_never_change() -> None:
    """They are in every memory and checkpoint that was ever written."""
    assert fact_id_of("m.02mjmr", "people.person.place_of_birth") == 5191650836489048917
    assert fact_id_of("Paris", "country", "France") == 7668400556362231905
    assert fact_ids(pa.array(["é"]), pa.array(["r"])).dtype == np.int64
