"""The second level of a cache: copies in an adapter that several processes share, and that may fail."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence

from aiodatastore.adapters.base import Adapter
from aiodatastore.key import Key
from aiodatastore.shims.cached.copies import Copies, Copy, Place, same_clock

__all__ = ["Shared"]

_log = logging.getLogger("aiodatastore")

_REST_S = 5.0
_TRIES = 3


class Shared:
    """Copies that are read and written if that works; if it does not, the cache is left alone for a while.

    ``failures`` counts what did not work; the first of a row is logged.
    """

    def __init__(self, adapter: Adapter, space: str, ttl_s: float) -> None:
        self.copies = Copies(adapter, space)
        self.failures = 0
        self._ttl_s = ttl_s
        self._is_open = False
        self._rests_until = -math.inf
        self._told = False

    async def open(self) -> None:
        """Open the adapter; if that fails it is tried again later."""
        try:
            await self.copies.adapter.open()
            self._is_open = True
        except Exception as exc:
            self._failed(exc)

    async def aclose(self) -> None:
        """Close the adapter."""
        if self._is_open:
            self._is_open = False
            await self.copies.adapter.aclose()

    async def read(self, keys: Sequence[Key]) -> list[Place] | None:
        """What there is of each key; None: it can't be told."""
        if not await self._usable():
            return None
        try:
            places = await self.copies.read(keys)
        except Exception as exc:
            self._failed(exc)
            return None
        self._told = False
        return places

    async def write(self, copies: Sequence[tuple[Key, Copy, int]]) -> None:
        """Write copies where nobody wrote since their places were read."""
        wanted = [each for each in copies if self.copies.can_keep(each[1])]
        if not wanted or not await self._usable():
            return
        try:
            await self.copies.write(wanted, self._ttl_s)
        except Exception as exc:
            self._failed(exc)

    async def update(self, copies: Mapping[Key, Copy | None]) -> None:
        """Write copies unless newer ones are there; None: take away what is there."""
        wanted = [(key, copy) for key, copy in copies.items() if copy is not None and self.copies.can_keep(copy)]
        if len(wanted) < len(copies):
            kept = {key for key, _ in wanted}
            await self.forget([key for key in copies if key not in kept])
        for _ in range(_TRIES):
            if not wanted:
                return
            places = await self.read([key for key, _ in wanted])
            if places is None:
                return
            older = [
                (key, copy, place.version)
                for (key, copy), place in zip(wanted, places, strict=True)
                if place.copy is None or not same_clock(place.copy.clock, copy.clock) or place.copy.moment < copy.moment
            ]
            if not older:
                return
            try:
                written = await self.copies.write(older, self._ttl_s)
            except Exception as exc:
                self._failed(exc)
                return
            wanted = [(key, copy) for (key, copy, _), done in zip(older, written, strict=True) if not done]
        self.failures += len(wanted)

    async def forget(self, keys: Sequence[Key]) -> None:
        """Take copies away."""
        if await self._usable():
            try:
                await self.copies.forget(keys)
            except Exception as exc:
                self._failed(exc)

    async def _usable(self) -> bool:
        if time.monotonic() < self._rests_until:
            return False
        if not self._is_open:
            await self.open()
        return self._is_open

    def _failed(self, exc: Exception) -> None:
        self.failures += 1
        self._rests_until = time.monotonic() + _REST_S
        if not self._told:
            self._told = True
            _log.warning(
                "the cache %s does not work (%s: %s): reads go to the store until it does",
                self.copies.adapter.url,
                type(exc).__name__,
                exc,
            )
