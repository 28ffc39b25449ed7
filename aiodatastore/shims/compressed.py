"""Long properties take less room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import parse_int
from aiodatastore.serializers import ZstdStep
from aiodatastore.shims.packing import Packing

__all__ = ["Compressed"]


class Compressed(Packing):
    """Compresses with zstd what no index holds of an entity: ``Text``, ``Blob`` and properties named in ``unindexed``.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, Key, Text
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(Compressed(adapter_from_url("memory://"))) as ds:
    ...         await ds.put(Entity(Key("Play", "hamlet"), {"text": Text("to be or not to be, " * 500)}))
    ...         return len((await ds.get(Key("Play", "hamlet")))["text"]), (await ds.stats())["kinds"][0]["bytes"] < 150
    >>> asyncio.run(main())
    (10000, True)

    (``pip install "aiodatastore-engine[zstd]"``.) The values of one entity are compressed together, into its property
    ``~compressed``, if they come to ``threshold`` bytes and become shorter; they come back as they were, ``Text`` and
    ``Blob`` inside of lists and embedded entities included. Indexed values stay as they are, in the entity and in index
    rows: name what need not be found in ``unindexed``. To compress whole payloads, give a store
    ``serializer=msgpack+zstd``, which is simpler. This shim is for what is no store of ours, and for what is encrypted
    below, as in ``Compressed(Encrypted(store))``: the other way round there would be nothing to compress.

    What was written without the shim is read all the same; what was written with it needs it. Nobody may put a property
    of that name (``BadRequestError``). ``level``: from -100 (fast) to 22 (small).

    :raises BadArgumentError: if ``zstandard`` is not installed, or a number is out of range
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"level": parse_int, "threshold": parse_int}

    def __init__(self, child: Adapter, *, level: int = 3, threshold: int = 256) -> None:
        super().__init__(child, ZstdStep(level=level, threshold=threshold), "~compressed")
        self._settings = {"level": level, "threshold": threshold}

    @property
    def settings(self) -> Mapping[str, object]:
        """Level and threshold."""
        return dict(self._settings)

    @property
    def _what(self) -> str:
        return "compressed"
