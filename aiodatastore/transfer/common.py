"""What export, import, copy and compare share: what is selected, how it is read, how progress is told and kept."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiodatastore.adapters.base import Adapter, Aggregation, RunOptions
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, UnsupportedError
from aiodatastore.jsonl import MARK, VERSION
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability

__all__ = [
    "EVERYTHING",
    "MAX_DIFFERENCES",
    "PAGE_BYTES",
    "PAGE_ENTITIES",
    "SAVE_INTERVAL_S",
    "Difference",
    "ProgressCallback",
    "Reader",
    "Saved",
    "Selection",
    "Store",
    "TransferProgress",
    "TransferReport",
    "adapter_of",
]

PAGE_ENTITIES = 500
"""Entities that are read at once, at most."""
PAGE_BYTES = 4 << 20
"""About how large a page should be; where entities are large, pages have fewer."""
MAX_DIFFERENCES = 100
"""Differences that a report names; all are counted."""
SAVE_INTERVAL_S = 1.0
"""Seconds between records of the progress."""
_FIRST_PAGE = 64
_COUNT = [Aggregation("count")]


class _Store(Protocol):
    """A ``Datastore``: only its adapter is used."""

    @property
    def adapter(self) -> Adapter: ...


Store = Adapter | _Store


@dataclass(frozen=True, slots=True)
class Selection:
    """What to export, copy or compare: everything by default.

    ``kinds``: only these, whatever their ancestors. ``namespace`` / ``project``: only this partition's ("" is
    the default one), None means all.
    """

    kinds: tuple[str, ...] = ()
    namespace: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(sorted(set(self.kinds))))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for files."""
        return {"kinds": list(self.kinds), "namespace": self.namespace, "project": self.project}


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer has come; None where that isn't known.

    ``phase`` is ``export``, ``import``, ``copy``, ``compare`` or (of indexes, which have no numbers) ``check``.
    ``entities`` counts those done in this run and before it was resumed, ``resumed`` the latter.
    """

    phase: str
    entities: int
    total_entities: int | None = None
    done_bytes: int = 0
    total_bytes: int | None = None
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose entity is not the same on both sides.

    ``problem``: ``missing`` (the target lacks it), ``different``, or ``extra`` (the source lacks it).
    """

    key: Key
    problem: str


@dataclass(slots=True)
class TransferReport:
    """What a transfer did.

    ``entities`` were written by this run, ``resumed`` by those before it. ``truncated``: the imported file
    began as an export but lacks its end.

    Of a copy that was verified: ``verified`` entities of the source were compared, of which ``different`` are missing
    or different in the target; ``differences`` names at most 100 of them. ``problems`` are disagreements of
    indexes, on either side. ``extra`` entities the target has besides: those were not copied, so they are none.
    ``seconds`` are those of the transfer, ``verify_seconds`` of the comparison after it.
    """

    entities: int = 0
    resumed: int = 0
    done_bytes: int = 0
    seconds: float = 0.0
    truncated: bool = False
    indexes: int = 0
    verified: int = 0
    different: int = 0
    extra: int = 0
    verify_seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


ProgressCallback = Callable[[TransferProgress], None]


def adapter_of(store: Store) -> Adapter:
    """The adapter itself, or a datastore's."""
    return store if isinstance(store, Adapter) else store.adapter


class Reader:
    """Reads a selection by partition, (selected) kind and key."""

    def __init__(self, adapter: Adapter, selection: Selection, page_size: int) -> None:
        self.adapter = adapter
        self.selection = selection
        self.page_size = page_size
        self.partitions: list[tuple[str, str]] = []
        self.total: int | None = None

    async def open(self, *, count: bool) -> None:
        """Learn which partitions there are, and (on indexes alone, where the adapter can) how many entities.

        :raises UnsupportedError: if the store can't be read in the order of its keys, in which all this works
        """
        if Capability.KEY_ORDER not in self.adapter.capabilities:
            raise UnsupportedError(
                f"{self.adapter.url} does not give entities in the order of their keys: export, copy and compare what "
                "is below the shim that changes keys",
                capability=Capability.KEY_ORDER,
            )
        wanted = self.selection
        self.partitions = [
            (project, namespace)
            for project, namespace in await self.adapter.partitions()
            if wanted.project in (None, project) and wanted.namespace in (None, namespace)
        ]
        if count:
            found = [await self.adapter.aggregate(query, _COUNT) for query in self._queries(None)]
            self.total = sum(int(result.values[0] or 0) for result in found)

    async def pages(self, after: Key | None = None) -> AsyncGenerator[list[Entity]]:
        """Pages of entities, beginning with what follows ``after``; fewer where they are large."""
        size = min(self.page_size, _FIRST_PAGE)
        for query in self._queries(after):
            stream = self.adapter.run(query, RunOptions(page_size=size))
            while True:
                page = await stream.next_page()
                if page.results:
                    yield page.results
                if not page.more:
                    break
                fitting = self._fitting(size, page.results)
                if fitting != size:
                    size = fitting
                    rest = query if not page.results else self._behind(query, page.results[-1].key)
                    stream = self.adapter.run(rest, RunOptions(page_size=size))

    def _fitting(self, size: int, page: Sequence[Entity]) -> int:
        """How many entities the next page should have, after a page of ``size``."""
        if not page:
            return size
        wanted = len(page) * PAGE_BYTES // (1 + sum(map(_rough_size, page)))
        if size // 2 <= wanted <= size:
            return size
        return max(1, min(wanted, 4 * size, self.page_size))

    @staticmethod
    def _behind(query: Query, key: Key) -> Query:
        return Query(query.kind, namespace=query.namespace, project=query.project_id).filter("__key__", ">", key)

    def _queries(self, after: Key | None) -> Iterator[Query]:
        for project, namespace in self.partitions:
            for kind in self.selection.kinds or (None,):
                query = Query(kind, namespace=namespace, project=project)
                if after is not None:
                    here = project, namespace, kind
                    at = after.project, after.namespace, kind and after.kind
                    if here < at:
                        continue
                    if here == at:
                        query = self._behind(query, after)
                yield query


def _rough_size(value: Any) -> int:
    """Bytes of an entity or a value, as good as can be said quickly."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value)
    if isinstance(value, dict):
        return 50 + sum(_rough_size(each) for each in value.values())
    if kind is list:
        return 8 + sum(map(_rough_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


class Saved:
    """The progress file of a transfer; without a path it does nothing."""

    def __init__(self, path: str | os.PathLike[str] | None, what: str, of: dict[str, Any] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.what = what
        self.head = {MARK: VERSION, "progress": what, **(of or {})}

    def load(self) -> dict[str, Any] | None:
        """The recorded mark; None if nothing was recorded."""
        assert self.path is not None
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            raise BadArgumentError(f"nothing to resume: there is no {self.path}") from None
        except ValueError as exc:
            raise CorruptDataError(f"{self.path} is no progress file: {exc}") from exc
        if not isinstance(content, dict) or {k: content.get(k) for k in self.head} != self.head:
            raise BadArgumentError(f"{self.path} is the progress of something else")
        mark = content.get("mark")
        return mark if isinstance(mark, dict) else None

    def save(self, mark: dict[str, Any] | None) -> None:
        """Record a mark so that a crash leaves the old record or the new one."""
        if self.path is None:
            return
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w") as file:
            json.dump({**self.head, "mark": mark}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def remove(self) -> None:
        """Forget the progress: all is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
