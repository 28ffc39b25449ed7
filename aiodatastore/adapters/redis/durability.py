"""What an acknowledgement means: the server's settings, as far as it tells them."""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiodatastore.adapters.redis.connections import Command

__all__ = ["Durability", "Persistence", "inquire"]


class Persistence(enum.StrEnum):
    """What survives a crash of the server."""

    ALWAYS = "always"  # every acknowledged commit
    EVERY_SECOND = "everysec"  # all but about the last second of commits (after kill -9 alone: nearly all)
    BY_SYSTEM = "no"  # what the operating system has written to the disk by then
    SNAPSHOTS = "snapshots"  # at best the last snapshot
    UNKNOWN = "unknown"  # the server does not permit CONFIG GET


@dataclass(frozen=True, slots=True)
class Durability:
    """``persistence`` of commits, and the ``maxmemory-policy`` (None if the server does not tell)."""

    persistence: Persistence
    eviction: str | None

    @property
    def survives_kill(self) -> bool:
        """Whether acknowledged commits are known to survive a crash of the server."""
        return self.persistence is Persistence.ALWAYS and not self.may_evict

    @property
    def may_evict(self) -> bool:
        """Whether the server may throw data away when its memory is full."""
        return self.eviction is not None and self.eviction != "noeviction"

    def log(self, log: logging.Logger, url: str) -> None:
        """Warn where data may vanish, and say once what could not be learnt."""
        if self.may_evict:
            log.warning(
                "%s: maxmemory-policy is %s, so the server may evict data when its memory is full: parts of this store "
                "would vanish. Set it to noeviction",
                url,
                self.eviction,
            )
        if self.persistence is Persistence.UNKNOWN or self.eviction is None:
            log.info("%s: the server does not permit CONFIG GET: what survives its crash is not known", url)


async def inquire(ask: Callable[[Sequence[Command]], Awaitable[Sequence[Any] | None]]) -> Durability:
    """Read the settings; ``ask`` gives the answers to commands sent together, None if they are not permitted."""
    # One at a time: Redis 6 takes no more.
    answers = await ask([(b"CONFIG", b"GET", name) for name in _SETTINGS])
    found = [answer for answer in answers or () if isinstance(answer, list) and len(answer) == 2]
    settings: dict[bytes, str] = {name: value.decode("ascii", "replace") for name, value in found}
    return Durability(_persistence(settings), settings.get(b"maxmemory-policy"))


_SETTINGS = (b"appendonly", b"appendfsync", b"no-appendfsync-on-rewrite", b"maxmemory-policy")


def _persistence(settings: dict[bytes, str]) -> Persistence:
    if b"appendonly" not in settings or b"appendfsync" not in settings:
        return Persistence.UNKNOWN
    if settings[b"appendonly"] != "yes":
        return Persistence.SNAPSHOTS
    if settings[b"appendfsync"] == "always" and settings.get(b"no-appendfsync-on-rewrite") == "yes":
        return Persistence.BY_SYSTEM  # while the file is rewritten
    return Persistence(settings[b"appendfsync"])
