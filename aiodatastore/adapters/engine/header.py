"""The store's header: the version of its format, and which serializers its payloads were written with.

It is the record ``ff "format"``: the version in decimal digits, and, where other serializers than ``msgpack`` have
written, a blank and their names with commas between them, the one that writes now first. A name is that of a serializer
and of its steps: ``json``, ``msgpack+zstd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiodatastore.errors import BadArgumentError, CorruptDataError, FormatVersionError
from aiodatastore.indexing.encoding import FORMAT_VERSION
from aiodatastore.indexing.rows import SYSTEM
from aiodatastore.serializers import Serializer, serializer_named
from aiodatastore.serializers.base import can_read, name_of

__all__ = ["FORMAT_KEY", "Header"]

FORMAT_KEY: Final = SYSTEM + b"format"
_DEFAULT: Final = ("msgpack",)


@dataclass(frozen=True, slots=True)
class Header:
    """``serializers``: names of those that wrote payloads that may still be there, the one that writes now first."""

    serializers: tuple[str, ...] = _DEFAULT

    @classmethod
    def loads(cls, payload: bytes, url: str) -> Header:
        """The header of a record.

        :raises FormatVersionError: if it is of another version of the format
        :raises CorruptDataError: if it is no header
        """
        version, _, names = payload.partition(b" ")
        if version != b"%d" % FORMAT_VERSION:
            found = payload[:20].decode("ascii", "replace")
            raise FormatVersionError(
                f"{url} is in format {found}, this version of the package reads {FORMAT_VERSION}: "
                "use the version that wrote it, or export there and import here"
            )
        try:
            return cls(tuple(names.decode("ascii").split(","))) if names else cls()
        except UnicodeDecodeError as exc:
            raise CorruptDataError(f"{url}: the header is damaged: {exc}") from exc

    def dumps(self) -> bytes:
        """The record."""
        version = b"%d" % FORMAT_VERSION
        return version if self.serializers == _DEFAULT else version + b" " + ",".join(self.serializers).encode("ascii")

    def opened_with(self, serializer: Serializer) -> Header:
        """The header once a serializer writes, too."""
        name = name_of(serializer)
        return Header((name, *[other for other in self.serializers if other != name]))

    def check(self, serializer: Serializer, url: str) -> None:
        """Whether a serializer reads all that is there.

        :raises FormatVersionError: if not
        """
        for name in self.serializers:
            if not can_read(serializer, name):
                raise FormatVersionError(
                    f"{url} has payloads that serializer {name!r} wrote, which {name_of(serializer)!r} does not read: "
                    "open it with the serializer of that name, or with one that has its steps"
                )

    def own_serializer(self, url: str) -> Serializer:
        """The serializer that writes, by its name.

        :raises FormatVersionError: if it needs more than a name: a key, or functions
        """
        name = self.serializers[0]
        try:
            return serializer_named(name)
        except BadArgumentError as exc:
            raise FormatVersionError(
                f"{url} is written with serializer {name!r}: give it as serializer=, as it was when it was made ({exc})"
            ) from exc
