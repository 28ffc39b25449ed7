"""Index rows and payloads: what they are, their limits, and their pinned bytes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given

from aiodatastore.entity import Entity
from aiodatastore.errors import BadRequestError, CorruptDataError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.indexing.rows import MAX_INDEX_ROWS, CompositeIndex, entity_rows, index_rows, indexed_values
from aiodatastore.key import Key
from aiodatastore.rowstore import TAIL_KEY_MASK, TAIL_MULTI
from aiodatastore.serializers import MsgpackSerializer
from aiodatastore.testing.strategies import entities
from aiodatastore.values import Blob, GeoPoint, Text

ADA = Entity(
    Key("Person", "ada"),
    {
        "name": "Ada",
        "born": datetime(1815, 12, 10, tzinfo=UTC),
        "tags": ["b", b"a", "b"],
        "none": [],
        "bio": Text("long"),
        "note": "kept out",
        "at": {"point": GeoPoint(1.0, 2.0), "deep": {"n": 1}, "hidden": 2},
    },
    unindexed=["note", "at.hidden"],
)
BY_TAG = CompositeIndex(7, IndexDefinition("Person", (("tags", "desc"), ("name", "asc"))))
FAMILY = CompositeIndex(8, IndexDefinition("Task", (("n", "asc"), ("__key__", "desc")), ancestor=True))


def rows_of(entity: Entity, *composites: CompositeIndex) -> dict[str, int]:
    return {row.hex(): tail for row, tail in index_rows(entity.key, indexed_values(entity), composites).items()}


def test_indexed_values_leave_out_what_is_unindexed() -> None:
    values = indexed_values(ADA)
    assert set(values) == {"name", "born", "tags", "none", "at.point", "at.deep.n"}
    assert len(values["tags"]) == 2
    assert list(values["none"]) == [b"\x05"]


@given(entities())
def test_the_rows_of_an_entity_are_the_same_in_one_pass(entity: Entity) -> None:
    assert entity_rows(entity) == index_rows(entity.key, indexed_values(entity))


def test_dotted_names_of_dicts_and_of_properties_meet() -> None:
    for properties in ({"a": {"b": 1}, "a.b": 2}, {"a.b": 2, "a": {"b": 1}}):
        assert len(indexed_values(Entity(Key("K", 1), properties))["a.b"]) == 2


def test_an_embedded_entity_has_its_own_unindexed() -> None:
    inner = Entity(Key("In"), {"x": 1, "y": 2}, unindexed=["y"])
    assert set(indexed_values(Entity(Key("K", 1), {"e": inner}))) == {"e.x"}


def test_the_format_of_rows_is_pinned() -> None:
    key = "0000506572736f6e001061646100"  # partition, Person, name ada
    partition_kind = "0000506572736f6e00"
    length = len(key) // 2
    entity = Entity(Key("Person", "ada"), {"name": "Ada", "tags": ["b", b"a"]})
    assert rows_of(entity, BY_TAG) == {
        f"01{partition_kind}{key}": length,
        f"02{partition_kind}6e616d6500" + "3041646100" + key: length,
        f"02{partition_kind}7461677300" + "306200" + key: length | TAIL_MULTI,
        f"02{partition_kind}7461677300" + "306100" + key: length | TAIL_MULTI | 1 << 21,
        "0300000007" + "0000" + "cf9dff" + "3041646100" + key: length | TAIL_MULTI,
        "0300000007" + "0000" + "cf9eff" + "3041646100" + key: length | TAIL_MULTI | 1 << 21,
    }


def test_an_ancestor_index_has_a_row_for_each_ancestor_and_no_key_component() -> None:
    entity = Entity(Key("A", 1, "Task", 2), {"n": 5})
    a, task = "000041000101", "0000410001015461736b000102"
    found = rows_of(entity, FAMILY)
    composite = {row: tail for row, tail in found.items() if row.startswith("03")}
    assert composite == {
        f"03000000080000{a}00" + "1505" + task: len(task) // 2,
        f"03000000080000{task}00" + "1505" + task: len(task) // 2,
    }


def test_an_entity_without_a_property_has_no_composite_row() -> None:
    assert not any(row.startswith("03") for row in rows_of(Entity(Key("Person", 1), {"name": "x"}), BY_TAG))


def test_the_row_limit_names_the_properties() -> None:
    entity = Entity(Key("K", 1), {"small": 1, "big": list(range(MAX_INDEX_ROWS))})
    with pytest.raises(BadRequestError, match=r"20001 index rows.*big: 20000"):
        rows_of(entity)
    product = CompositeIndex(1, IndexDefinition("K", (("a", "asc"), ("b", "asc"))))
    entity = Entity(Key("K", 1), {"a": list(range(200)), "b": list(range(200))})
    with pytest.raises(BadRequestError, match=r"\(a, b\): 40000"):
        rows_of(entity, product)


def test_tails_hold_the_length_of_the_key() -> None:
    for row, tail in rows_of(ADA, BY_TAG).items():
        assert row.endswith(row[-2 * (tail & TAIL_KEY_MASK) :])


def test_payloads_keep_everything_and_are_pinned() -> None:
    serializer = MsgpackSerializer()
    inner = Entity(Key("In"), {"x": [1.5, None]}, unindexed=["x"])
    properties = {"t": Text("t"), "b": Blob(b"b"), "k": Key("A", 1, namespace="n"), "p": GeoPoint(1.0, 2.0), "e": inner}
    entity = Entity(Key("K", 1), {**ADA, **properties}, unindexed=["t"])
    back = serializer.loads(entity.key, serializer.dumps(entity), 9)
    assert back == entity
    assert back.version == 9
    assert [type(value) for value in back.values()] == [type(value) for value in entity.values()]
    assert serializer.dumps(Entity(Key("K", 1), {"a": 1, "k": Key("A", 1)}, unindexed=["a"])).hex() == (
        "01" + "92" + "82a16101a16bc70601000041000101" + "91a161"
    )


@pytest.mark.parametrize("payload", [b"", b"\x02\x91\x80", b"\x01", b"\x01\x91", b"\x01\x91\x01"])
def test_damaged_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(CorruptDataError, match="Key"):
        MsgpackSerializer().loads(Key("K", 1), payload, 1)
