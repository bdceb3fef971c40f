"""Text to features: one normalisation, then hashes of words, word pairs, character grams, whole names. Pure numpy."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

# T texts, C characters of all texts together, W words of all texts together, V features of all texts together

__all__ = [
    "FEATURES_VERSION",
    "QuestionFeatures",
    "Ragged",
    "normalise",
    "question_features",
    "relation_features",
    "text_features",
    "words",
]

FEATURES_VERSION = "words+bigrams+char345+whole8/2"
"""Changes whenever the same text would give other hashes; memories and checkpoints record it and refuse a mismatch."""

_END = "\0"  # stands before and after every text in the joined string
_SPACE = 32
_CHARACTER_GRAMS = (3, 4, 5)
_LONGEST_SPAN = 8  # words; nearly every name is shorter, and a longer one has features enough
_TEXTS_AT_ONCE = 4096  # the arrays of so many names stay in the processor's cache: twice as fast as all at once

# Letters whose accent is a stroke or a ligature: Unicode does not decompose them, people type the plain letter.
_PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "đ": "d", "ð": "d", "ł": "l", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ƒ": "f"}
)
# Marks that are decoration: Latin, Greek and Cyrillic accents, Hebrew points, Arabic vowels. Indic vowel signs are not.
_MARKS = dict.fromkeys([*range(0x0300, 0x0370), *range(0x0591, 0x05C8), *range(0x064B, 0x0653)])

# Odd 64-bit constants from splitmix64 and xxhash: one salt for each kind of feature keeps the kinds apart.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SALT_WORD = np.uint64(0xC2B2AE3D27D4EB4F)
_SALT_BIGRAM = np.uint64(0x165667B19E3779F9)
_SALT_GRAM = np.uint64(0x27D4EB2F165667C5)
_SALT_SPAN = np.uint64(0x9FB21C651E98DF25)
_SALT_RELATION = np.uint64(0xD6E8FEB86659FD93)


_NO_HASHES = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """Lists of different lengths in two arrays: list t is values[offsets[t]:offsets[t + 1]].

    offsets: int64 [T + 1], from 0, not decreasing. values: uint32 [offsets[T]].
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        if not 0 <= index < len(self):
            raise IndexError(f"list {index} of {len(self)} lists")
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionFeatures:
    """The features of T questions, and which of the question's words each feature covers.

    offsets: int64 [T + 1]; values: uint32 [V], hashes as in `text_features`, repeated where they occur again, the
    first word's first. first_word_V, last_word_V: int64, word numbers counted through all questions.
    word_offsets: int64 [T + 1], the words of question t are word_offsets[t] to word_offsets[t + 1].
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.uint32]
    first_word_V: NDArray[np.int64]
    last_word_V: NDArray[np.int64]
    word_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def only(self, kept_V: NDArray[np.bool_]) -> "QuestionFeatures":
        """The same questions and words with some of the features."""
        kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept_V)])
        return QuestionFeatures(
            offsets=kept[self.offsets],
            values=self.values[kept_V],
            first_word_V=self.first_word_V[kept_V],
            last_word_V=self.last_word_V[kept_V],
            word_offsets=self.word_offsets,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Spaced:
    """All texts as code points: one space before every word and one after the last word of every text."""

    codes_C: NDArray[np.uint32]
    text_C: NDArray[np.int64]
    num_texts: int


def normalise(text: str) -> str:
    """The one text normalisation: case and accents folded, everything but letters and digits made a space.

    An apostrophe is a space too, so that "Obama's", "obama 's" and "obama s" are the same words. A text without any
    letter or digit (a band called "!!!") keeps its symbols as one word.
    """
    return _as_text(_spaced([text]).codes_C).strip()


def words(texts: Sequence[str]) -> list[list[str]]:
    """The normalised words of each text."""
    spaced = _spaced(texts)
    bounds = np.searchsorted(spaced.text_C, np.arange(spaced.num_texts + 1))
    joined = _as_text(spaced.codes_C)
    return [joined[start:stop].split() for start, stop in pairwise(bounds)]


def text_features(texts: Sequence[str]) -> Ragged:
    """Hashes of the words, neighbouring word pairs, character 3-, 4- and 5-grams of each text, and of it as a whole.

    Values are raw 32-bit hashes, unique and sorted within a text (encoders reduce them modulo their table size).
    Character grams see one space around each word, so that they know where words begin, end and meet. A text of at
    most eight words has one more feature: all its words in order, which `question_features` gives every span of a
    question. A text with no visible character has no features.
    """
    pieces = [_names_at_once(texts[at : at + _TEXTS_AT_ONCE]) for at in range(0, len(texts), _TEXTS_AT_ONCE)]
    lengths_T = np.concatenate([np.zeros(1, np.int64), *(np.diff(piece.offsets) for piece in pieces)])
    values = np.concatenate([np.zeros(0, np.uint32), *(piece.values for piece in pieces)])
    return Ragged(offsets=np.cumsum(lengths_T), values=values)


def question_features(texts: Sequence[str]) -> QuestionFeatures:
    """The features of `text_features` with the words they cover, and a feature for every span of up to eight words.

    The span that is exactly a name has the feature that stands for that name as a whole.
    """
    spaced = _spaced(texts)
    word_W, text_W = _word_hashes(spaced)
    kinds = _grams(spaced, word_W, text_W)
    for length in range(1, _LONGEST_SPAN + 1):
        first_V = np.flatnonzero(text_W[length - 1 :] == text_W[: max(len(text_W) - length + 1, 0)])
        kinds.append(_span(word_W, text_W, first_V, length))
    found = _Found.join(kinds)
    order_V = np.lexsort((found.last_V, found.first_V))  # words are numbered through all texts: this groups by text
    bounds_T = np.arange(len(texts) + 1)
    return QuestionFeatures(
        offsets=np.searchsorted(found.text_V[order_V], bounds_T).astype(np.int64),
        values=found.hash_V[order_V],
        first_word_V=found.first_V[order_V],
        last_word_V=found.last_V[order_V],
        word_offsets=np.searchsorted(text_W, bounds_T).astype(np.int64),
    )


def relation_features(relations: Sequence[str]) -> Ragged:
    """Hashes of the words of each relation path and of the relation as a whole.

    "people/person/place_of_birth" gives people, person, place, of, birth and one feature of its own. Words hash as they
    do in `text_features`; the relation as a whole hashes as nothing else does.
    """
    spaced = _spaced(relations)
    word_W, text_W = _word_hashes(spaced)
    whole = _whole_hashes(relations)
    owner_T = np.arange(len(relations), dtype=np.int64)
    return _ragged(
        np.concatenate([_mix(word_W ^ _SALT_WORD), _mix(whole ^ _SALT_RELATION)]),
        np.concatenate([text_W, owner_T]),
        len(relations),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Features of one kind: their hashes, the texts and the words they come from."""

    hash_V: NDArray[np.uint32]
    text_V: NDArray[np.int64]
    first_V: NDArray[np.int64]
    last_V: NDArray[np.int64]

    @classmethod
    def join(cls, kinds: "Sequence[_Found]") -> "_Found":
        return cls(
            hash_V=np.concatenate([kind.hash_V for kind in kinds]),
            text_V=np.concatenate([kind.text_V for kind in kinds]),
            first_V=np.concatenate([kind.first_V for kind in kinds]),
            last_V=np.concatenate([kind.last_V for kind in kinds]),
        )


