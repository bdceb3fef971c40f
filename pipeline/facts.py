"""What a fact is before it is stored: cleaned text, one spelling per id, the id minted from content, the schemas."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

# N rows of a batch

__all__ = [
    "NAMES_SCHEMA",
    "TRIPLES_SCHEMA",
    "clean",
    "entity_ids",
    "fact_id_of",
    "fact_ids",
    "hash_texts",
    "normalise_entity",
    "normalise_relation",
    "relation_ids",
]

TRIPLES_SCHEMA = pa.schema(
    [
        ("subject_id", pa.string()),
        ("subject", pa.string()),  # null: the row does not say what the subject is called
        ("relation", pa.string()),
        ("object_id", pa.string()),
        ("object", pa.string()),  # null likewise
    ]
)
"""Raw triples, cleaned, ids in their one spelling."""

NAMES_SCHEMA = pa.schema([("entity_id", pa.string()), ("name", pa.string())])
"""Names of entities in the order of preference; the first one names the entity, the others are its aliases."""

_LARGEST_ID = np.uint64(2**63 - 1)

# One space stands for every run of control characters and Unicode spaces. Zero-width joiners are part of words.
_BLANK = r"\p{Cc}\p{Z}\x{200B}\x{FEFF}"
_UNCLEAN = r"^ | $|  |[\p{Cc}\x{A0}\x{1680}\x{2000}-\x{200B}\p{Zl}\p{Zp}\x{202F}\x{205F}\x{3000}\x{FEFF}]"

# Freebase ids are written in many ways: www.freebase.com/m/02mjmr, /m/02mjmr, http://rdf.freebase.com/ns/m.02mjmr and
# m.02mjmr. The last is ours: the shortest that no other naming scheme shares.
_FREEBASE = r"^(?:(?:https?://)?(?:www\.)?freebase\.com/|https?://rdf\.freebase\.com/(?:ns|key)/)"
_FREEBASE_ENTITY = rf"{_FREEBASE}|^/(?:m|g)/"
_FREEBASE_RELATION = rf"{_FREEBASE}|^/[a-z0-9_]+/[a-z0-9_]+/"
_SHORT_PREFIXES = (
    (r"^(?:https?://)?(?:www\.)?wikidata\.org/(?:entity|wiki)/", "wd:"),
    (r"^(?:https?://)?(?:www\.)?wikidata\.org/prop/direct/", "wdt:"),
    (r"^(?:https?://)?dbpedia\.org/resource/", "dbr:"),
)
_ANY_PREFIX = r"^(?:/|https?://|www\.|freebase\.com/|wikidata\.org/|dbpedia\.org/)"


def clean(text_N: pa.Array) -> pa.Array:
    """Trim, turn every run of spaces and control characters into one space, compose accents (Unicode NFC).

    Takes and returns a string array; nulls stay null.
    """
    unclean_N = pc.match_substring_regex(text_N, _UNCLEAN)
    if pc.any(unclean_N).as_py():
        spaced_N = pc.utf8_trim_whitespace(pc.replace_substring_regex(text_N, f"[{_BLANK}]+", " "))
        text_N = pc.if_else(unclean_N, spaced_N, text_N)
    if not pc.all(pc.string_is_ascii(text_N)).as_py():
        text_N = pc.utf8_normalize(text_N, form="NFC")
    return text_N


def entity_ids(text_N: pa.Array) -> pa.Array:
    """The one spelling of each entity id: www.freebase.com/m/02mjmr and /m/02mjmr are m.02mjmr."""
    return _one_spelling(text_N, _FREEBASE_ENTITY)


def relation_ids(text_N: pa.Array) -> pa.Array:
    """The one spelling of each relation id: www.freebase.com/people/person/gender is people.person.gender."""
    return _one_spelling(text_N, _FREEBASE_RELATION)


def normalise_entity(text: str) -> str:
    """`clean` and `entity_ids` for one id."""
    return str(entity_ids(clean(pa.array([text], pa.string())))[0])


def normalise_relation(text: str) -> str:
    """`clean` and `relation_ids` for one id."""
    return str(relation_ids(clean(pa.array([text], pa.string())))[0])


def hash_texts(text_N: pa.Array) -> NDArray[np.uint64]:
    """xxh3-64 of the UTF-8 bytes of each text: uint64 [N]. The same on every machine."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, text_N.cast(pa.binary()).to_pylist()), np.uint64, len(text_N))


def fact_ids(subject_id_N: pa.Array, relation_N: pa.Array, object_id_N: pa.Array | None = None) -> NDArray[np.int64]:
    """The content id of each fact, int64 >= 0, from what identifies it: the object too where a fact is one triple.

    The arrays hold ids in their one spelling, without nulls. The lengths come first, so that no two different facts
    are hashed as the same text.
    """
    columns = [subject_id_N, relation_N] + ([] if object_id_N is None else [object_id_N])
    lengths = [pc.binary_length(column).cast(pa.string()) for column in columns[:2]]
    keys_N = pc.binary_join_element_wise(*lengths, *columns, ":")
    return (hash_texts(keys_N) & _LARGEST_ID).astype(np.int64)


def fact_id_of(subject_id: str, relation: str, object_id: str | None = None) -> int:
    """The fact id of a subject and relation (and object, where a fact is one triple), in any spelling of the ids."""
    columns = [pa.array([normalise_entity(subject_id)]), pa.array([normalise_relation(relation)])]
    if object_id is not None:
        columns.append(pa.array([normalise_entity(object_id)]))
    return int(fact_ids(*columns)[0])


def _one_spelling(text_N: pa.Array, freebase: str) -> pa.Array:
    if not pc.any(pc.match_substring_regex(text_N, _ANY_PREFIX)).as_py():
        return text_N
    is_freebase_N = pc.match_substring_regex(text_N, freebase)
    if pc.any(is_freebase_N).as_py():
        path_N = pc.utf8_ltrim(pc.replace_substring_regex(text_N, _FREEBASE, ""), "/")
        text_N = pc.if_else(is_freebase_N, pc.replace_substring(path_N, "/", "."), text_N)
    for prefix, short in _SHORT_PREFIXES:
        text_N = pc.replace_substring_regex(text_N, prefix, short)
    return text_N
