"""Text features: the normalisation, and hashes that depend on the text alone."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.features import Ragged, normalise, question_features, relation_features, text_features, words


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Where was Sasha Vujačić born?", "where was sasha vujacic born"),
        ("obama 's", "obama s"),
        ("Obama's", "obama s"),
        ("Obama’s", "obama s"),
        ("don 't stop", "don t stop"),
        ("J.R.R.  Tolkien", "j r r tolkien"),
        ("eve-olution", "eve olution"),
        ("Łódź Straße Ærøskøbing", "lodz strasse aeroskobing"),
        ("ＦＵＬＬ ｗｉｄｔｈ", "full width"),
        ("Ёлка Ωμέγα", "елка ωμεγα"),
        ("東京", "東京"),
        ("서울", "서울"),
        ("القَاهِرة", "القاهرة"),
        ("!!!", "!!!"),
        ("who plays in !!!", "who plays in"),
        ("", ""),
        (" \t\n", ""),
        ("a\0b", "a b"),
    ],
)
def test_normalise_folds_what_people_write_differently(written: str, plain: str) -> None:
    assert normalise(written) == plain


def test_indic_vowel_signs_are_letters() -> None:
    assert normalise("दिल्ली") == "दिल्ली"
    assert normalise("दिल्ली") != normalise("दल्ला")


TEXTS = ["Denton", "", "what's up, 東京?", "Denton", "a", "!!!", "\0", "x" * 300, "दिल्ली", "don 't", "don't"]


def test_features_of_a_text_do_not_depend_on_its_neighbours() -> None:
    together = text_features(TEXTS)
    assert len(together) == len(TEXTS)
    for number, text in enumerate(TEXTS):
        np.testing.assert_array_equal(together[number], text_features([text])[0])


def test_features_are_unique_and_sorted_within_a_text() -> None:
    ragged = text_features(["na na na na batman", "banana banana"])
    for number in range(len(ragged)):
        np.testing.assert_array_equal(ragged[number], np.unique(ragged[number]))


def _count_by_plain_loop(text: str) -> int:
    parts = text.split()
    padded = f" {text} "
    grams = {padded[at : at + length] for length in (3, 4, 5) for at in range(len(padded) - length + 1)}
    return len(set(parts)) + len(set(pairwise(parts))) + len(grams) + (len(parts) <= 8)


@pytest.mark.parametrize("text", ["is no batman no robin", "a", "a b c d e f g h", "a b c d e f g h i"])
def test_a_text_has_the_features_that_a_plain_loop_finds(text: str) -> None:
    assert len(text_features([text])[0]) == _count_by_plain_loop(text)


def test_the_same_words_give_the_same_features_however_written() -> None:
    for left, right in [("don 't", "don't"), ("OBAMA 's", "Obama’s"), ("  a   b ", "a b"), ("São Paulo", "sao paulo")]:
        np.testing.assert_array_equal(text_features([left])[0], text_features([right])[0])


def test_texts_without_any_visible_character_have_no_features() -> None:
    assert text_features(["", "  ", "\n"]).offsets.tolist() == [0, 0, 0, 0]
    assert len(text_features([])) == 0
    assert len(text_features(["!!!"])[0]) > 0


def test_a_word_hashes_alike_in_a_question_and_in_a_relation() -> None:
    shared = np.intersect1d(text_features(["birth"])[0], relation_features(["people/person/place_of_birth"])[0])
    assert len(shared) == 1


def test_a_relation_has_its_words_and_itself() -> None:
    ragged = relation_features(["people/person/place_of_birth", "people/person/place_of_death", "", "x"])
    assert np.diff(ragged.offsets).tolist() == [6, 6, 1, 2]
    assert len(np.intersect1d(ragged[0], ragged[1])) == 4
    np.testing.assert_array_equal(relation_features(["x"])[0], ragged[3])
    assert len(relation_features([])) == 0


def test_hashes_are_the_ones_that_memories_on_disk_hold() -> None:
    """Golden values: a change here needs a new FEATURES_VERSION."""
    assert text_features(["Ab"])[0].tolist() == GOLDEN_TEXT
    assert relation_features(["a/b"])[0].tolist() == GOLDEN_RELATION


def test_different_names_have_different_features() -> None:
    names = [f"{first} {last}" for first in ("ann", "bob", "cem") for last in map(str, range(2000))]
    ragged = text_features(names)
    assert len({ragged[number].tobytes() for number in range(len(ragged))}) == len(names)


def test_many_texts_are_hashed_as_one_by_one() -> None:
    names = [f"name {number}" for number in range(5000)]
    ragged = text_features(names)
    assert len(ragged) == len(names)
    np.testing.assert_array_equal(ragged[4999], text_features(["name 4999"])[0])
    np.testing.assert_array_equal(ragged[0], text_features(["name 0"])[0])


def test_a_list_outside_the_ragged_array_is_refused() -> None:
    with pytest.raises(IndexError, match="list 1 of 1"):
        Ragged(offsets=np.array([0, 1]), values=np.array([7], np.uint32))[1]


def test_a_question_has_the_features_of_its_text_and_of_every_span() -> None:
    for text in TEXTS[:-3]:
        of_question = question_features([text])
        assert set(text_features([text])[0].tolist()) <= set(of_question.values.tolist())
    question = question_features(["where was Sasha  Vujačić born?", "", "in Denton, Texas"])
    for name in ("Sasha Vujacic", "born", "where was sasha vujacic born", "sasha"):
        assert set(text_features([name])[0].tolist()) - set(question.values[: question.offsets[1]].tolist()) == set()
    assert set(text_features(["Denton Texas"])[0].tolist()) <= set(question.values[question.offsets[2] :].tolist())
    assert question.word_offsets.tolist() == [0, 5, 5, 8]
    assert question.offsets[1] == question.offsets[2]


def test_a_feature_knows_the_words_it_covers() -> None:
    question = question_features(["a bb", "ccc bb"])
    pair = next(
        iter(set(text_features(["ccc bb"])[0]) - set(text_features(["ccc"])[0]) - set(text_features(["bb"])[0]))
    )
    at = np.flatnonzero(question.values == pair)
    assert question.first_word_V[at].tolist() == [2]
    assert question.last_word_V[at].tolist() == [3]
    for word, numbers in ((0, [0]), (1, [1, 3]), (2, [2])):
        own = question.values[(question.first_word_V == word) & (question.last_word_V == word)]
        for number in numbers:
            assert set(own) == set(
                question.values[(question.first_word_V == number) & (question.last_word_V == number)]
            )
    assert question.first_word_V.max() == 3
    assert (question.first_word_V <= question.last_word_V).all()


def test_words_are_those_of_the_normalised_text() -> None:
    assert words(["Obama's  dog", "", "?"]) == [["obama", "s", "dog"], [], ["?"]]


GOLDEN_TEXT = [1369574351, 1973662343, 2528261113, 3085368523, 3530141717]
GOLDEN_RELATION = [960109079, 2617993129, 4019916387]


def test_some_of_a_questions_features_cover_the_same_words() -> None:
    whole = question_features(["a bb", "", "ccc bb a"])
    kept_V = np.arange(len(whole.values)) % 3 == 0
    some = whole.only(kept_V)
    np.testing.assert_array_equal(some.values, whole.values[kept_V])
    np.testing.assert_array_equal(some.first_word_V, whole.first_word_V[kept_V])
    np.testing.assert_array_equal(some.last_word_V, whole.last_word_V[kept_V])
    np.testing.assert_array_equal(some.word_offsets, whole.word_offsets)
    for text in range(3):
        start, stop = whole.offsets[text : text + 2]
        np.testing.assert_array_equal(
            some.values[some.offsets[text] : some.offsets[text + 1]], whole.values[start:stop][kept_V[start:stop]]
        )