def _names_at_once(texts: Sequence[str]) -> Ragged:
    spaced = _spaced(texts)
    word_W, text_W = _word_hashes(spaced)
    words_T = np.bincount(text_W, minlength=len(texts))
    start_T = np.cumsum(words_T) - words_T
    whole = []
    for length in range(1, _LONGEST_SPAN + 1):
        text_S = np.flatnonzero(words_T == length)
        whole.append(_span(word_W, text_W, start_T[text_S], length))
    found = _Found.join([*_grams(spaced, word_W, text_W), *whole])
    return _ragged(found.hash_V, found.text_V, len(texts))


def _grams(spaced: _Spaced, word_W: NDArray[np.uint64], text_W: NDArray[np.int64]) -> list[_Found]:
    """Words, neighbouring word pairs and character grams."""
    number_W = np.arange(len(word_W), dtype=np.int64)
    pair_P = np.flatnonzero(text_W[1:] == text_W[:-1])
    pairs = _mix(word_W[pair_P] * _MULTIPLIER + word_W[pair_P + 1] + _SALT_BIGRAM) if len(pair_P) else _NO_HASHES
    found = [
        _Found(hash_V=_mix(word_W ^ _SALT_WORD), text_V=text_W, first_V=number_W, last_V=number_W),
        _Found(hash_V=pairs, text_V=text_W[pair_P], first_V=pair_P, last_V=pair_P + 1),
    ]
    is_space_C = spaced.codes_C == _SPACE
    starts_C = np.zeros(len(is_space_C), dtype=np.int64)
    starts_C[1:] = is_space_C[:-1] & ~is_space_C[1:]
    word_C = np.cumsum(starts_C) - 1  # a space belongs to the word before it
    next_C = word_C + is_space_C  # or to the word after it
    for length in _CHARACTER_GRAMS:
        if len(spaced.codes_C) < length:
            break
        windows = np.lib.stride_tricks.sliding_window_view(spaced.codes_C, length)
        at = np.flatnonzero(spaced.text_C[: len(windows)] == spaced.text_C[length - 1 :])
        gram = np.full(len(windows), _SALT_GRAM + np.uint64(length), dtype=np.uint64)
        for place in range(length):
            gram = gram * _MULTIPLIER + windows[:, place]
        found.append(
            _Found(
                hash_V=_mix(gram[at]),
                text_V=spaced.text_C[at],
                first_V=next_C[at],
                last_V=word_C[at + length - 1],
            )
        )
    return found


