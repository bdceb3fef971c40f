"""Names under which places are found: those that are not unique get the context that tells the places apart."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline.features import words
from pipeline.sources.geonames import Place

__all__ = ["PlaceNames", "name_places"]

_DOMINANT = 4
"""A city that has this many times the inhabitants of every other of its name is what people mean by the bare name."""

_NAMES_AT_ONCE = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceNames:
    """names: all names of a place, distinct after normalisation, the one it is shown by first.

    telling: those that no other place of the memory has; a question with one of them has one answer. Empty for the
    few places whose name and context are not unique.
    """

    names: tuple[str, ...]
    telling: tuple[str, ...]


def name_places(places: Sequence[Place]) -> list[PlaceNames]:
    """The names of each place, in the order of the places.

    A name that several places have stays with the one people mean by it ("Paris" is in France), if there is one; for
    the others the context is added ("Paris, Texas"). The usual name is also given with its context.
    """
    keys = _keys([place.names for place in places])
    owners = _owners(places, keys)
    called = [_in_context(place, number, keys[number], owners) for number, place in enumerate(places)]
    called_keys = _keys(called)
    holders = Counter(key for of_place in called_keys for key in set(of_place))
    result = []
    for names, of_place in zip(called, called_keys, strict=True):
        distinct: dict[str, str] = {}
        for key, name in zip(of_place, names, strict=True):
            distinct.setdefault(key, name)
        telling = tuple(name for key, name in distinct.items() if holders[key] == 1)
        result.append(PlaceNames(names=tuple(distinct.values()), telling=telling))
    return result


def _in_context(place: Place, number: int, keys: Sequence[str], owners: dict[str, int | None]) -> tuple[str, ...]:
    names = [
        name if place.context is None or owners[key] == number else f"{name}, {place.context}"
        for name, key in zip(place.names, keys, strict=True)
        if key
    ]
    if place.context is not None:
        names.insert(1, f"{place.names[0]}, {place.context}")
    return tuple(dict.fromkeys(names))


def _owners(places: Sequence[Place], keys: Sequence[Sequence[str]]) -> dict[str, int | None]:
    """For every normalised name the number of the place that people mean by it; None if that is not clear."""
    holders: dict[str, list[int]] = {}
    for number, of_place in enumerate(keys):
        for key in dict.fromkeys(of_place):
            holders.setdefault(key, []).append(number)
    owners: dict[str, int | None] = {}
    for key, numbers in holders.items():
        best, *others = sorted(numbers, key=lambda number: places[number].prominence, reverse=True)
        is_clear = not others or _outshines(places[best], places[others[0]])
        owners[key] = best if is_clear else None
    return owners


def _outshines(place: Place, other: Place) -> bool:
    if place.kind != other.kind:
        return True
    return place.population >= _DOMINANT * max(other.population, 1)


def _keys(names: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each name normalised; empty if there is nothing in it. Batches take a hundredth of the time of single calls."""
    flat = [name for of_place in names for name in of_place]
    keys = []
    for start in range(0, len(flat), _NAMES_AT_ONCE):
        keys += [" ".join(of_name) for of_name in words(flat[start : start + _NAMES_AT_ONCE])]
    ends = list(accumulate(map(len, names), initial=0))
    return [keys[start:stop] for start, stop in pairwise(ends)]
