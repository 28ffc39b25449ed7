"""Which entities are in which file: one file for each entity, or one for each kind."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from aiodatastore.adapters.file import disk
from aiodatastore.adapters.file.documents import Documents
from aiodatastore.adapters.file.paths import PathError, key_of, kind_place, parse_kind_path, parse_path, place_of
from aiodatastore.errors import BadRequestError, BadValueError
from aiodatastore.indexing.encoding import decode_key

__all__ = ["OWN_FOLDER", "EntityFiles", "KindFiles", "Layout"]

OWN_FOLDER = ".aiodatastore"
"""The store's own folder below its root: no kind's, as a dot at the beginning is escaped."""

_RAW = f"{OWN_FOLDER}/raw"
_RAW_EXTENSION = ".bin"
_KEY_EXTENSION = ".key"
_NEW = f"{OWN_FOLDER}/new"


class Layout(ABC):
    """Reads and writes the files of entities below a folder. Paths are relative to it, with ``/``."""

    name: str
    holds_all: bool
    """Whether payloads are kept in memory, because one of them can't be read alone."""

    def __init__(self, root: str, extension: str, documents: Documents | None) -> None:
        self.root = root
        self.extension = extension
        self._documents = documents
        self._names_keys = documents is not None and documents.names_keys

    def absolute(self, path: str) -> str:
        """A path for the operating system."""
        return f"{self.root}/{path}" if os.sep == "/" else os.path.join(self.root, *path.split("/"))

    @abstractmethod
    def path(self, key: bytes) -> str:
        """The file that a key's entity is in."""

    @abstractmethod
    def read(self, key: bytes) -> bytes:
        """The payload of one entity, from its file.

        :raises FileNotFoundError: if it has none
        """

    @abstractmethod
    def check(self, key: bytes, payload: bytes) -> None:
        """Whether the layout can hold this.

        :raises BadRequestError: if not
        """

    @abstractmethod
    def apply(self, changes: Mapping[bytes, bytes | None]) -> Iterator[tuple[list[bytes], str, bytes | None]]:
        """Write payloads, and remove (None), each file at once or not at all.

        Gives after each file the keys that are done, its path, and its state (None: gone).
        """

    @abstractmethod
    def load(self, path: str) -> list[tuple[bytes, bytes]]:
        """All entities of a file: key and payload.

        :raises BadValueError: if it can't be one of this layout; the message says where
        :raises FileNotFoundError: if there is none
        """

    @abstractmethod
    def key_at(self, path: str) -> bytes | None:
        """The one key whose file this is, if the path alone tells."""

    def keep(self, path: str, entities: Iterable[tuple[bytes, bytes]]) -> None:
        """Told while the store is opened: what a file holds."""
        return

    def walk(self) -> Iterator[tuple[str, bytes]]:
        """Every file that may hold entities, and :func:`~aiodatastore.adapters.file.disk.stat_of` it."""
        yield from self._walk("", self.extension)
        if os.path.isdir(self.absolute(_RAW)):
            yield from self._walk(f"{_RAW}/", _RAW_EXTENSION)

    def _walk(self, top: str, extension: str) -> Iterator[tuple[str, bytes]]:
        todo = [top]
        pack = disk.stat_of
        while todo:
            prefix = todo.pop()
            try:
                found = os.scandir(self.absolute(prefix) if prefix else self.root)
            except FileNotFoundError:  # removed since, by the writer beside whom this one reads
                continue
            with found as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":  # none of ours: of git, editors, the macOS Finder
                        continue
                    if not name.isascii():
                        name = unicodedata.normalize("NFC", name)
                    if name.endswith(extension) and not entry.is_dir(follow_symlinks=False):
                        if prefix or self._at_root:
                            try:
                                yield prefix + name, pack(entry.stat())
                            except FileNotFoundError:
                                continue
                    elif entry.is_dir(follow_symlinks=False):
                        todo.append(f"{prefix}{name}/")

    _at_root = False
    """Whether files directly in the root may hold entities."""

    # ------------------------------------------------------------------------------- single files

    def _raw_path(self, key: bytes) -> str:
        digest = hashlib.blake2b(key, digest_size=20).hexdigest()
        return f"{_RAW}/{digest[:2]}/{digest}{_RAW_EXTENSION}"

    def _is_own(self, path: str) -> bool:
        return path.startswith(_RAW)

    def _write(self, path: str, data: bytes) -> bytes:
        new = self.absolute(_NEW)
        stat = disk.write_new(new, (data,))
        disk.put_in_place(new, self.absolute(path))
        return stat

    def _apply_one(self, key: bytes, path: str, payload: bytes | None, has_key_file: bool) -> bytes | None:
        beside = os.path.splitext(path)[0] + _KEY_EXTENSION
        if payload is None:
            disk.remove(self.absolute(path), self.root)
            if has_key_file:
                disk.remove(self.absolute(beside), self.root)
            return None
        if has_key_file and not os.path.exists(self.absolute(beside)):
            self._write(beside, key.hex().encode() + b"\n")
        return self._write(path, payload)

    def _key_beside(self, path: str) -> bytes | None:
        try:
            return bytes.fromhex(disk.read(self.absolute(os.path.splitext(path)[0] + _KEY_EXTENSION)).decode().strip())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise BadValueError(f"the file beside it that ends with {_KEY_EXTENSION} is damaged") from exc

    def _load_raw(self, path: str) -> list[tuple[bytes, bytes]]:
        key = self._key_beside(path)
        if key is None or self._raw_path(key) != path:
            raise BadValueError(f"the file beside it that ends with {_KEY_EXTENSION} is missing, or another's")
        return [(key, disk.read(self.absolute(path)))]


