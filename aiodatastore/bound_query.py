"""Queries that know their datastore: what ``Datastore.query`` returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiodatastore.adapters.base import Aggregation, Page, ReadPolicy, ResultStream, RunOptions
from aiodatastore.arguments import check_timeout
from aiodatastore.cursor import Cursor
from aiodatastore.errors import BadArgumentError
from aiodatastore.query import Query
from aiodatastore.txn import Transaction, transaction_of, within

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore
    from aiodatastore.indexing.explain import Explanation
    from aiodatastore.key import Key
    from aiodatastore.overlay import TransactionStream

__all__ = ["BoundQuery", "QueryPage", "QueryResults"]

COUNT = Aggregation("count")


class QueryPage:
    """Some results of a query, and how to go on.

    ``entities`` are its results (keys, if the query asks for keys only). ``cursor`` is where the next page
    starts; ``more`` tells whether anything was there when this page was read.
    """

    __slots__ = ("_cursor", "_place", "_query", "entities", "more")

    def __init__(self, entities: list[Any], more: bool, query: Query, place: bytes) -> None:
        self.entities = entities
        self.more = more
        self._query = query
        self._place = place
        self._cursor: Cursor | None = None

    def __repr__(self) -> str:
        return f"QueryPage({self.entities!r}, {self.cursor!r}, more={self.more!r})"

    @property
    def cursor(self) -> Cursor:
        """The place after the last of them."""
        if self._cursor is None:
            self._cursor = _cursor_at(self._query, self._place)
        return self._cursor


def _cursor_at(query: Query, place: bytes) -> Cursor:
    """The cursor of a position in a query's results; empty: before the first."""
    from aiodatastore.indexing.normal import cursor_at

    start = query.start_cursor
    if start is not None and place == start.position:
        return start
    return cursor_at(query, place) if place else Cursor(b"", query.shape)


class QueryResults(AsyncIterator[Any]):
    """A running query: iterate over it once, with ``async for``.

    Reads a page at a time, so a million results take the memory of a page. Each page is of one moment; outside a
    transaction, the next page may be of a later one.
    """

    __slots__ = (
        "_datastore",
        "_done",
        "_next",
        "_options",
        "_page",
        "_place",
        "_query",
        "_skipped",
        "_stream",
        "_timeout",
        "_transaction",
    )

    def __init__(
        self,
        datastore: Datastore,
        query: Query,
        transaction: Transaction | None,
        options: RunOptions,
        timeout: float | None,
    ) -> None:
        self._datastore = datastore
        self._query = query
        self._transaction = transaction
        self._options = options
        self._timeout = timeout
        self._stream: ResultStream | TransactionStream | None = None
        self._page: Page = Page([], None, True, 0)
        self._next = 0
        self._place = b"" if query.start_cursor is None else query.start_cursor.position
        self._skipped = 0
        self._done = False

    def __aiter__(self) -> QueryResults:
        return self

    async def __anext__(self) -> Any:
        if self._next >= len(self._page.results):
            if self._done:
                raise StopAsyncIteration
            await self.fetch_page()
            if not self._page.results:
                raise StopAsyncIteration
        result = self._page.results[self._next]
        self._next += 1
        return result

    async def _pull(self, count: int) -> list[Any]:
        """Some of the next results, at most ``count``: those read already, else the next page's; empty at the end."""
        if self._next >= len(self._page.results):
            if self._done:
                return []
            await self.fetch_page()
        pulled = self._page.results[self._next : self._next + count]
        self._next += len(pulled)
        return pulled

    async def fetch_page(self) -> list[Any]:
        """The results of the next page that has any, not yet pulled; empty at the end."""
        if self._page.end is not None:
            self._place = self._page.end
        self._next = 0
        while True:
            timeout = self._timeout
            page = self._page = await (self._next_page() if timeout is None else within(timeout, self._next_page()))
            self._skipped += page.skipped
            self._done = not page.more
            if page.results or self._done:
                return page.results
            if page.end is not None:
                self._place = page.end

    async def _fetch_rest(self) -> list[Any]:
        """All results of the pages that are left."""
        found = await self.fetch_page()
        while not self._done:
            found += await self.fetch_page()
        return found

    async def _next_page(self) -> Page:
        if self._done:
            return Page([], self._page.end, False, 0)
        channel = self._datastore._open_channel()
        await channel.breathe_if_due()
        if self._stream is None:
            if self._transaction is None:
                self._stream = channel.adapter.run(self._query, self._options)
            else:
                from aiodatastore.overlay import TransactionStream

                self._stream = TransactionStream(self._transaction, self._query, self._options)
        return await self._stream.next_page()

    @property
    def skipped(self) -> int:
        """How many results the query's offset has passed over so far."""
        return self._skipped

    @property
    def cursor(self) -> Cursor:
        """The place after the last result that was pulled; the query's start before the first."""
        return _cursor_at(self._query, self._reached())

    def _reached(self) -> bytes:
        """The position of the last result that was pulled."""
        if self._next and self._page.positions is not None:
            return self._page.positions[self._next - 1]
        if self._done and self._page.end is not None and not self._page.results:
            return self._page.end  # everything was passed over by the offset
        return self._place


