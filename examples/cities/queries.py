"""Queries that show the model. Each function's text is what the demo prints."""

from __future__ import annotations

from collections.abc import Callable

from aiodatastore import BoundQuery, Datastore, Key, Or, PropertyFilter

__all__ = ["NEED_INDEX", "QUERIES", "QueryFunction"]

QueryFunction = Callable[[Datastore], BoundQuery]


def largest(ds: Datastore) -> BoundQuery:
    """The largest cities: one property, read backwards from its index"""
    return ds.query("City").order("-population").limit(5)


def any_script(ds: Datastore) -> BoundQuery:
    """A name in any script: a list matches with any of its elements"""
    return ds.query("City").filter("names", "=", "東京")


def under_ancestor(ds: Datastore) -> BoundQuery:
    """Everything below Luxembourg, of whatever kind"""
    return ds.query(ancestor=Key("Country", "LU")).limit(6)


def between(ds: Datastore) -> BoundQuery:
    """A range"""
    return ds.query("City").filter("population >=", 500_000).filter("population <", 505_000)


def several_zones(ds: Datastore) -> BoundQuery:
    """One of several: sorted branches, merged in order"""
    zones = ["Europe/Lisbon", "Atlantic/Reykjavik", "Europe/Zurich"]
    return ds.query("City").filter("timezone", "in", zones).order("name").limit(5)


def elsewhere(ds: Datastore) -> BoundQuery:
    """Not equal: two ranges"""
    return ds.query("Country").filter("currency", "!=", "EUR").filter("continent", "=", "EU").limit(5)


def either(ds: Datastore) -> BoundQuery:
    """Either condition, each city once"""
    small = PropertyFilter("population", "<", 100)
    return ds.query("City").filter(Or(PropertyFilter("names", "=", "Mumbai"), small)).limit(5)


def both(ds: Datastore) -> BoundQuery:
    """Two equalities without a composite index: a merge join of two index spans"""
    return ds.query("City").filter({"country =": "US", "name =": "Springfield"})


def neighbours(ds: Datastore) -> BoundQuery:
    """A property that holds keys: who borders on Switzerland?"""
    return ds.query("Country").filter("neighbours", "=", Key("Country", "CH"))


def northernmost(ds: Datastore) -> BoundQuery:
    """Points are ordered by latitude"""
    return ds.query("City").order("-location").limit(5)


def key_range(ds: Datastore) -> BoundQuery:
    """Keys are ordered, too: regions of the countries that begin with J"""
    start, end = Key("Country", "J"), Key("Country", "K")
    return ds.query("Region").filter("__key__", ">", start).filter("__key__", "<", end).keys_only().limit(5)


def zones(ds: Datastore) -> BoundQuery:
    """Distinct values of a projection, without reading an entity"""
    asian = ds.query("City").filter("timezone >=", "Asia/A").filter("timezone <", "Asia/B")
    return asian.project("timezone").distinct()


def kinds(ds: Datastore) -> BoundQuery:
    """What is there? The datastore describes itself"""
    return ds.query("__kind__")


QUERIES: tuple[QueryFunction, ...] = (
    largest,
    any_script,
    under_ancestor,
    between,
    several_zones,
    elsewhere,
    either,
    both,
    neighbours,
    northernmost,
    key_range,
    zones,
    kinds,
)


def largest_of_zone(ds: Datastore) -> BoundQuery:
    """Filtered by one property, sorted by another"""
    return ds.query("City").filter("timezone", "=", "Europe/Berlin").order("-population").limit(5)


def largest_of_country(ds: Datastore) -> BoundQuery:
    """The same below an ancestor"""
    return ds.query("City", ancestor=Key("Country", "JP")).order("-population").limit(5)


NEED_INDEX: tuple[QueryFunction, ...] = (largest_of_zone, largest_of_country)