def _span(word_W: NDArray[np.uint64], text_W: NDArray[np.int64], first_V: NDArray[np.int64], length: int) -> _Found:
    """The runs of `length` words that begin at the words numbered first_V."""
    span_V = np.full(len(first_V), _SALT_SPAN + np.uint64(length), dtype=np.uint64)
    for place in range(length):
        span_V = span_V * _MULTIPLIER + word_W[first_V + place]
    return _Found(hash_V=_mix(span_V), text_V=text_W[first_V], first_V=first_V, last_V=first_V + length - 1)


def _spaced(texts: Sequence[str]) -> _Spaced:
    """Normalise all texts in one string: a few passes over characters instead of a few calls per text."""
    joined = (_END + _END).join(texts)
    if joined.count(_END) != 2 * max(len(texts) - 1, 0):
        joined = (_END + _END).join(text.replace(_END, " ") for text in texts)
    joined = _END + joined + _END if len(texts) else ""
    if joined.isascii():
        joined = joined.lower()
    else:
        joined = unicodedata.normalize("NFKD", joined).casefold().translate(_MARKS)
        joined = unicodedata.normalize("NFC", joined.translate(_PLAIN_LETTERS))
    codes_C = _as_codes(joined)
    is_end_C = codes_C == 0
    text_C = (np.cumsum(is_end_C) - 1) // 2
    is_word_C = _is_word(codes_C)
    has_word_T = np.bincount(text_C[is_word_C], minlength=len(texts)) > 0
    if len(texts) and not has_word_T.all():
        # Nothing but symbols: they are the only name the thing has.
        is_word_C |= ~has_word_T[text_C] & ~is_end_C & ~_is_blank(codes_C)
        has_word_T = np.bincount(text_C[is_word_C], minlength=len(texts)) > 0
    keep_C = is_word_C.copy()
    keep_C[:-1] |= is_word_C[1:]  # the one separator right before a word
    closes_C = is_end_C & (np.cumsum(is_end_C) % 2 == 0)
    keep_C |= closes_C & has_word_T[text_C] if len(texts) else closes_C
    codes_C = np.where(is_word_C, codes_C, np.uint32(_SPACE))[keep_C]
    return _Spaced(codes_C=codes_C, text_C=text_C[keep_C], num_texts=len(texts))