class BoundQuery:
    """A query of a datastore: every method of :class:`~aiodatastore.query.Query`, and those that run it.

    Immutable: ``filter``, ``order`` and the like each give a new one. It runs in the current transaction if there
    is one when it is run.

    >>> adults = ds.query("Person").filter("age >=", 21).order("-age")      # doctest: +SKIP
    >>> async for person in adults:                                         # doctest: +SKIP
    ...     print(person["name"])
    """

    __slots__ = ("_datastore", "_transaction", "query")

    def __init__(self, datastore: Datastore, query: Query, transaction: Transaction | None = None) -> None:
        self._datastore = datastore
        self._transaction = transaction
        self.query = query
        """The query itself."""

    def __repr__(self) -> str:
        return f"<BoundQuery {self.query!r} of {self._datastore!r}>"

    def _with(self, query: Query) -> BoundQuery:
        return BoundQuery(self._datastore, query, self._transaction)

    def _within(self, transaction: Transaction) -> BoundQuery:
        return BoundQuery(self._datastore, self.query, transaction)

    # ------------------------------------------------------------------------------ another query of it

    def filter(self, /, *condition: Any) -> BoundQuery:
        """As :meth:`Query.filter <aiodatastore.query.Query.filter>`."""
        return self._with(self.query.filter(*condition))

    def under(self, ancestor: Any) -> BoundQuery:
        """As :meth:`Query.under <aiodatastore.query.Query.under>`."""
        return self._with(self.query.under(ancestor))

    def order(self, *orders: Any) -> BoundQuery:
        """As :meth:`Query.order <aiodatastore.query.Query.order>`."""
        return self._with(self.query.order(*orders))

    def reversed(self) -> BoundQuery:
        """As :meth:`Query.reversed <aiodatastore.query.Query.reversed>`."""
        return self._with(self.query.reversed())

    def project(self, *names: str) -> BoundQuery:
        """As :meth:`Query.project <aiodatastore.query.Query.project>`."""
        return self._with(self.query.project(*names))

    def distinct_on(self, *names: str) -> BoundQuery:
        """As :meth:`Query.distinct_on <aiodatastore.query.Query.distinct_on>`."""
        return self._with(self.query.distinct_on(*names))

    def distinct(self) -> BoundQuery:
        """As :meth:`Query.distinct <aiodatastore.query.Query.distinct>`."""
        return self._with(self.query.distinct())

    def keys_only(self) -> BoundQuery:
        """As :meth:`Query.keys_only <aiodatastore.query.Query.keys_only>`."""
        return self._with(self.query.keys_only())

    def limit(self, count: int | None) -> BoundQuery:
        """As :meth:`Query.limit <aiodatastore.query.Query.limit>`."""
        return self._with(self.query.limit(count))

    def offset(self, count: int) -> BoundQuery:
        """As :meth:`Query.offset <aiodatastore.query.Query.offset>`."""
        return self._with(self.query.offset(count))

    def start(self, cursor: Cursor | None) -> BoundQuery:
        """As :meth:`Query.start <aiodatastore.query.Query.start>`."""
        return self._with(self.query.start(cursor))

    def end(self, cursor: Cursor | None) -> BoundQuery:
        """As :meth:`Query.end <aiodatastore.query.Query.end>`."""
        return self._with(self.query.end(cursor))

    # ---------------------------------------------------------------------------------------- running it

    def __aiter__(self) -> QueryResults:
        return self.run()

    def run(
        self,
        *,
        page_size: int | None = None,
        timeout: float | None = None,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> QueryResults:
        """Results one by one, with their cursor; nothing is read before the first.

        ``page_size``: results that are read at once (the datastore's, or the adapter's choice, if None).
        ``timeout``: seconds that a page may take.

        :raises BadRequestError, BadQueryError: if the finished query can't be run
        :raises NeedIndexError: if indexes are required and none serves it (from the first page)
        :raises DeadlineExceededError: from a page that takes too long
        """
        return self._results(self.query, True, page_size=page_size, timeout=timeout, read_policy=read_policy)

    def _results(
        self,
        query: Query,
        positions: bool,
        *,
        page_size: int | None = None,
        timeout: float | None = None,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> QueryResults:
        """What :meth:`run` gives; without ``positions`` it has no cursors."""
        datastore = self._datastore
        if timeout is None:
            timeout = datastore.timeout
        else:
            check_timeout(timeout)
        if page_size is None:
            page_size = datastore.page_size
        elif type(page_size) is not int or page_size < 1:
            raise BadArgumentError(f"page_size: expected an int, 1 or more, or None, got {page_size!r:.80}")
        if type(read_policy) is not ReadPolicy:
            raise BadArgumentError(f"read_policy: expected a ReadPolicy, got {read_policy!r:.80}")
        query.check()
        return QueryResults(datastore, query, self._current(), _options(positions, page_size, read_policy), timeout)

    async def fetch(self, limit: int | None = None, **options: Any) -> list[Any]:
        """All results, or the first ``limit``, as a list. ``options`` are those of :meth:`run`."""
        return await self._results(self._limited(limit), False, **options)._fetch_rest()

    async def first(self, **options: Any) -> Any:
        """The first result, or None."""
        found = await self.fetch(1, **options)
        return found[0] if found else None

    async def keys(self, limit: int | None = None, **options: Any) -> list[Key]:
        """The keys of all results, or of the first ``limit``."""
        return await self.keys_only().fetch(limit, **options)

    async def page(self, size: int, start: Cursor | None = None, **options: Any) -> QueryPage:
        """``size`` results from the start or from a cursor, and the cursor of the next page.

        The query's own offset counts for the page without ``start``; its limit bounds each page.

        :raises BadArgumentError: if ``size`` is no int of 1 or more
        :raises BadCursorError: if ``start`` was made by another query
        """
        if type(size) is not int or size < 1:
            raise BadArgumentError(f"size: expected an int, 1 or more, got {size!r:.80}")
        query = self.query if start is None else self.query.start(start).offset(0)
        wanted = query.max_results
        beyond = wanted is None or wanted > size
        if beyond:
            query = query.limit(size + 1)  # one more tells whether there is more
        results = self._results(query, True, page_size=options.pop("page_size", None) or size + 1, **options)
        found: list[Any] = []
        while len(found) < size:
            found_page = await results._pull(size - len(found))
            if not found_page:
                break
            found += found_page
        more = beyond and len(found) == size
        place = results._reached()
        if more:
            more = bool(await results._pull(1))
        return QueryPage(found, more, query, place)

    async def count(self, limit: int | None = None, *, timeout: float | None = None) -> int:
        """How many results there are, at most ``limit``; on index rows alone where the plan allows."""
        (value,) = await self._aggregate((COUNT,), limit, timeout)
        return int(value or 0)

    async def sum(self, name: str, *, timeout: float | None = None) -> int | float:
        """The sum of a property over all results that have a number there; 0 if none has."""
        (value,) = await self._aggregate((Aggregation("sum", name),), None, timeout)
        return value or 0

    async def avg(self, name: str, *, timeout: float | None = None) -> float | None:
        """The mean of a property over all results that have a number there; None if none has."""
        (value,) = await self._aggregate((Aggregation("avg", name),), None, timeout)
        return value

    async def aggregate(
        self, *, timeout: float | None = None, **wanted: Aggregation | tuple[str, str] | str
    ) -> dict[str, int | float | None]:
        """Several aggregates at once, under names of your own, all of one moment.

        Each is ``"count"``, or a pair like ``("sum", "population")`` or ``("avg", "population")``.

        >>> await cities.aggregate(number="count", people=("sum", "population"))    # doctest: +SKIP
        {'number': 3, 'people': 12_000_000}

        :raises BadArgumentError: if something else is asked for
        """
        aggregations = [_aggregation(each) for each in wanted.values()]
        if not aggregations:
            return {}
        values = await self._aggregate(aggregations, None, timeout)
        return dict(zip(wanted, values, strict=True))

    async def explain(self, analyze: bool = False) -> Explanation:
        """How the query runs: with ``analyze`` it is run to its end, and each step says what it read.

        Explains the query as it runs outside a transaction.
        """
        self.query.check()
        channel = self._datastore._open_channel()
        stream = channel.adapter.run(self.query, RunOptions(page_size=self._datastore.page_size))
        more = analyze
        while more:
            await channel.breathe_if_due()
            more = (await stream.next_page()).more
        return stream.explain()

    def _current(self) -> Transaction | None:
        if self._transaction is not None:
            return self._transaction
        return transaction_of(self._datastore)

    def _limited(self, limit: int | None) -> Query:
        query = self.query
        if limit is None:
            return query
        limited = query.limit(limit)
        return limited if query.max_results is None or limit < query.max_results else query

    async def _aggregate(
        self, aggregations: Sequence[Aggregation], limit: int | None, timeout: float | None
    ) -> list[int | float | None]:
        check_timeout(timeout)
        datastore = self._datastore
        query = self._limited(limit)
        query.check()
        transaction = self._current()
        if transaction is not None:
            from aiodatastore.overlay import aggregate

            return await within(
                datastore.timeout if timeout is None else timeout, aggregate(transaction, query, aggregations)
            )
        channel = datastore._open_channel()
        await channel.breathe_if_due()
        found = await within(
            datastore.timeout if timeout is None else timeout, channel.adapter.aggregate(query, aggregations)
        )
        return found.values


@lru_cache(maxsize=64)
def _options(positions: bool, page_size: int | None, read_policy: ReadPolicy) -> RunOptions:
    """The same again is had for less than it can be made for."""
    return RunOptions(positions=positions, page_size=page_size, read_policy=read_policy)


def _aggregation(wanted: Any) -> Aggregation:
    if wanted == "count":
        return COUNT
    if isinstance(wanted, tuple) and len(wanted) == 2 and wanted[0] in ("sum", "avg"):
        return Aggregation(wanted[0], wanted[1])
    if isinstance(wanted, Aggregation) and wanted.function == "count":
        return wanted
    raise BadArgumentError(f'an aggregate is "count", ("sum", property) or ("avg", property), got {wanted!r:.80}')
