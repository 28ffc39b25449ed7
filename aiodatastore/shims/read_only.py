"""A store that is looked at and not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from aiodatastore.adapters.base import Commit, Outcome
from aiodatastore.errors import StoreReadOnlyError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.key import Key
from aiodatastore.shims.base import Shim

__all__ = ["ReadOnly"]


class ReadOnly(Shim):
    """Reads and read-only transactions pass; whatever would change something raises ``StoreReadOnlyError``.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, StoreReadOnlyError
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(ReadOnly(adapter_from_url("memory://"))) as ds:
    ...         try:
    ...             await ds.put(Entity("Task"))
    ...         except StoreReadOnlyError as exc:
    ...             return str(exc)
    >>> asyncio.run(main())
    'memory:// is read-only here: ids are not allocated'

    A commit that only verifies what was read passes, as read-only transactions end with one. Commits beside one that is
    refused are not touched. What the child does of its own accord is its affair: opening makes what is missing, so give
    a child that should not be touched at all its own ``read_only`` setting, where it has one. It costs nothing a read.
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {}

    def _refuse(self, what: str) -> NoReturn:
        raise self._error(what)

    def _error(self, what: str) -> StoreReadOnlyError:
        error = StoreReadOnlyError(f"{self.url} is read-only here: {what}")
        error.nothing_written = True
        return error

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on what has no writes.

        :raises StoreReadOnlyError: as each other commit's error
        """
        passing = [commit for commit in batch if not commit.writes]
        found = iter(await self.child.commit(passing) if passing else [])
        return [
            Outcome(None, error=self._error("nothing is written")) if commit.writes else next(found) for commit in batch
        ]

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Hand on what has no writes.

        :raises StoreReadOnlyError: if it has
        """
        if commit.writes:
            self._refuse("nothing is written")
        return await self.child.prepare(commit, name)

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """Refused.

        :raises StoreReadOnlyError: always
        """
        self._refuse("ids are not allocated")

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """Refused.

        :raises StoreReadOnlyError: always
        """
        self._refuse("ids are not reserved")

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """Refused.

        :raises StoreReadOnlyError: always
        """
        self._refuse("indexes are not made")

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """Refused.

        :raises StoreReadOnlyError: always
        """
        self._refuse("indexes are not built")

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """Refused.

        :raises StoreReadOnlyError: always
        """
        self._refuse("indexes are not deleted")
