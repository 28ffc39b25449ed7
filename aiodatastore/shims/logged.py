"""A line in the log for every operation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar, Final, TypeVar

from aiodatastore.adapters.base import Adapter, AggregateResult, Commit, Delete, Lookup, Outcome, Page, Put, written_key
from aiodatastore.adapters.registry import parse_bool
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.key import Key
from aiodatastore.query import And, Filter, Or, PropertyFilter, Query
from aiodatastore.shims.around import Around, Call

__all__ = ["Logged"]

T = TypeVar("T")

_SHOWN: Final = 5
"""Keys in one line; of more, their number is enough."""


def _parse_level(text: str) -> int:
    found = logging.getLevelNamesMapping().get(text.upper())
    if found is None:
        raise ValueError("expected DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return found


class Logged(Around):
    """Logs every operation: its name and kind, how much there was of what, which keys, and how long it took.

    >>> import asyncio, logging, sys
    >>> from aiodatastore import Datastore, Entity, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(Logged(adapter_from_url("memory://"), redact=True)) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
    ...         await ds.query("Person").filter("born", "<", 1900).fetch(10)
    >>> asyncio.run(main())  # INFO commit Person: put Person=1, committed (0.1 ms) [/Person:…]
    ...                      # INFO query Person born<…: 1 results (0.2 ms) [/Person:…]

    ``logger`` is a name or a ``logging.Logger``, ``level`` that of lines (errors: WARNING at least).
    A record has the attributes ``operation``, ``kind`` and ``seconds``, too.

    Values of properties are not logged, neither of entities nor of filters, unless ``values`` is true; nor are texts of
    errors, which may have some. Keys are, and often name people: ``redact=True`` shows their kinds alone, a function of
    a key what it returns.

    While the logger leaves out the level, an operation costs a look at it. Reads stay at hand (``INLINE_READS``).

    :raises BadArgumentError: an unknown level, a logger that is none
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "logger": str,
        "level": _parse_level,
        "redact": parse_bool,
        "values": parse_bool,
    }

    def __init__(
        self,
        child: Adapter,
        *,
        logger: str | logging.Logger = "aiodatastore.operations",
        level: int | str = logging.INFO,
        redact: bool | Callable[[Key], str] = False,
        values: bool = False,
    ) -> None:
        super().__init__(child)
        if not isinstance(logger, str | logging.Logger):
            raise BadArgumentError(f"logger: expected a name or a logging.Logger, got {logger!r:.80}")
        if type(redact) is not bool and not callable(redact):
            raise BadArgumentError(f"redact: expected True, False or a function of a key, got {redact!r:.80}")
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._level = _level(level)
        self._redact = redact
        self._values = bool(values)
        self.__dict__["lookup_now"] = self._logging_lookup_now()  # a closure, as it is called for each entity

    @property
    def settings(self) -> Mapping[str, object]:
        """Logger, level and what is shown."""
        redact = self._redact if type(self._redact) is bool else getattr(self._redact, "__name__", "function")
        return {
            "logger": self._logger.name,
            "level": logging.getLevelName(self._level),
            "redact": redact,
            "values": self._values,
        }

    def _logging_lookup_now(self) -> Callable[[Sequence[Key]], list[Entity | None] | None]:
        inner = self.child.lookup_now
        enabled = self._logger.isEnabledFor
        level = self._level

        def lookup_now(keys: Sequence[Key]) -> list[Entity | None] | None:
            if not enabled(level):
                return inner(keys)
            start = perf_counter()
            found = inner(keys)
            if found is not None:
                call = Call("lookup", keys=keys)
                self._log(level, call, f"{_found(found)}, at hand", perf_counter() - start, self._entities(found))
            return found

        return lookup_now

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, and log it."""
        if not self._logger.isEnabledFor(self._level):
            return await work()
        start = perf_counter()
        try:
            answer = await work()
        except BaseException as exc:
            level = max(self._level, logging.WARNING) if isinstance(exc, Exception) else self._level
            self._log(level, call, type(exc).__name__, perf_counter() - start)
            raise
        seconds = perf_counter() - start
        self._log(self._level, call, _told(call, answer), seconds, self._shown_entities(call, answer))
        return answer

    # ----------------------------------------------------------------------------------------- lines

    def _log(self, level: int, call: Call, told: str, seconds: float, more: str = "") -> None:
        kind = call.kind
        about = self._query(call.query) if call.query is not None else kind
        self._logger.log(
            level,
            "%s%s%s: %s (%.1f ms)%s%s",
            call.operation,
            " " if about else "",
            about,
            told,
            1000 * seconds,
            self._keys(call),
            more,
            extra={"operation": call.operation, "kind": kind, "seconds": seconds},
        )

    def _key(self, key: Key) -> str:
        if self._redact is False:
            return str(key)
        if self._redact is True:
            return "".join(f"/{kind}:…" for kind, _ in key.pairs)
        return self._redact(key)

    def _keys(self, call: Call) -> str:
        keys = list(call.keys) or [written_key(write) for commit in call.commits for write in commit.writes]
        if not keys:
            return ""
        shown = ", ".join(map(self._key, keys[:_SHOWN]))
        return f" [{shown}{', …' if len(keys) > _SHOWN else ''}]"

    def _entities(self, entities: Iterable[Any]) -> str:
        if not self._values:
            return ""
        shown = [dict(entity) for entity in entities if isinstance(entity, Entity)]
        return "".join(f" {properties!r:.1000}" for properties in shown[:_SHOWN])

    def _shown_entities(self, call: Call, answer: Any) -> str:
        if isinstance(answer, Lookup):
            return self._entities(answer.entities)
        if isinstance(answer, Page):
            return self._entities(answer.results)
        puts = (write.entity for commit in call.commits for write in commit.writes if isinstance(write, Put))
        return self._entities(puts)

    def _query(self, query: Query) -> str:
        if query.subqueries:
            return " ∪ ".join(map(self._query, query.subqueries))
        parts = [query.kind or "*"]
        if query.ancestor is not None:
            parts.append(f"under {self._key(query.ancestor)}")
        parts += [self._filter(each) for each in query.filters]
        parts += [f"order {'-' if order.descending else ''}{order.name}" for order in query.orders]
        parts += [f"project {name}" for name in query.projection]
        if query.only_keys:
            parts.append("keys")
        parts += [] if query.max_results is None else [f"limit {query.max_results}"]
        parts += [f"offset {query.skip}"] if query.skip else []
        return " ".join(parts)

    def _filter(self, node: Filter) -> str:
        if isinstance(node, And | Or):
            between = " and " if isinstance(node, And) else " or "
            return f"({between.join(map(self._filter, node.filters))})"
        assert isinstance(node, PropertyFilter)
        value = f"{node.value!r:.200}" if self._values else "…"
        operator = f" {node.op.value} " if node.op.value.isidentifier() or " " in node.op.value else node.op.value
        return f"{node.name}{operator}{value}"


def _level(given: int | str) -> int:
    if type(given) is int:
        return given
    found = logging.getLevelNamesMapping().get(given.upper()) if isinstance(given, str) else None
    if found is None:
        raise BadArgumentError(f"level: expected a level of logging such as DEBUG, got {given!r:.80}")
    return found


def _found(entities: Sequence[Entity | None]) -> str:
    return f"{sum(entity is not None for entity in entities)} of {len(entities)} found"


def _told(call: Call, answer: Any) -> str:
    """What came of it, in numbers."""
    if isinstance(answer, Lookup):
        return _found(answer.entities)
    if isinstance(answer, Page):
        return f"{len(answer.results)} results{', more follow' if answer.more else ''}"
    if isinstance(answer, AggregateResult):
        return f"{len(answer.values)} values"
    if call.operation == "commit":
        return "; ".join(_commit(commit, outcome) for commit, outcome in zip(call.commits, answer, strict=True))
    if isinstance(answer, Outcome):
        return "; ".join(_commit(commit, answer) for commit in call.commits) or "resolved"
    if call.operation in ("allocate_ids", "reserve_ids"):
        return f"{answer[1] - answer[0] + 1} ids"
    if isinstance(answer, list):
        return f"{len(answer)} lines" if call.operation == "check" else f"{len(answer)} found"
    return "done"


def _commit(commit: Commit, outcome: Outcome) -> str:
    puts = Counter(write.entity.key.kind for write in commit.writes if isinstance(write, Put))
    deletes = Counter(write.key.kind for write in commit.writes if isinstance(write, Delete))
    parts = [f"{verb} {kind}={n}" for verb, found in (("put", puts), ("delete", deletes)) for kind, n in found.items()]
    parts += [f"{len(commit.checks)} checks"] if commit.checks else []
    parts += [f"{len(commit.spans)} spans"] if commit.spans else []
    if outcome.error is not None:
        fate = type(outcome.error).__name__
    elif outcome.committed:
        fate = "committed"
    else:
        fate = f"conflict ({len(outcome.conflicts)} keys, {outcome.stale_spans} spans)"
    return ", ".join([*parts, fate])