class EntityFiles(Layout):
    """``Country/GB/City/2643743.json``."""

    name = "entity"
    holds_all = False

    def path(self, key: bytes) -> str:
        place = place_of(key, self.extension)
        return self._raw_path(key) if place is None else place.path

    def read(self, key: bytes) -> bytes:
        return disk.read(self.absolute(self.path(key)))

    def check(self, key: bytes, payload: bytes) -> None:
        return

    def apply(self, changes: Mapping[bytes, bytes | None]) -> Iterator[tuple[list[bytes], str, bytes | None]]:
        for key, payload in changes.items():
            place = place_of(key, self.extension)
            if place is None:
                path, has_key_file = self._raw_path(key), True
            else:
                path = place.path
                has_key_file = not place.is_exact and (payload is None or not self._names_keys)
            yield [key], path, self._apply_one(key, path, payload, has_key_file)

    def load(self, path: str) -> list[tuple[bytes, bytes]]:
        if self._is_own(path):
            return self._load_raw(path)
        try:
            key = parse_path(path, self.extension)
        except PathError as exc:
            raise BadValueError(f"not the path of a key: {exc}") from exc
        payload = disk.read(self.absolute(path))
        named = self._documents.key_of(payload) if self._documents is not None else None
        if key is None:
            named = named or self._key_beside(path)
            if named is None:
                raise BadValueError("its name was cut, and nothing in it names its key")
            key = named
        place = place_of(key, self.extension)
        if named not in (None, key) or place is None or place.path != path:
            told = decode_key(named if named is not None else key)
            right = place_of(encoded, self.extension) if (encoded := named or key) else None
            where = f", whose file is {right.path}" if right is not None else ""
            raise BadValueError(f"it names the key {told}{where}: rename the file, or change or remove the key in it")
        return [(key, payload)]

    def key_at(self, path: str) -> bytes | None:
        if self._is_own(path):
            return None
        try:
            return parse_path(path, self.extension)
        except PathError:
            return None


class KindFiles(Layout):
    """``City.jsonl``: a line for each entity of a kind (of a namespace), in order of their keys.

    Changing one entity writes the file anew, so they are written behind, at the pace the disk has.
    """

    name = "kind"
    holds_all = True
    _at_root = True

    def __init__(self, root: str, extension: str, documents: Documents | None) -> None:
        super().__init__(root, extension, documents)
        self._content: dict[str, dict[bytes, bytes]] = {}  # only the opening and then the applying thread use it

    def path(self, key: bytes) -> str:
        place = kind_place(key, self.extension)
        return self._raw_path(key) if place is None else place.path

    def read(self, key: bytes) -> bytes:
        raise FileNotFoundError(self.path(key))  # it is in memory

    def check(self, key: bytes, payload: bytes) -> None:
        if payload[:1] != b"{" and key_of(key) is not None:
            raise BadRequestError("layout=kind keeps a line of JSON for each entity: use serializer=json or compact")

    def keep(self, path: str, entities: Iterable[tuple[bytes, bytes]]) -> None:
        if not self._is_own(path):
            self._content[path] = dict(entities)

    def apply(self, changes: Mapping[bytes, bytes | None]) -> Iterator[tuple[list[bytes], str, bytes | None]]:
        by_path: dict[str, list[bytes]] = {}
        for key, payload in changes.items():
            path = self.path(key)
            if self._is_own(path):
                yield [key], path, self._apply_one(key, path, payload, True)
            else:
                by_path.setdefault(path, []).append(key)
        for path, keys in by_path.items():
            content = self._content.setdefault(path, {})
            for key in keys:
                payload = changes[key]
                if payload is None:
                    content.pop(key, None)
                else:
                    content[key] = _line(payload)
            if content:
                data = b"\n".join([content[key] for key in sorted(content)]) + b"\n"
                yield keys, path, self._write(path, data)
            else:
                disk.remove(self.absolute(path), self.root)
                yield keys, path, None

    def load(self, path: str) -> list[tuple[bytes, bytes]]:
        if self._is_own(path):
            return self._load_raw(path)
        try:
            parse_kind_path(path, self.extension)
        except PathError as exc:
            raise BadValueError(f"not the path of a kind: {exc}") from exc
        assert self._documents is not None
        entities: dict[bytes, bytes] = {}
        for number, line in enumerate(disk.read(self.absolute(path)).split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                key = self._documents.key_of(line)
            except BadValueError as exc:
                raise BadValueError(f"line {number}: {str(exc).removeprefix('line 1, ')}") from exc
            if key is None:
                raise BadValueError(f'line {number}: no key; expected a member "key" like "/Kind:id_or_name"')
            place = kind_place(key, self.extension)
            if place is None or place.path != path:
                where = f"; the file of its kind is {place.path}" if place is not None else ""
                raise BadValueError(f"line {number}: it is of the key {decode_key(key)}{where}")
            if key in entities:
                raise BadValueError(f"line {number}: a second line of the key {decode_key(key)}")
            entities[key] = line.rstrip(b"\r")
        return list(entities.items())

    def key_at(self, path: str) -> bytes | None:
        return None


def _line(payload: bytes) -> bytes:
    return msgspec.json.format(payload, indent=-1) if b"\n" in payload else payload
