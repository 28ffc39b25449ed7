"""Cursors as text: exact, and refused when damaged."""

from __future__ import annotations

import base64
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore.cursor import Cursor
from aiodatastore.errors import BadArgumentError, BadCursorError, BadRequestError, BadValueError

SHAPE = bytes(range(16))
cursors = st.builds(Cursor, st.binary(max_size=40), st.sampled_from([b"", SHAPE]), st.booleans())


@given(cursors)
def test_text_is_exact(cursor: Cursor) -> None:
    text = cursor.to_urlsafe()
    assert Cursor.from_urlsafe(text) == cursor
    assert str(cursor) == text
    assert text.replace("-", "").replace("_", "").isalnum()
    assert pickle.loads(pickle.dumps(cursor)) == cursor


@given(cursors, st.data())
def test_every_change_of_a_character_is_noticed(cursor: Cursor, data: st.DataObject) -> None:
    text = cursor.to_urlsafe()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("Aa0-_!=é ").filter(lambda letter: letter != text[at]))
    for damaged in (text[:at] + other + text[at + 1 :], text[:at], text[:at] + other + text[at:], text + "="):
        with pytest.raises(BadCursorError):
            Cursor.from_urlsafe(damaged)


@pytest.mark.parametrize("text", [None, 5, b"abc", "", "!!!", base64.urlsafe_b64encode(b"garbage").decode()])
def test_what_is_no_cursor(text: object) -> None:
    with pytest.raises(BadValueError):
        Cursor.from_urlsafe(text)  # type: ignore[arg-type]
    with pytest.raises(BadRequestError):
        Cursor.from_urlsafe(text)  # type: ignore[arg-type]


def test_a_later_version_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodatastore.cursor._VERSION", 2)
    text = Cursor(b"x", SHAPE).to_urlsafe()
    monkeypatch.undo()
    with pytest.raises(BadCursorError, match="version"):
        Cursor.from_urlsafe(text)


def test_the_text_is_pinned() -> None:
    assert Cursor(b"position", SHAPE, True).to_urlsafe() == "AQMAAQIDBAUGBwgJCgsMDQ4PcG9zaXRpb25bdV9m7IhMhA"


def test_construction() -> None:
    assert Cursor() == Cursor(b"", b"", False)
    for wrong in (("text",), (b"", "text"), (b"", b"short")):
        with pytest.raises(BadArgumentError):
            Cursor(*wrong)
    with pytest.raises(AttributeError):
        Cursor().position = b"x"  # type: ignore[misc]
