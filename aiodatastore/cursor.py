"""Cursors: positions in the results of a query."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from aiodatastore.errors import BadArgumentError, BadCursorError

__all__ = ["Cursor"]

_VERSION: Final = 1
_INVERTED: Final = 1
_SHAPED: Final = 2
_MIRRORED: Final = 4
_SHAPE_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two results of a query, to start or end another run of it at.

    A cursor is a position (sort values and key), not an offset: it stays where it is while data changes
    before and after it. It belongs to its query's ``shape``; another query refuses it.
    An empty ``position`` is before the first result, and a cursor without ``shape`` (a new one) is so for any
    query. ``inverted`` says that the query that made it had descending keys, ``mirrored`` that it was itself read
    backwards from a cursor of its reverse: so is what goes on from here.

    >>> text = Cursor(b"position", b"0123456789abcdef").to_urlsafe()
    >>> Cursor.from_urlsafe(text).position
    b'position'
    """

    position: bytes = b""
    shape: bytes = b""
    inverted: bool = False
    mirrored: bool = False

    def __post_init__(self) -> None:
        if {type(self.position), type(self.shape)} != {bytes}:
            raise BadArgumentError("a cursor is made of bytes; to read its text use Cursor.from_urlsafe")
        if len(self.shape) not in {0, _SHAPE_BYTES}:
            raise BadArgumentError(f"a query's shape has {_SHAPE_BYTES} bytes, not {len(self.shape)}")

    def to_urlsafe(self) -> str:
        """The cursor as text of letters, digits, ``-`` and ``_`` alone: opaque, for URLs and templates."""
        flags = (
            (_INVERTED if self.inverted else 0) | (_SHAPED if self.shape else 0) | (_MIRRORED if self.mirrored else 0)
        )
        body = bytes((_VERSION, flags)) + self.shape + self.position
        return base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()

    def __str__(self) -> str:
        return self.to_urlsafe()

    @classmethod
    def from_urlsafe(cls, text: str) -> Cursor:
        """The cursor of its text.

        :raises BadCursorError: if the text is no cursor's, or damaged
        """
        if not isinstance(text, str):
            raise BadCursorError(f"expected a cursor's text (str), got {type(text).__name__} {text!r:.80}")
        try:
            data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
        except (ValueError, binascii.Error) as exc:
            raise BadCursorError(f"{text!r:.80} is no cursor: it has a character no cursor has") from exc
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(body) < 2 or _checksum(body) != checksum:
            raise BadCursorError(f"{text!r:.80} is no cursor, or it was damaged on its way")
        version, flags = body[0], body[1]
        start = 2 + (_SHAPE_BYTES if flags & _SHAPED else 0)
        if version != _VERSION or flags & ~(_INVERTED | _SHAPED | _MIRRORED) or len(body) < start:
            raise BadCursorError(f"{text!r:.80} is a cursor of another version of this package")
        cursor = cls(body[start:], body[2:start], bool(flags & _INVERTED), bool(flags & _MIRRORED))
        if cursor.to_urlsafe() != text:  # base64 has spare bits at its end
            raise BadCursorError(f"{text!r:.80} is no cursor, or it was damaged on its way")
        return cursor


def _checksum(body: bytes) -> bytes:
    """Against damage and mix-ups; no secret, so no protection against forgery."""
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"cursor").digest()
