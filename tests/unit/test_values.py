"""Property values: what is refused, with which error, and what a private copy shares."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import pytest

from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadPropertyError,
    BadRequestError,
    BadValueError,
    DatastoreError,
    IntegerOverflowError,
)
from aiodatastore.key import Key
from aiodatastore.values import (
    INT64_MAX,
    INT64_MIN,
    MAX_INDEXED_BYTES,
    MAX_UNINDEXED_BYTES,
    Blob,
    GeoPoint,
    Text,
    copy_value,
    validate_property,
)

NOW = dt.datetime(2020, 2, 29, 12, 34, 56, 789012, tzinfo=dt.UTC)
EAST = dt.timezone(dt.timedelta(hours=5))


def nested(depth: int, innermost: Any = 1) -> Any:
    value = innermost
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, INT64_MIN, INT64_MAX, 1.5, float("nan"), float("-inf"), "", "\x00", "😀", b"", b"\xff", NOW,
        NOW.astimezone(EAST), Key("A", 1), GeoPoint(90, -180), Text("t"), Blob(b"b"), [], [None, 1, "a", Text("t")],
        {}, {"a": [1, {"b": None}]}, Entity("E"), Entity("E", {"a": {"b": 1}}), [{"a": 1}, Entity("E")], nested(20),
        dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC),
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_property_can_hold(value: Any) -> None:
    validate_property("p", value, indexed=True)
    validate_property("p", value, indexed=False)


@pytest.mark.parametrize(
    ("value", "error", "hint"),
    [
        (INT64_MAX + 1, IntegerOverflowError, "64 bits"),
        ([1, INT64_MIN - 1], IntegerOverflowError, "64 bits"),
        ((1,), BadValueError, "use a list"),
        ({1}, BadValueError, "use a list"),
        (bytearray(b"x"), BadValueError, "use bytes"),
        (decimal.Decimal(1), BadValueError, "use a str"),
        (dt.date(2020, 2, 29), BadValueError, "datetime"),
        (type("S", (str,), {})("x"), BadValueError, "str()"),
        (object(), BadValueError, "expected None, bool, int"),
        ([[1]], BadValueError, "directly hold a list"),
        ([1, []], BadValueError, "directly hold a list"),
        ([1, (2,)], BadValueError, "use a list"),
        (dt.datetime(2020, 1, 1), BadValueError, "tzinfo=datetime.UTC"),
        (dt.datetime.min.replace(tzinfo=EAST), BadValueError, "years 1 to 9999"),
        (Key("A"), BadValueError, "incomplete"),
        ("\ud800", BadRequestError, "surrogate"),
        (Text("\udfff"), BadRequestError, "surrogate"),
        (Text("x" * (MAX_UNINDEXED_BYTES + 1)), BadRequestError, str(MAX_UNINDEXED_BYTES)),
        (Blob(bytes(MAX_UNINDEXED_BYTES + 1)), BadRequestError, str(MAX_UNINDEXED_BYTES)),
        (nested(21), BadValueError, "20 deep"),
        ({"a": {1: 1}}, BadPropertyError, "str"),
        ({"": 1}, BadPropertyError, "empty"),
        ({"__x__": 1}, BadRequestError, "reserved"),
        ({"b": {"c": object()}}, BadValueError, "'p.b.c'"),
        (Entity("E", {"a": (1,)}), BadValueError, "'p.a'"),
    ],
)
def test_what_it_can_not(value: Any, error: type[DatastoreError], hint: str) -> None:
    for indexed in (True, False):
        with pytest.raises(error) as caught:
            validate_property("p", value, indexed=indexed)
        assert hint in str(caught.value)
        assert "'p" in str(caught.value)


@pytest.mark.parametrize(
    ("unit", "most"), [("a", 1500), ("é", 750), ("😀", 375), (b"a", 1500)], ids=["ascii", "two", "four", "bytes"]
)
def test_length_of_what_is_indexed(unit: Any, most: int) -> None:
    for wrap in (lambda value: value, lambda value: [1, value], lambda value: {"a": value}):
        validate_property("p", wrap(unit * most), indexed=True)
        validate_property("p", wrap(unit * (most + 1)), indexed=False)
        with pytest.raises(BadRequestError, match=f"at most {MAX_INDEXED_BYTES} bytes"):
            validate_property("p", wrap(unit * (most + 1)), indexed=True)
    embedded = Entity("E", {"a": unit * (most + 1)}, unindexed=["a"])
    validate_property("p", embedded, indexed=True)


def test_length_of_what_is_not() -> None:
    for value in ("x" * MAX_UNINDEXED_BYTES, bytes(MAX_UNINDEXED_BYTES)):
        validate_property("p", value, indexed=False)
        with pytest.raises(BadRequestError):
            validate_property("p", value + value[:1], indexed=False)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["p", "__p", "p__", "__", "___", " ", "\x00", "a.b", "é" * 750, "😀"])
def test_names(name: str) -> None:
    validate_property(name, 1, indexed=True)
    validate_property(name, 1, indexed=True)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", BadPropertyError),
        (5, BadPropertyError),
        (None, BadPropertyError),
        ("\ud800", BadPropertyError),
        ("p" * 1501, BadPropertyError),
        ("é" * 751, BadPropertyError),
        ("____", BadRequestError),
        ("__key__", BadRequestError),
        ("__é__", BadRequestError),
    ],
)
def test_names_that_are_refused(name: Any, error: type[DatastoreError]) -> None:
    with pytest.raises(error):
        validate_property(name, 1, indexed=True)


def test_the_name_in_an_index_is_the_whole_path() -> None:
    inner = {"q" * 800: 1}
    validate_property("p" * 800, inner, indexed=False)
    with pytest.raises(BadPropertyError):
        validate_property("p" * 800, inner, indexed=True)


def test_points() -> None:
    assert GeoPoint(1, 2) == GeoPoint(1.0, 2.0)
    assert type(GeoPoint(1, 2).latitude) is float
    assert sorted([GeoPoint(1, 2), GeoPoint(-1, 9), GeoPoint(1, -2)])[0] == GeoPoint(-1, 9)
    for wrong in ((90.0000001, 0), (0, 180.5), (float("nan"), 0), (0, float("inf")), ("1", 0), (True, 0), (None, 0)):
        with pytest.raises(BadValueError):
            GeoPoint(*wrong)
    with pytest.raises(AttributeError):
        GeoPoint(1, 2).latitude = 3  # type: ignore[misc]


def test_text_and_blob() -> None:
    assert Text("a") == "a"
    assert hash(Text("a")) == hash("a")
    assert Blob(b"a") == b"a"
    assert eval(repr([Text("it's"), Blob(b"a")])) == ["it's", b"a"]


def test_copies_share_nothing_that_can_change() -> None:
    value = {"list": [1, {"a": [2]}], "entity": Entity("E", {"b": [3]}), "key": Key("A", 1)}
    copied = copy_value(value)
    assert copied == value
    assert type(copied["entity"]) is Entity
    for part in (copied["list"], copied["list"][1]["a"], copied["entity"], copied["entity"]["b"]):
        part.clear()
    assert value["list"][1] == {"a": [2]}  # type: ignore[index]
    assert value["entity"] == Entity("E", {"b": [3]})
    plain = [1, "a"]
    assert copy_value(plain) == plain
    assert copy_value(plain) is not plain


def test_copies_bring_datetimes_to_utc() -> None:
    for value in (NOW.astimezone(EAST), [NOW.astimezone(EAST)][0]):
        copied = copy_value([value, {"a": value}])
        assert copied == [NOW, {"a": NOW}]
        assert copied[0].tzinfo is dt.UTC is copied[1]["a"].tzinfo


def test_argument_errors_are_not_value_errors() -> None:
    with pytest.raises(BadArgumentError):
        Entity("E", unindexed="p")
