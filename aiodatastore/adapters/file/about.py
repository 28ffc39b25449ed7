"""``store.json``: what the store knows beside entities, in a form that people and git can read."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass, field

import msgspec

from aiodatastore.adapters.file import disk
from aiodatastore.errors import CorruptDataError, FormatVersionError

__all__ = ["About", "read_about", "records_digest"]

VERSION = 1


@dataclass(slots=True)
class About:
    """The settings a store was made with, its sequences and the engine's own records (format, index catalog)."""

    layout: str
    extension: str
    sequences: dict[bytes, int] = field(default_factory=dict)
    records: dict[bytes, bytes] = field(default_factory=dict)

    def dumps(self) -> bytes:
        """The file's content. Bytes are written as the characters of their numbers, or base64."""
        plain = {
            "aiodatastore": VERSION,
            "layout": self.layout,
            "extension": self.extension,
            "next_ids": {name.decode("latin-1"): self.sequences[name] for name in sorted(self.sequences)},
            "records": {
                name.decode("latin-1"): b64encode(self.records[name]).decode() for name in sorted(self.records)
            },
        }
        return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def records_digest(records: dict[bytes, bytes]) -> bytes:
    """Tells other records apart: indexes made with one catalog are of no use with another."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(records):
        digest.update(msgspec.msgpack.encode((name, records[name])))
    return digest.digest()


def read_about(path: str) -> About | None:
    """What a store is, None if there is no file.

    :raises CorruptDataError: if it can't be read
    :raises FormatVersionError: if it is of another version
    """
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    try:
        plain = msgspec.json.decode(data)
        if plain["aiodatastore"] != VERSION:
            raise FormatVersionError(
                f"{path}: a folder of version {plain['aiodatastore']!r}; this version of the package reads {VERSION}"
            )
        return About(
            plain["layout"],
            plain["extension"],
            {name.encode("latin-1"): int(number) for name, number in plain["next_ids"].items()},
            {name.encode("latin-1"): b64decode(text, validate=True) for name, text in plain["records"].items()},
        )
    except (msgspec.DecodeError, UnicodeError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise CorruptDataError(
            f"{path}: can't be read ({exc}); without it, the store opens with no composite indexes, and goes on "
            "with ids after the greatest there is"
        ) from exc
