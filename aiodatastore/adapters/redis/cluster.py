"""A cluster: who serves which slot, connections to each node, and where a request goes when that changes."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, NamedTuple

from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError

from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.redis.address import TLS_SETTINGS, Address, parse_address
from aiodatastore.adapters.redis.connections import Command, Connections, NotSentError, connector
from aiodatastore.adapters.redis.durability import Durability, Persistence, inquire
from aiodatastore.errors import BadArgumentError, UnavailableError

__all__ = ["SLOTS", "Cluster", "Place", "SlotLink", "hash_slot", "hash_tags", "parse_seeds"]

SLOTS: Final = 16384

_MAX_REDIRECTS: Final = 5
_FRESH_S: Final = 0.1
"""Who serves what is not asked again within this time: failing calls come in crowds."""
_STAGGER_S: Final = 0.1
"""How long one node may keep us waiting before another is asked, too."""
_SUSPECT_S: Final = 5.0
_LEARN_S: Final = 1.0
"""Learning who serves what is given so long even if the call that wants it has less: the next one will need it, too."""

Place = tuple[str, int]
"""Host and port of a node."""


def hash_slot(key: bytes) -> int:
    """The slot of a key: CRC-16 (XMODEM) of its hash tag, if it has one, else of all of it.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/

    >>> hash_slot(b"{user1000}.following") == hash_slot(b"user1000")
    True
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def hash_tags(prefix: str, number: int) -> list[str]:
    """What the keys of each of ``number`` shards begin with: ``{prefix.n}``, one in each equal part of the slots.

    So every node of a cluster whose slots are in one piece has equally many. The same for ever: data is found by it.

    >>> hash_tags("shop", 2)
    ['{shop.0}', '{shop.2}']
    """
    found: dict[int, str] = {}
    for n in count():
        tag = f"{{{prefix}.{n}}}"
        found.setdefault(hash_slot(tag.encode()) * number // SLOTS, tag)
        if len(found) == number:
            break
    return [found[part] for part in range(number)]


def parse_seeds(scheme: str, location: str) -> list[Address]:
    """The nodes of ``redis+cluster://[user[:password]@]host[:port][,host[:port]…]`` (``rediss+cluster`` alike).

    :raises BadArgumentError: if it is malformed; the text is not repeated, as there may be a password in it
    """
    user, at, rest = location.rpartition("@")
    hosts, _, path = rest.partition("/")
    if path not in ("", "0"):
        raise BadArgumentError(
            f"{scheme}:// URL: a cluster has one database, 0: expected {scheme}://host:port,host:port/"
        )
    plain = scheme.partition("+")[0]
    names = hosts.split(",")
    if not all(names) and hosts:
        raise BadArgumentError(f"{scheme}:// URL: expected {scheme}://host:port,host:port/")
    try:
        return [parse_address(plain, user + at + name) for name in names]
    except BadArgumentError:
        raise BadArgumentError(f"{scheme}:// URL: the address is malformed") from None


class _View(NamedTuple):
    """What a node says: (first slot, last slot, master, replicas) in order, whether all are served, and since when."""

    ranges: list[tuple[int, int, Place, list[Place]]]
    ok: bool
    epoch: int

    @property
    def rank(self) -> tuple[bool, int]:
        return self.ok, self.epoch


@dataclass(slots=True)
class _Known:
    """The view in use, and what nodes have told since in passing."""

    view: _View
    moved: dict[int, Place]


class Cluster:
    """The nodes of one Redis or Valkey cluster. Shared by the stores in it, each in one slot (:class:`SlotLink`).

    ``max_connections`` are to each node: so many exchanges at a time, others wait in the order in which they came.
    It is open as long as any of its links is.

    :raises BadArgumentError: if a setting is out of range
    """

    def __init__(
        self, seeds: Sequence[Address], *, max_connections: int = 10, timeout_s: float = 5.0, **tls: Any
    ) -> None:
        if max_connections < 1 or timeout_s <= 0:
            raise BadArgumentError("max_connections must be at least 1, timeout_s above 0")
        unknown = set(tls).difference(TLS_SETTINGS)
        if unknown:
            raise BadArgumentError(f"unknown setting {min(unknown)!r}")
        if tls and seeds[0].scheme != "rediss":
            raise BadArgumentError(f"{min(tls)} is for rediss+cluster:// URLs")
        self.seeds = tuple(seeds)
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._tls = tls
        self._links = 0
        self._reset()

    def _reset(self) -> None:
        self._nodes: dict[Place, Connections] = {}
        self._known: _Known | None = None
        self._learnt_at = float("-inf")
        self._suspects: dict[Place, float] = {}
        self._why: BaseException | None = None
        self._learning = asyncio.Lock()
        self._inquiring = asyncio.Lock()
        self._durability: Durability | None = None
        self._attempts = 0
        self._failure: UnavailableError | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self.shown}>"

    @property
    def shown(self) -> str:
        """Its URL without the password."""
        seeds = [seed.shown.partition("://")[2].removesuffix("/0") for seed in self.seeds]
        user, at, _ = seeds[0].rpartition("@")
        return f"{self.seeds[0].scheme}+cluster://{user}{at}{','.join(seed.rpartition('@')[2] for seed in seeds)}/"

    @property
    def named(self) -> str:
        """The first of the nodes in it, and whether there are more: for messages."""
        return self.shown.partition(",")[0] + ",…/" if len(self.seeds) > 1 else self.shown

    @property
    def nodes(self) -> Mapping[Place, Connections]:
        """Those that are known, with the connections to them."""
        return self._nodes

    # -------------------------------------------------------------------------------- open and close

    def link(self, slot: int) -> SlotLink:
        """The way to whoever serves a slot; to be closed."""
        if not self._links:
            self._reset()
            open_stores.add(self)
        self._links += 1
        return SlotLink(self, slot)

    def _leave_to_parent(self) -> None:
        """In a forked child: using or closing these connections would harm the parent's."""
        _inherited.append(self._nodes)
        self._links = 0

    async def release(self) -> None:
        """A link was closed; with the last one all connections are."""
        self._links -= 1
        if not self._links:
            open_stores.discard(self)
            nodes, self._nodes = self._nodes, {}
            await asyncio.gather(*[node.aclose() for node in nodes.values()])

    def abandon(self) -> None:
        """Close all connections at once, without a loop."""
        for node in self._nodes.values():
            node.abandon()

    # ------------------------------------------------------------------------------------- exchanges

    async def exchange(self, slot: int, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As :meth:`Connections.exchange`, with the node that serves a slot, following its redirections.

        :raises NotSentError: if it can't be reached, or who it is is not known; nothing was executed
        """
        if self._known is None:
            await self.refresh(timeout_s)
        place = self._master(slot)
        asking = False
        for _ in range(_MAX_REDIRECTS):
            node = self._node(place)
            try:
                answers = await node.exchange([(b"ASKING",), *commands] if asking else commands, timeout_s)
            except (NotSentError, RedisError, OSError, TimeoutError):
                self._suspects[place] = time.monotonic()
                await node.renew()
                raise
            if asking and len(answers) > 1:
                del answers[0]
            told = answers[0]
            if not isinstance(told, AskError):
                return answers
            place = (told.host or place[0], told.port)
            asking = not isinstance(told, MovedError)
            if not asking and self._known is not None:
                self._known.moved[slot] = place
        raise NotSentError from TryAgainError("the nodes don't agree yet on who serves the slot")

    def _master(self, slot: int) -> Place:
        if self._known is not None:
            place = self._known.moved.get(slot)
            if place is not None:
                return place
            for first, last, master, _ in self._known.view.ranges:
                if first <= slot <= last:
                    return master
            raise NotSentError from ClusterDownError("no node serves the slot")
        raise NotSentError from self._why or ClusterDownError("no node was reached yet")

    def master(self, slot: int) -> Place | None:
        """Who serves a slot, as far as is known."""
        try:
            return self._master(slot)
        except NotSentError:
            return None

    def _node(self, place: Place) -> Connections:
        node = self._nodes.get(place)
        if node is None:
            address = next((seed for seed in self.seeds if (seed.host, seed.port) == place), None)
            address = address or replace(self.seeds[0], host=place[0], port=place[1])
            node = self._nodes[place] = Connections(connector(address, self._tls), self._max_connections)
        return node

    # ---------------------------------------------------------------------------- who serves what

    async def refresh(self, within_s: float) -> None:
        """Ask the nodes who serves what, unless that was just done; if none answers, nothing changes."""
        asked_at = time.monotonic()
        async with self._learning:
            if self._learnt_at > asked_at - _FRESH_S:
                return
            view = await self._learn(min(max(within_s, _LEARN_S), self._timeout_s))
            self._learnt_at = time.monotonic()
            if view is not None:
                await self._use(view)

    async def _use(self, view: _View) -> None:
        self._known = _Known(view, {})
        masters = {master for _, _, master, _ in view.ranges}
        members = masters.union(*[replicas for _, _, _, replicas in view.ranges])
        for place, node in list(self._nodes.items()):
            if place not in masters:
                await node.renew()  # it is not needed now; and what became a replica may not remember us well
                if place not in members and node.idle:
                    self._nodes.pop(place, None)

    def _by_promise(self) -> list[Place]:
        """Whom to ask, the likeliest to answer first."""
        found: dict[Place, None] = {}
        if self._known is not None:
            members = [place for _, _, master, others in self._known.view.ranges for place in (master, *others)]
            random.shuffle(members)
            found.update(dict.fromkeys(members))
        found.update(dict.fromkeys((seed.host, seed.port) for seed in self.seeds))
        lately = time.monotonic() - _SUSPECT_S
        return sorted(found, key=lambda place: self._suspects.get(place, 0.0) > lately)

    async def _learn(self, within_s: float) -> _View | None:
        """The view of the first node that sees all slots served and is not behind; else the best that there is."""
        least = self._known.view.epoch if self._known is not None else 0
        places = self._by_promise()
        asked: set[asyncio.Task[_View]] = set()
        best: _View | None = None
        try:
            async with asyncio.timeout(within_s):
                while places or asked:
                    if places:
                        asked.add(asyncio.create_task(self._ask(places.pop(0))))
                    some_time = _STAGGER_S if places else None
                    done, asked = await asyncio.wait(asked, timeout=some_time, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        try:
                            view = task.result()
                        except NotSentError as exc:
                            self._why = exc.__cause__
                        except Exception as exc:
                            self._why = exc
                        else:
                            if best is None or view.rank > best.rank:
                                best = view
                    if best is not None and best.ok and best.epoch >= least:
                        break
        except TimeoutError as exc:
            self._why = exc
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return best

    async def _ask(self, place: Place) -> _View:
        answers = await self._node(place).exchange([(b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"INFO")], self._timeout_s)
        slots, info = answers[0], answers[-1]
        if isinstance(slots, Exception):
            raise slots
        state = dict(re.findall(rb"(\w+):(\S+)", info)) if isinstance(info, bytes) else {}
        ranges = [
            (first, last, _place(master, place), [_place(replica, place) for replica in replicas])
            for first, last, master, *replicas in slots
        ]
        return _View(ranges, state.get(b"cluster_state", b"ok") == b"ok", int(state.get(b"cluster_current_epoch", 0)))

    # ------------------------------------------------------------------------------------- settings

    async def begin(self, find: Callable[[], Awaitable[object]], log: logging.Logger) -> Durability:
        """What the settings of all nodes mean together; the first of the stores does ``find``, which learns of them."""
        attempts = self._attempts
        async with self._inquiring:
            if self._durability is None:
                if self._attempts > attempts and self._failure is not None:
                    raise type(self._failure)(str(self._failure)) from self._failure  # not each waits for itself
                self._attempts += 1
                try:
                    await find()
                except UnavailableError as exc:
                    self._failure = exc
                    raise
                self._durability = await self._inquire(log)
            return self._durability

    async def _inquire(self, log: logging.Logger) -> Durability:
        assert self._known is not None
        members = {place for _, _, master, others in self._known.view.ranges for place in (master, *others)}
        places = sorted(members)
        found = await asyncio.gather(*map(self._inquire_of, places))
        for (host, port), durability in zip(places, found, strict=True):
            durability.log(log, f"{self.shown}: node {host}:{port}")
        return _together(found)

    async def _inquire_of(self, place: Place) -> Durability:
        async def ask(commands: Sequence[Command]) -> Sequence[Any] | None:
            with suppress(NotSentError, RedisError, OSError, TimeoutError):
                return await self._node(place).exchange(commands, self._timeout_s)
            return None

        return await inquire(ask)


class SlotLink:
    """The way to whichever node serves a slot: what a store in a cluster sends by."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot
        self._closed = False

    async def exchange(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As :meth:`Cluster.exchange`."""
        return await self._cluster.exchange(self._slot, commands, timeout_s)

    async def renew(self, within_s: float) -> None:
        """Learn who serves the slot now."""
        await self._cluster.refresh(within_s)

    async def aclose(self) -> None:
        """Close; the last link closes the connections."""
        if not self._closed:
            self._closed = True
            await self._cluster.release()

    def abandon(self) -> None:
        """Close all connections at once, without a loop."""
        self._cluster.abandon()


def _place(node: Sequence[Any], asked: Place) -> Place:
    """Of an entry of ``CLUSTER SLOTS``; without a host it is that of the node which was asked."""
    host = node[0].decode() if node[0] else ""
    return (host if host not in ("", "?") else asked[0], int(node[1]))


_STRONGEST = (Persistence.ALWAYS, Persistence.EVERY_SECOND, Persistence.BY_SYSTEM, Persistence.SNAPSHOTS)


def _together(found: Sequence[Durability]) -> Durability:
    """What holds of all: the weakest."""
    known = [each.persistence for each in found if each.persistence in _STRONGEST]
    persistence = max(known, key=_STRONGEST.index) if len(known) == len(found) > 0 else Persistence.UNKNOWN
    evicting = [each.eviction for each in found if each.may_evict]
    told = [each.eviction for each in found]
    return Durability(persistence, evicting[0] if evicting else None if None in told else "noeviction")


_inherited: list[Any] = []  # never closed: that would harm the process that opened them
