"""The byte order of encodings is the datastore's order, and their bytes never change."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore.errors import BadKeyError, BadValueError, CorruptDataError
from aiodatastore.indexing.encoding import (
    component_end,
    decode_key,
    decode_value,
    encode_key,
    encode_value,
    invert,
    is_alternate,
    key_end,
)
from aiodatastore.key import Key
from aiodatastore.testing.model import rank
from aiodatastore.testing.strategies import keys, single_values
from aiodatastore.values import GeoPoint, Text

INDEXED = single_values().filter(lambda value: not isinstance(value, Text))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        if left != left or right != right:
            return left != left and right != right  # an index knows one nan, whatever its sign
        return math.copysign(1, left) == math.copysign(1, right) and left == right
    return type(left) is type(right) and bool(left == right)


@given(INDEXED, INDEXED)
def test_byte_order_is_value_order(left: Any, right: Any) -> None:
    a, b = encode_value(left), encode_value(right)
    assert (a < b, a == b) == (rank(left) < rank(right), rank(left) == rank(right))


@given(INDEXED, INDEXED)
def test_inverted_byte_order_is_the_reverse(left: Any, right: Any) -> None:
    a, b = encode_value(left), encode_value(right)
    assert (a < b) == (invert(b) < invert(a))


@given(INDEXED)
def test_a_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    assert same(decode_value(encode_value(value), alternate=is_alternate(value)), value)


@given(INDEXED, INDEXED, st.booleans())
def test_a_component_ends_where_the_next_begins(left: Any, right: Any, inverted: bool) -> None:
    a, b = encode_value(left), encode_value(right)
    data = invert(a + b) if inverted else a + b
    assert component_end(data, 0, inverted=inverted) == len(a)
    assert component_end(data, len(a), inverted=inverted) == len(data)


@given(keys(), keys())
def test_byte_order_of_keys_is_their_order(left: Key, right: Key) -> None:
    assert (encode_key(left) < encode_key(right)) == (left < right)


@given(keys(), keys())
def test_only_descendants_begin_with_a_key(left: Key, right: Key) -> None:
    begins = encode_key(right).startswith(encode_key(left))
    assert begins == (left == right or left.is_ancestor_of(right))


@given(keys(), st.booleans())
def test_keys_come_back(key: Key, inverted: bool) -> None:
    data = encode_key(key)
    assert decode_key(data) == key
    ended = data + b"\x00tail"
    assert key_end(invert(ended) if inverted else ended, 0, inverted=inverted) == len(data) + 1


def test_incomplete_keys_have_no_bytes() -> None:
    with pytest.raises(BadKeyError, match="complete key"):
        encode_key(Key("Task"))


def test_naive_datetimes_and_foreign_types_have_no_bytes() -> None:
    with pytest.raises(BadValueError, match="tzinfo"):
        encode_value(datetime(2020, 1, 1))
    with pytest.raises(BadValueError, match="no place in an index"):
        encode_value({1, 2})


@pytest.mark.parametrize("data", [b"", b"\x99", b"\x30abc", b"\x15", b"\x40\x00", b"\x60ab\x00"])
def test_damaged_values_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        component_end(data, 0)


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00K\x00\x09", b"\x00\x00K\x00\x02a", b"\x00\x00K\x00\x10a"])
def test_damaged_keys_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_key(data)


PINNED: list[tuple[Any, str]] = [
    (None, "05"),
    (0, "14"),
    (1, "1501"),
    (255, "15ff"),
    (256, "160100"),
    (-1, "13fe"),
    (-256, "12feff"),
    (2**63 - 1, "1c7fffffffffffffff"),
    (-(2**63), "0c7fffffffffffffff"),
    (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=256), "160100"),
    (False, "20"),
    (True, "21"),
    ("", "3000"),
    ("a", "306100"),
    ("a\x00\x01b", "30610101010262" + "00"),
    (b"\xff", "30ff00"),
    (0.0, "408000000000000000"),
    (-0.0, "407fffffffffffffff"),
    (1.5, "40bff8000000000000"),
    (float("nan"), "40fff8000000000000"),
    (GeoPoint(1.0, -1.0), "50bff0000000000000400fffffffffffff"),
    (Key("A", 1), "6000004100010100"),
]


@pytest.mark.parametrize(("value", "expected"), PINNED)
def test_the_format_of_values_is_pinned(value: Any, expected: str) -> None:
    assert encode_value(value).hex() == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (Key("A", 1), "000041000101"),
        (Key("A", "b"), "00004100106200"),
        (
            Key("A", 300, "B", "c", namespace="n", project="p"),
            "70006e00" + "41 00 02 01 2c".replace(" ", "") + "4200106300",
        ),
    ],
)
def test_the_format_of_keys_is_pinned(key: Key, expected: str) -> None:
    assert encode_key(key).hex() == expected