def _word_hashes(spaced: _Spaced) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A 64-bit hash of every word (the same wherever it stands), and the text each word belongs to."""
    is_space_C = spaced.codes_C == _SPACE
    starts_W = np.flatnonzero(is_space_C[:-1] & ~is_space_C[1:]) + 1
    if len(starts_W) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    at_C = np.arange(len(spaced.codes_C), dtype=np.int64)
    word_of_C = np.cumsum(np.bincount(starts_W, minlength=len(at_C))) - 1
    place_C = np.where(is_space_C, 0, at_C - starts_W[np.maximum(word_of_C, 0)])
    powers = np.cumprod(np.full(int(place_C.max()) + 1, _MULTIPLIER, dtype=np.uint64), dtype=np.uint64)
    terms_C = _mix64(spaced.codes_C.astype(np.uint64)) * powers[place_C]
    terms_C[is_space_C] = 0
    return np.add.reduceat(terms_C, starts_W), spaced.text_C[starts_W]


def _whole_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each text exactly as it is written."""
    codes_C = _as_codes("".join(texts))
    lengths_T = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    starts_T = np.cumsum(lengths_T) - lengths_T
    place_C = np.arange(len(codes_C), dtype=np.int64) - np.repeat(starts_T, lengths_T)
    powers = np.cumprod(np.full(int(lengths_T.max(initial=0)) + 1, _MULTIPLIER, dtype=np.uint64), dtype=np.uint64)
    terms_C = _mix64(codes_C.astype(np.uint64)) * powers[place_C]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms_C, dtype=np.uint64)])
    return cast(NDArray[np.uint64], sums[starts_T + lengths_T] - sums[starts_T])


def _ragged(hash_V: NDArray[np.uint32], text_V: NDArray[np.int64], num_texts: int) -> Ragged:
    """Group hashes by text, sorted and unique within each text."""
    keys_V = (text_V.astype(np.uint64) << np.uint64(32)) | hash_V
    keys_V.sort()
    if len(keys_V):
        keys_V = keys_V[np.concatenate([[True], keys_V[1:] != keys_V[:-1]])]
    bounds_T = np.arange(num_texts + 1, dtype=np.uint64) << np.uint64(32)
    offsets = np.searchsorted(keys_V, bounds_T).astype(np.int64)
    return Ragged(offsets=offsets, values=keys_V.astype(np.uint32))  # the cast keeps the low 32 bits


def _mix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit moves every output bit. Wraps modulo 2**64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (_mix64(value) >> np.uint64(32)).astype(np.uint32)


def _as_codes(text: str) -> NDArray[np.uint32]:
    # surrogatepass: a lone surrogate from a broken file is one odd character, not a crash.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _as_text(codes_C: NDArray[np.uint32]) -> str:
    return codes_C.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _is_word(codes_C: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Letters, digits and the combining signs that are part of a letter (Unicode categories L, N, M)."""
    return _by_code_point(codes_C, lambda char: unicodedata.category(char)[0] in "LNM")


def _is_blank(codes_C: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return _by_code_point(codes_C, lambda char: unicodedata.category(char)[0] in "ZC" or char.isspace())


def _by_code_point(codes_C: NDArray[np.uint32], test: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Ask `test` once per distinct code point; texts use a few hundred of them."""
    present = np.flatnonzero(np.bincount(codes_C, minlength=1))
    table = np.zeros(int(codes_C.max(initial=0)) + 1, dtype=np.bool_)
    for code in present.tolist():
        table[code] = test(chr(code))
    return cast(NDArray[np.bool_], table[codes_C])
