"""What users type."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest

from aiodatastore.cli.parsing import (
    parse_assignment,
    parse_filter,
    parse_key,
    parse_names,
    parse_value,
)
from aiodatastore.key import Key
from aiodatastore.query import And, PropertyFilter
from aiodatastore.values import Blob, GeoPoint, Text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("21", 21),
        ("-3", -3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ('"21"', "21"),
        ("Ada", "Ada"),
        ("True", "True"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("http://x", "http://x"),
        ("a:b", "a:b"),
        ("", ""),
        ("[1, 2.0]", [1, 2.0]),
        ('{"a": {"$bytes": "AAE="}}', {"a": b"\x00\x01"}),
        ('{"$datetime": "2020-01-01T00:00:00Z"}', datetime(2020, 1, 1, tzinfo=UTC)),
        ("key:/Country:GB/City:1", Key("Country", "GB", "City", 1)),
        ("datetime:2020-02-29T12:00Z", datetime(2020, 2, 29, 12, tzinfo=UTC)),
        ("datetime:2020-02-29", datetime(2020, 2, 29, tzinfo=UTC)),
        ("datetime:2020-02-29T12:00+02:00", datetime(2020, 2, 29, 12, tzinfo=timezone(timedelta(hours=2)))),
        ("bytes:AAE=", b"\x00\x01"),
        ("blob:AAE=", Blob(b"\x00\x01")),
        ("text:long", Text("long")),
        ("point:51.5,-0.12", GeoPoint(51.5, -0.12)),
        ("float:21", 21.0),
        ("float:inf", math.inf),
        ("str:true", "true"),
        ("str:key:/A:1", "key:/A:1"),
    ],
)
def test_values(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["datetime:soon", "point:1", "point:91,0", "bytes:!!", "float:x", "key:/", '{"$money": 1}']
)
def test_wrong_values_are_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_value(text)


def test_keys_in_both_forms() -> None:
    key = Key("Country", "GB", "City", 2643743)
    assert parse_key("/Country:GB/City:2643743") == key
    assert parse_key(key.to_urlsafe()) == key
    assert parse_key("shop/Item:1") == Key("Item", 1, namespace="shop")
    assert parse_key("/Item:1", "shop") == Key("Item", 1, namespace="shop")
    assert parse_key("x/Item:1", "shop") == Key("Item", 1, namespace="x")
    with pytest.raises(click.BadParameter, match="expected one like /Country:GB/City:1"):
        parse_key("nonsense")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("age >= 21", PropertyFilter("age", ">=", 21)),
        ("age>=21", PropertyFilter("age", ">=", 21)),
        ("age == 21", PropertyFilter("age", "=", 21)),
        ("age=21", PropertyFilter("age", "=", 21)),
        ("age != 21", PropertyFilter("age", "!=", 21)),
        ("age<21", PropertyFilter("age", "<", 21)),
        ("name = Ada Lovelace", PropertyFilter("name", "=", "Ada Lovelace")),
        ("formula = a=b", PropertyFilter("formula", "=", "a=b")),
        ("note = not in stock", PropertyFilter("note", "=", "not in stock")),
        ("city in London,Paris", PropertyFilter("city", "in", ("London", "Paris"))),
        ("city IN London, 5", PropertyFilter("city", "in", ("London", 5))),
        ('city in ["a,b", 5]', PropertyFilter("city", "in", ("a,b", 5))),
        ('city in["a"]', PropertyFilter("city", "in", ("a",))),
        ("city not in London", PropertyFilter("city", "not in", ("London",))),
        ("city  not  in London", PropertyFilter("city", "not in", ("London",))),
        ("inside = 1", PropertyFilter("inside", "=", 1)),
        ("address.city = x", PropertyFilter("address.city", "=", "x")),
        ('"a = b" = 1', PropertyFilter("a = b", "=", 1)),
        ('x = ""', PropertyFilter("x", "=", "")),
        ("__key__ > /Person:ada", PropertyFilter("__key__", ">", Key("Person", "ada"))),
        ("__key__ in /A:1,/A:2", PropertyFilter("__key__", "in", (Key("A", 1), Key("A", 2)))),
        ("boss = key:/Person:ada", PropertyFilter("boss", "=", Key("Person", "ada"))),
        ("tag = [1, 2]", And(PropertyFilter("tag", "=", 1), PropertyFilter("tag", "=", 2))),
    ],
)
def test_filters(text: str, wanted: Any) -> None:
    assert parse_filter(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "age", "age >", "age in ", "> 5", "age ~ 5", "__key__ = nonsense", "x = text:a", "x = {}"]
)
def test_wrong_filters_are_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_filter(text)


def test_assignments() -> None:
    assert parse_assignment("born=1815") == ("born", 1815)
    assert parse_assignment("formula=a=b ") == ("formula", "a=b ")
    with pytest.raises(click.BadParameter, match="name=value"):
        parse_assignment("born")


def test_names() -> None:
    assert parse_names(["-age,name", "x"]) == ("-age", "name", "x")
