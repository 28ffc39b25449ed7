"""Steps of a :class:`~aiodatastore.serializers.Stack`: compression and encryption of whole payloads."""

from __future__ import annotations

import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final

from aiodatastore.errors import BadArgumentError
from aiodatastore.serializers.base import STEPS

__all__ = ["FernetStep", "ZstdStep"]

_MAX_UNPACKED: Final = 1 << 28
"""Bytes that a payload may have once it is unpacked: what says more is damaged, or meant to do harm."""


class ZstdStep:
    """Compresses with zstd what has at least ``threshold`` bytes, and becomes shorter by it.

    >>> step = ZstdStep(level=9)
    >>> packed = step.wrap(b"to be or not to be, " * 50)
    >>> len(packed) < 50, step.unwrap(packed)[:5], step.wrap(b"short")
    (True, b'to be', None)

    ``level``: from -100 (fast) to 22 (small).

    :raises BadArgumentError: if ``zstandard`` is not installed, or a number is out of range
    """

    name: Final = "zstd"

    def __init__(self, *, level: int = 3, threshold: int = 256) -> None:
        try:
            import zstandard
        except ImportError as exc:
            raise BadArgumentError(
                'zstandard is not installed: run pip install "aiodatastore-engine[zstd]" to use zstd'
            ) from exc
        if type(level) is not int or not -100 <= level <= 22:
            raise BadArgumentError(f"level: expected an int from -100 to 22, got {level!r:.80}")
        if type(threshold) is not int or threshold < 0:
            raise BadArgumentError(f"threshold: expected an int, 0 or more, got {threshold!r:.80}")
        self._zstd: Any = zstandard
        self._level = level
        self._threshold = threshold
        self._own = threading.local()  # neither is to be used by two threads at once

    def __repr__(self) -> str:
        return f"ZstdStep(level={self._level}, threshold={self._threshold})"

    def wrap(self, data: bytes) -> bytes | None:
        """The compressed bytes, if they are shorter."""
        if len(data) < self._threshold:
            return None
        own = self._own
        if not hasattr(own, "compress"):
            own.compress = self._zstd.ZstdCompressor(level=self._level).compress
        packed: bytes = own.compress(data)
        return packed if len(packed) < len(data) else None

    def unwrap(self, data: bytes) -> bytes:
        """The bytes that were compressed.

        :raises ValueError: if they are damaged
        """
        own = self._own
        if not hasattr(own, "decompress"):
            own.decompress = self._zstd.ZstdDecompressor().decompress
        try:
            size = self._zstd.frame_content_size(data)
            if not 0 <= size <= _MAX_UNPACKED:
                raise ValueError(f"the compressed bytes claim a size of {size}")
            unpacked: bytes = own.decompress(data)
        except self._zstd.ZstdError as exc:
            raise ValueError(f"the compressed bytes are damaged: {exc}") from exc
        return unpacked


STEPS[ZstdStep.name] = ZstdStep


class FernetStep:
    """Encrypts with Fernet (AES-128-CBC and HMAC-SHA256, of ``cryptography``): nobody without the key reads or forges.

    >>> from cryptography.fernet import Fernet
    >>> key = Fernet.generate_key()
    >>> step = FernetStep(key)
    >>> step.unwrap(step.wrap(b"secret"))
    b'secret'

    Of several keys the first one writes and all of them read: to rotate, put the new one first, and take the old one
    away when everything was written again. A token has its time of making in clear. Keys are 32 bytes in URL-safe
    base64, or ``Fernet`` objects; they are shown nowhere.

    :raises BadArgumentError: if ``cryptography`` is not installed, there is no key, or one is malformed
    """

    name: Final = "fernet"

    def __init__(self, *keys: Any) -> None:
        try:
            from cryptography.fernet import Fernet, InvalidToken, MultiFernet
        except ImportError as exc:
            raise BadArgumentError(
                'cryptography is not installed: run pip install "aiodatastore-engine[crypto]" to use Fernet'
            ) from exc
        given: list[Any] = []
        for key in keys:
            given += key if isinstance(key, list | tuple) else [key]
        if not given:
            raise BadArgumentError("expected a key at least: one made by cryptography.fernet.Fernet.generate_key()")
        try:
            self._fernet = MultiFernet([key if isinstance(key, Fernet) else Fernet(key) for key in given])
        except (ValueError, TypeError):
            # Neither the key nor what is wrong with it is told: it is a secret.
            raise BadArgumentError(
                "a key is malformed: expected 32 bytes in URL-safe base64, as Fernet.generate_key() makes them"
            ) from None
        self._invalid = InvalidToken

    def __repr__(self) -> str:
        return "FernetStep(…)"

    def wrap(self, data: bytes) -> bytes:
        """The token: bytes, not base64, which would be a third longer."""
        return urlsafe_b64decode(self._fernet.encrypt(data))

    def unwrap(self, data: bytes) -> bytes:
        """What was encrypted.

        :raises ValueError: if none of the keys wrote it, or it was changed
        """
        try:
            return self._fernet.decrypt(urlsafe_b64encode(data))
        except self._invalid:
            raise ValueError("none of the keys given opens it, or it was changed since it was written") from None
