"""The journal: commits that are acknowledged and perhaps not in their files yet.

A file is a header (``aiodsjl1``, the generation as 8 bytes), then records: length (8 bytes), CRC-32 (4 bytes), and
msgpack of :class:`Logged`; integers are little-endian. A snapshot names the generation of the journal that follows it.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from typing import NamedTuple

import msgspec

from aiodatastore.adapters.file import disk
from aiodatastore.errors import CorruptDataError, FormatVersionError, UnavailableError

__all__ = ["Journal", "JournalContent", "Logged", "LoggedCommit", "LoggedPut", "read_journal"]

_log = logging.getLogger("aiodatastore")

_MAGIC = b"aiodsjl1"
_HEADER = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QI")


class LoggedPut(msgspec.Struct, array_like=True, gc=False):
    """An entity, and all the index rows it has from then on."""

    key: bytes
    payload: bytes
    rows: dict[bytes, int]


class LoggedCommit(msgspec.Struct, array_like=True, gc=False):
    """What one commit changed."""

    version: int
    puts: list[LoggedPut] = []
    deletes: list[bytes] = []
    index_puts: dict[bytes, int] = {}
    index_deletes: list[bytes] = []


class Logged(msgspec.Struct, array_like=True, gc=False):
    """One record: the store's version after it, commits in order, and what sequences go on with."""

    version: int
    commits: list[LoggedCommit] = []
    sequences: dict[bytes, int] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Logged).decode


class JournalContent(NamedTuple):
    """What a journal has: ``size`` is where its last whole record ends."""

    generation: int
    records: list[Logged]
    size: int


def read_journal(path: str, *, strict: bool) -> JournalContent | None:
    """The records of a journal, None if there is none. A torn last one, which nobody was told of, is left out.

    :raises CorruptDataError: if a record is damaged and others follow, unless not ``strict``
    :raises FormatVersionError: if it is of another format
    """
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        return None  # cut while it was made: nothing was in it
    magic, generation = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        kind = FormatVersionError if magic[:6] == _MAGIC[:6] else CorruptDataError
        raise kind(f"{path}: not a journal that this version of the package reads")
    records = []
    at = _HEADER.size
    while at + _RECORD.size <= len(data):
        length, check = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + length
        if end > len(data):
            break
        body = data[at + _RECORD.size : end]
        if zlib.crc32(body) != check:
            if strict and data[end:].strip(b"\0"):
                raise CorruptDataError(
                    f"{path}: damaged at byte {at}, and commits follow that were acknowledged; restore it from a copy, "
                    "or move it away to open the store without what it holds"
                )
            break
        try:
            records.append(_decode(body))
        except msgspec.DecodeError as exc:
            raise CorruptDataError(f"{path}: the record at byte {at} can't be read: {exc}") from exc
        at = end
    if at < len(data):
        _log.warning(
            "%s: the last %d bytes are no whole record: a commit that was not acknowledged", path, len(data) - at
        )
    return JournalContent(generation, records, at)


class Journal:
    """The journal of an open store, for appending. One thread at a time."""

    def __init__(self, path: str, temporary: str, *, fsync: bool) -> None:
        self._path = path
        self._temporary = temporary
        self._fsync = fsync
        self._fd = -1
        self._failed: BaseException | None = None
        self.size = 0
        self.generation = 0

    def start(self, generation: int) -> None:
        """Begin an empty one in place of what is there. Atomic."""
        disk.write_new(self._temporary, [_HEADER.pack(_MAGIC, generation)], durable=self._fsync)
        disk.put_in_place(self._temporary, self._path)
        if self._fsync:
            disk.sync_folder(os.path.dirname(self._path))
        self.go_on(JournalContent(generation, [], _HEADER.size))

    def go_on(self, content: JournalContent) -> None:
        """Append to what is there, after its last whole record."""
        fd = disk.open_append(self._path)
        try:
            disk.cut(fd, content.size)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd = fd
        self._failed = None
        self.size, self.generation = content.size, content.generation

    def append(self, logged: Logged) -> None:
        """Add a record; when this returns, it is durable. If it raises, the record is not there.

        :raises OSError: nothing was added
        :raises UnavailableError: an earlier error left the file in a state that is not known
        """
        if self._failed is not None:
            raise UnavailableError(
                f"{self._path}: an earlier write failed ({self._failed}) and could not be taken back; "
                "open the store anew"
            )
        body = _encode(logged)
        try:
            disk.append(self._fd, self.size, _RECORD.pack(len(body), zlib.crc32(body)) + body)
            if self._fsync:
                disk.sync(self._fd)
        except OSError as exc:
            try:
                self._take_back()
            except OSError:
                self._failed = exc  # whether the next open finds the record is not known: nothing may follow it
            raise
        self.size += _RECORD.size + len(body)

    def _take_back(self) -> None:
        disk.cut(self._fd, self.size)
        if self._fsync:
            disk.sync(self._fd)

    def close(self) -> None:
        """Close the file; allowed twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
