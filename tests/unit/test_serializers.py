"""Serializers: what each writes, that each reads all, and what damage comes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodatastore import BadArgumentError, CorruptDataError, Entity, Key, Text
from aiodatastore.jsonl import canonical
from aiodatastore.serializers import (
    FernetStep,
    FunctionSerializer,
    JSONSerializer,
    MappingWrapper,
    MsgpackSerializer,
    Stack,
    ZstdStep,
    serializer_named,
)
from aiodatastore.serializers.base import Reading
from aiodatastore.testing.strategies import entities as any_entities

KEY = Fernet.generate_key()
ADA = Entity(Key("Person", "ada"), {"name": "Ada", "story": Text("x" * 400), "born": 1815}, unindexed=["name"])


def stdjson() -> FunctionSerializer:
    return FunctionSerializer(json.dumps, json.loads, name="stdjson")


SERIALIZERS: dict[str, Callable[[], Reading]] = {
    "msgpack": MsgpackSerializer,
    "json": JSONSerializer,
    "pretty": lambda: JSONSerializer(pretty=True),
    "msgpack+zstd": lambda: Stack(MsgpackSerializer(), ZstdStep(threshold=0)),
    "json+zstd+fernet": lambda: Stack(JSONSerializer(), ZstdStep(level=9), FernetStep(KEY)),
    "stdjson": stdjson,
    "stdjson+fernet": lambda: Stack(stdjson(), FernetStep(KEY)),
}


@pytest.mark.parametrize("name", SERIALIZERS)
@given(entity=any_entities())
@settings(max_examples=30, deadline=None)
def test_every_type_comes_back(name: str, entity: Entity) -> None:
    serializer = SERIALIZERS[name]()
    read = serializer.loads(entity.key, serializer.dumps(entity), 7)
    assert canonical(read) == canonical(entity)
    assert list(read) == list(entity)
    assert read.version == 7


def test_each_has_its_name_and_reads_what_the_others_of_the_package_wrote() -> None:
    plain = ["msgpack", "json", "pretty", "msgpack+zstd"]
    for name, make in SERIALIZERS.items():
        serializer = make()
        assert serializer.name == name
        assert serializer.reads(name)
        for other in plain:
            assert serializer.reads(other)
            assert serializer.loads(ADA.key, SERIALIZERS[other]().dumps(ADA), 0) == ADA
        assert not serializer.reads("cbor")
    assert not MsgpackSerializer().reads("msgpack+fernet")
    assert not stdjson().reads("msgpack+fernet")
    assert Stack(MsgpackSerializer(), FernetStep(KEY)).reads("json+zstd+fernet")
    assert not Stack(MsgpackSerializer(), FernetStep(KEY)).reads("stdjson+fernet")


def test_payloads_are_as_they_were() -> None:
    entity = Entity(Key("Country", "GB"), {"name": "x", "area": 2.0}, unindexed=["name"])
    assert MsgpackSerializer().dumps(entity).hex() == "019282a46e616d65a178a461726561cb400000000000000091a46e616d65"
    document = b'{"key":"/Country:GB","properties":{"name":"x","area":2.0},"unindexed":["name"]}'
    assert JSONSerializer().dumps(entity) == document
    assert JSONSerializer(pretty=True).dumps(entity).splitlines()[:2] == [b"{", b'  "key": "/Country:GB",']
    assert stdjson().dumps(entity) == (
        b'\x03\x07stdjson{"properties": {"name": "x", "area": 2.0}, "unindexed": ["name"]}'
    )
    packed = Stack(MsgpackSerializer(), ZstdStep(threshold=0)).dumps(ADA)
    assert packed[:10] == b"\x02\x04zstd\x28\xb5\x2f\xfd"
    assert Stack(JSONSerializer(), FernetStep(KEY)).dumps(entity)[:9] == b"\x02\x06fernet\x80"


def test_a_step_may_leave_a_payload_as_it_is() -> None:
    small = Entity(Key("A", 1), {"a": 1})
    assert Stack(MsgpackSerializer(), ZstdStep()).dumps(small) == MsgpackSerializer().dumps(small)
    assert len(Stack(MsgpackSerializer(), ZstdStep()).dumps(ADA)) < 80


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "it is empty"),
        (b"garbage", "format 103"),
        (b"\x01\xff", "can't be read"),
        (b"\x02", "can't be read"),
        (b"\x02\x04zstdnonsense", "compressed bytes are damaged"),
        (b"\x02\x05lzmaX", "step 'lzmaX' was applied"),
        (b"\x02\x06fernet\x80abc", "step 'fernet' was applied to it, which this serializer (msgpack) has not"),
        (b"\x03\x04cbor\xa0", "serializer 'cbor' wrote it"),
        (b"{]", "can't be read"),
        (b'{"key": 5}', "can't be read"),
        (b"\x02\x04zstd" * 30, "can't be read"),
    ],
)
def test_damaged_payloads_are_told(payload: bytes, message: str) -> None:
    with pytest.raises(CorruptDataError) as caught:
        MsgpackSerializer().loads(ADA.key, payload, 1)
    assert message in str(caught.value)
    assert repr(ADA.key) in str(caught.value)


def test_what_is_cut_or_changed_is_never_taken_for_data() -> None:
    serializer = Stack(MsgpackSerializer(), ZstdStep(threshold=0), FernetStep(KEY))
    payload = serializer.dumps(ADA)
    for place in range(8, len(payload), 7):
        changed = payload[:place] + bytes((payload[place] ^ 1,)) + payload[place + 1 :]
        for damaged in (changed, payload[:place]):
            with pytest.raises(CorruptDataError, match="none of the keys given opens it, or it was changed"):
                serializer.loads(ADA.key, damaged, 1)


def test_what_claims_to_be_enormous_is_not_unpacked() -> None:
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 29))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match=f"claim a size of {1 << 29}"):
        ZstdStep().unwrap(bomb)
    with pytest.raises(CorruptDataError, match="claim a size"):
        MsgpackSerializer().loads(ADA.key, b"\x02\x04zstd" + bomb, 1)


def test_keys_are_rotated_and_shown_nowhere() -> None:
    other = Fernet.generate_key()
    old, both, new = FernetStep(KEY), FernetStep([other, KEY]), FernetStep(other)
    assert both.unwrap(old.wrap(b"x")) == b"x"
    assert new.unwrap(both.wrap(b"x")) == b"x"
    with pytest.raises(ValueError, match="none of the keys") as caught:
        new.unwrap(old.wrap(b"secret"))
    assert caught.value.__cause__ is None
    stack = Stack(MsgpackSerializer(), old)
    shown = f"{old!r} {stack!r} {stack.name} {vars(stack)!r}"
    assert KEY.decode() not in shown
    with pytest.raises(BadArgumentError) as wrong:
        FernetStep("hunter2hunter2")
    assert "hunter2" not in str(wrong.value)
    assert wrong.value.__suppress_context__


def test_names_of_serializers() -> None:
    for name in ("msgpack", "json", "pretty", "msgpack+zstd", "json+zstd", "pretty+zstd"):
        assert serializer_named(name).name == name
    assert serializer_named("compact").name == "json"
    assert serializer_named("json", indented=True).name == "pretty"
    assert serializer_named("msgpack zstd").name == "msgpack+zstd"  # as URLs have it
    for wrong in ("", "cbor", "msgpack+", "msgpack+fernet", "msgpack+zstd+zstd", "MSGPACK"):
        with pytest.raises(BadArgumentError, match="expected msgpack, json"):
            serializer_named(wrong)


class Reversed:
    name = "reversed"

    def wrap(self, data: bytes) -> bytes:
        return data[::-1]

    unwrap = wrap


class Nameless:
    name = "no good"
    wrap = unwrap = Reversed.wrap


def test_steps_of_ones_own() -> None:
    stack = Stack(JSONSerializer(), Reversed(), ZstdStep(threshold=0))
    assert stack.name == "json+reversed+zstd"
    assert stack.loads(ADA.key, stack.dumps(ADA), 3) == ADA
    assert Stack(MsgpackSerializer(), Reversed()).loads(ADA.key, stack.dumps(ADA), 3) == ADA


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stack(Stack(JSONSerializer()), ZstdStep()),
        lambda: Stack(json),  # type: ignore[arg-type]
        lambda: Stack(JSONSerializer(), json),  # type: ignore[arg-type]
        lambda: Stack(JSONSerializer(), Nameless()),
        lambda: Stack(JSONSerializer(), ZstdStep(), ZstdStep()),
        lambda: FunctionSerializer(json.dumps, json.loads, name="json"),
        lambda: FunctionSerializer(json.dumps, json.loads, name="a+b"),
        lambda: FunctionSerializer(json.dumps, None, name="x"),  # type: ignore[arg-type]
        lambda: ZstdStep(level=23),
        lambda: ZstdStep(threshold=-1),
        FernetStep,
        lambda: FernetStep([]),
        lambda: FernetStep(5),
    ],
)
def test_wrong_arguments(make: Callable[[], Any]) -> None:
    with pytest.raises(BadArgumentError):
        make()


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("@value"), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_any_value_is_a_mapping_and_back(value: Any) -> None:
    wrapper = MappingWrapper()
    wrapped = wrapper.wrap(value)
    assert type(wrapped) is dict
    assert wrapper.unwrap(wrapped) == value
