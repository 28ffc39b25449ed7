"""Entities: a dict with a key; what is refused as the golden cases have it; copies, equality and XML."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aiodatastore import errors
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadPropertyError, BadRequestError, BadValueError
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import decode_key, decode_value
from aiodatastore.testing.conformance.surface import make_entity
from aiodatastore.values import Blob, GeoPoint, Text

CORPUS = Path(__file__).parent.parent / "data" / "conformance"


def records(kind: str) -> Iterator[dict[str, Any]]:
    with (CORPUS / "entities.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["type"] == kind and "quirk" not in record:
                yield record


# What depends on index rows is the engine's to refuse.
puts = [pytest.param(r, id=r["id"]) for r in records("put") if r["rule"] != "indexed-value-count"]


@pytest.mark.parametrize("record", puts)
def test_golden_puts(record: dict[str, Any]) -> None:
    expected = record["expect"].get("error")

    def build() -> Entity:
        entity = make_entity(record["entity"])
        for name, value in record["entity"].get("set", ()):
            entity[decode_value(name)] = decode_value(value)
        entity.validate(strict=True)
        return entity

    if record.get("any_error"):
        with pytest.raises(errors.DatastoreError):
            build()
    elif expected:
        with pytest.raises(OverflowError if expected == "OverflowError" else getattr(errors, expected)):
            build()
    else:
        entity = build()
        assert [kind for kind, _ in entity.key.pairs] == record["expect"]["path_kinds"]
        assert entity.key.namespace == record["expect"]["ns"]
        assert entity.key.is_complete != record["expect"]["auto_id"]
        assert repr(entity.snapshot()) == repr(build().snapshot())


def test_golden_round_trips_pass_the_checks() -> None:
    for record in records("round_trip"):
        data = record["entity"]
        properties = {name: decode_value(value) for name, value in data["props"].items()}
        entity = Entity(decode_key(data["key"]), properties, unindexed=data.get("unindexed", ()))
        entity.validate(strict=True)
        assert entity.snapshot() == entity, record["id"]


def test_construction() -> None:
    assert Entity("Task") == Entity(Key("Task"))
    entity = Entity(Key("Task", 1), {"a": 1}, unindexed=("a", "b"), version=7)
    assert (entity.kind, entity["a"], set(entity.unindexed), entity.version) == ("Task", 1, {"a", "b"}, 7)
    assert entity.is_saved
    assert not Entity("Task").is_saved
    assert Entity(Key("A", 1, "B", 2)).entity_group == Key("A", 1)
    entity.unindexed = ["c"]
    assert entity.unindexed == frozenset("c")
    for wrong in (5, None, Entity("A"), ""):
        with pytest.raises(BadArgumentError):
            Entity(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadArgumentError):
        Entity("A", [("a", 1)])  # type: ignore[arg-type]
    for bad in ("ab", 5, None, [5]):
        with pytest.raises(BadArgumentError):
            entity.unindexed = bad  # type: ignore[assignment]
    with pytest.raises(BadPropertyError):
        Entity("A", unindexed=[""])
    with pytest.raises(AttributeError):
        entity.colour = "red"  # type: ignore[attr-defined]


def test_checks_name_the_property() -> None:
    with pytest.raises(BadValueError, match="'tags'"):
        Entity("A", {"fine": 1, "tags": ("a",)}).validate()
    with pytest.raises(BadRequestError, match=r"'story'.*unindexed"):
        Entity("A", {"story": "x" * 1501}).validate()
    Entity("A", {"story": "x" * 1501}, unindexed=["story"]).validate()
    Entity("A", {"story": Text("x" * 1501)}).validate()


def test_strict_refuses_what_app_engine_has_not() -> None:
    for value in ({"a": 1}, Entity("E"), [1, {"a": 1}]):
        entity = Entity("A", {"p": value})
        entity.validate()
        with pytest.raises(BadValueError, match="'p'"):
            entity.validate(strict=True)


def test_rows_of_projections_are_refused() -> None:
    with pytest.raises(BadRequestError, match="projection"):
        Entity._make(Key("A", 1), {"a": 1}, frozenset(), 1, is_projection=True).validate()


@pytest.mark.parametrize("key", [Key("__kind__", 1), Key("A", "__x__"), Key("__a__", 1, "B", 2), Key("A", 1, "__b__")])
def test_reserved_kinds_and_names_can_not_be_put(key: Key) -> None:
    with pytest.raises(BadRequestError, match="reserved"):
        Entity(key).validate()


@pytest.mark.parametrize("key", [Key("__", 1), Key("_x_", "___"), Key("__x", "x__"), Key("A")])
def test_names_that_are_nearly_reserved_can(key: Key) -> None:
    Entity(key).validate()


def test_a_wrong_key_is_noticed() -> None:
    entity = Entity("A")
    entity.key = "A"  # type: ignore[assignment]
    with pytest.raises(BadArgumentError):
        entity.validate()


def test_snapshots_are_private() -> None:
    now = dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    entity = Entity(Key("A", 1), {"a": [1], "b": {"c": [2]}, "d": Entity("E", {"x": [3]}), "t": now}, unindexed=["a"])
    entity.version = 4
    for taken in (entity.snapshot(), entity.copy(), copy.deepcopy(entity), pickle.loads(pickle.dumps(entity))):
        assert taken == entity
        assert type(taken) is type(taken["d"]) is Entity
        assert (taken.version, set(taken.unindexed), taken.is_projection) == (4, {"a"}, False)
        taken["a"].append(9)
        taken["b"]["c"].append(9)
        taken["d"]["x"].append(9)
    assert entity["a"] == [1]
    assert entity["b"] == {"c": [2]}
    assert entity["d"]["x"] == [3]
    assert entity.snapshot()["t"].tzinfo is dt.UTC
    assert copy.copy(entity)["a"] is entity["a"]


def test_equality() -> None:
    entity = Entity(Key("A", 1), {"a": 1})
    assert entity == Entity(Key("A", 1), {"a": 1}, version=9)
    assert entity != Entity(Key("A", 2), {"a": 1})
    assert entity != Entity(Key("A", 1), {"a": 2})
    assert entity != Entity(Key("A", 1), {"a": 1}, unindexed=["a"])
    assert entity != {"a": 1}
    assert not {"a": 1} == entity  # noqa: SIM201, SIM300  (dict asks its subclass first)
    with pytest.raises(TypeError):
        hash(entity)


def test_repr_evaluates_back() -> None:
    entity = Entity(Key("A", 1), {"a": [Text("x")]}, unindexed=["a"], version=3)
    assert eval(repr(entity)) == entity
    assert repr(Entity("A")) == "Entity(Key('A'), {})"


def test_of_kind_takes_app_engines_arguments() -> None:
    above = Key("P", 1, namespace="n")
    assert Entity.of_kind("E", above, id=7).key == Key("P", 1, "E", 7, namespace="n")
    assert Entity.of_kind("E", name="x", namespace="m").key == Key("E", "x", namespace="m")
    assert Entity.of_kind("E", unindexed_properties=["a"]).unindexed == {"a"}


def test_xml() -> None:
    entity = Entity(
        Key("Pet", "a<b", project="zoo", namespace="n"),
        {
            "z": None, "n": [1, True], "f": 1.5, "s": 'a & "b" \x00', "b": b"\xff", "blob": Blob(b"x"),
            "t": Text("<t>"), "when": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "k": Key("K", 1), "g": GeoPoint(1, 2),
            "d": {"in": "side"}, "e": Entity(Key("E", 1), {"x": 1}), "none": [],
        },
    )  # fmt: skip
    text = entity.to_xml()
    assert text.startswith('<entity kind="Pet" key="agN6b2')
    assert "<key>tag:zoo!n.gmail.com,2008-04-07:Pet[agN6b2" in text
    root = ElementTree.fromstring(text.replace("georss:point>", "point>"))
    found = [(each.get("name"), each.get("type"), each.text) for each in root.iter("property")]
    names = [name for name, _, _ in found]
    assert [name for name in names if name not in {"in", "x"}] == [
        "b", "blob", "d", "e", "f", "g", "k", "n", "n", "s", "t", "when", "z",
    ]  # fmt: skip
    values = {name: (kind, value) for name, kind, value in found}
    assert values["s"] == ("string", 'a & "b" \ufffd')
    assert values["b"] == ("bytestring", "_w==")
    assert values["z"] == ("null", None)
    assert values["when"] == ("gd:when", "2020-01-01 00:00:00+00:00")
    assert values["t"] == ("text", "<t>")
    assert values["in"] == ("string", "side")
    assert values["k"][0] == "key"
    assert (values["g"][0], root.findtext(".//point")) == ("georss:point", "1.0 2.0")
    assert Entity("A").to_xml() == '<entity kind="A">\n</entity>\n'
