"""What is measured beside PostgreSQL, by hand: *asyncpg* with a pool of ten connections.

``pool.fetchrow`` and ``async with pool.acquire()`` as the documentation shows; asyncpg prepares each statement once a
connection. When a connection goes back to the pool, asyncpg resets it, which is one more round trip;
:class:`AsyncPGLean` switches that off (``reset=`` of the pool), which is safe as nothing here leaves a setting behind.
Transactions are READ COMMITTED with ``SELECT ... FOR UPDATE``, which suffices for rows that are known beforehand;
:class:`AsyncPGSerializable` has what ours gives, SERIALIZABLE, and repeats what the server refuses.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from aiodatastore.bench.data import Mix, item, person, scrambled, ycsb_record
from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import (
    Shape,
    bank_problems,
    draw_categories,
    draw_distinct,
    draw_numbers,
    draw_prices,
    draw_transfers,
    each_batch,
)
from benchmarks.sides import Draw, Place, Side

if TYPE_CHECKING:
    import asyncpg

__all__ = ["POOL", "AsyncPG", "AsyncPGLean", "AsyncPGSerializable"]

POOL = 10
OPENING_BALANCE = 1000

_TABLES: dict[str, tuple[str, ...]] = {
    "people": (
        "CREATE TABLE person (id bigint PRIMARY KEY, name text NOT NULL, age bigint NOT NULL,"
        " score double precision NOT NULL)",
        "CREATE INDEX ON person (name)",
        "CREATE INDEX ON person (age)",
        "CREATE INDEX ON person (score)",
    ),
    "items": (
        "CREATE TABLE item (id bigint PRIMARY KEY, category text NOT NULL, brand text NOT NULL,"
        " price bigint NOT NULL, rating double precision NOT NULL, title text NOT NULL, stock bigint NOT NULL)",
        "CREATE INDEX ON item (category, price DESC)",
        "CREATE INDEX ON item (brand)",
        "CREATE INDEX ON item (price)",
        "CREATE INDEX ON item (rating)",
    ),
    "records": (
        # YCSB orders by bytes, and so does our store
        'CREATE TABLE record (id text COLLATE "C" PRIMARY KEY, '
        + ", ".join(f"{name} text NOT NULL" for name in ycsb_record(0))
        + ")",
    ),
    "accounts": ("CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL)",),
}
_TABLE_OF = {"people": "person", "items": "item", "records": "record", "accounts": "account"}

TOP = "SELECT * FROM item WHERE category = $1 ORDER BY price DESC LIMIT 20"
TOP_BELOW = "SELECT * FROM item WHERE category = $1 AND price < $2 ORDER BY price DESC LIMIT 20"


def _rows(data: str, numbers: Iterable[int]) -> Iterable[tuple[Any, ...]]:
    if data == "people":
        return ((number, *person(number).values()) for number in numbers)
    if data == "items":
        return ((number, *item(number).values()) for number in numbers)
    if data == "records":
        return ((_record_key(number), *ycsb_record(number).values()) for number in numbers)
    return ((number, OPENING_BALANCE) for number in numbers)


def _record_key(number: int) -> str:
    return f"user{scrambled(number):020d}"


def _numbered(sql: str) -> str:
    """A statement with ``?`` in PostgreSQL's notation."""
    parts = sql.split("?")
    return parts[0] + "".join(f"${place}{part}" for place, part in enumerate(parts[1:], 1))


async def _leave_as_it_is(_connection: Any) -> None:
    """Instead of asyncpg's reset."""


class AsyncPG(Side):
    """SQL by hand."""

    name = "asyncpg, pool of 10"
    works: ClassVar[frozenset[str]] = frozenset({"get", "put", "modify", "query", "shapes", "ycsb", "bank", "counter"})
    lean: ClassVar[bool] = False
    serializable: ClassVar[bool] = False

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.counted = 0
        self.newest = 0
        self._next = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """A pool whose connections look into the peers' schema."""
        import asyncpg

        settings = {"search_path": place.space}
        if cls.serializable:
            settings["default_transaction_isolation"] = "serializable"
        async with asyncpg.create_pool(
            place.dsn,
            min_size=POOL,
            max_size=POOL,
            server_settings=settings,
            reset=_leave_as_it_is if cls.lean else None,
        ) as pool:
            yield cls(pool)

    async def load(self, data: str, count: int) -> None:
        """A table, filled with COPY, and its statistics."""
        async with self.pool.acquire() as db:
            for statement in _TABLES[data]:
                await db.execute(statement)
            for batch in each_batch(count, 50_000):
                await db.copy_records_to_table(_TABLE_OF[data], records=_rows(data, batch))
            if data == "accounts":
                await db.execute("INSERT INTO account VALUES (0, 0)")
            await db.execute("ANALYZE " + _TABLE_OF[data])
        if data == "records":
            self.newest = count
            self._next = itertools.count(count + 1)

    def get(self, name: str, count: int, seed: int) -> Subject:
        fetchrow = self.pool.fetchrow

        def operate(number: int) -> Any:
            return fetchrow("SELECT * FROM person WHERE id = $1", number)

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        execute = self.pool.execute

        def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            number, row = numbered
            return execute("INSERT INTO person VALUES ($1, $2, $3, $4)", number, row["name"], row["age"], row["score"])

        return Subject(name, operate, draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        pool = self.pool

        async def operate(number: int) -> Any:
            async with pool.acquire() as db, db.transaction():
                found = await db.fetchrow("SELECT * FROM person WHERE id = $1 FOR UPDATE", number)
                if found is None:
                    return None
                return await db.execute("UPDATE person SET age = $2 WHERE id = $1", number, found["age"] + 1)

        return Subject(name, operate, draw_distinct(count, seed))

    # -------------------------------------------------------------------------------------- queries

    def _query(self, name: str, sql: str, draw: Draw) -> Subject:
        fetch = self.pool.fetch
        return Subject(name, lambda parameters: fetch(sql, *parameters), draw)

    def top(self, name: str, seed: int) -> Subject:
        draw = draw_categories(seed)
        return self._query(name, TOP, lambda count: [(category,) for category in draw(count)])

    def top_below(self, name: str, seed: int) -> Subject:
        return self._query(name, TOP_BELOW, draw_prices(seed))

    def shape(self, name: str, shape: Shape, seed: int) -> Subject:
        draw = draw_numbers(1_000_000, seed)
        return self._query(
            name, _numbered(shape.sql), lambda count: [shape.parameters(number) for number in draw(count)]
        )

    # ----------------------------------------------------------------------------------------- YCSB

    def ycsb(self, name: str, mix: Mix, seed: int) -> Subject:
        operations = mix.operations(seed, self.newest)
        does = {
            "read": self._read,
            "update": self._update,
            "insert": self._insert,
            "scan": self._scan,
            "modify": self._modify,
        }

        def operate(asked: tuple[str, int, int]) -> Awaitable[Any]:
            operation, number, length = asked
            return does[operation](self.newest - number if mix.latest else number + 1, length)

        return Subject(name, operate, lambda count: list(itertools.islice(operations, count)))

    async def _read(self, number: int, _length: int) -> Any:
        return await self.pool.fetchrow("SELECT * FROM record WHERE id = $1", _record_key(number))

    async def _update(self, number: int, _length: int) -> Any:
        record = ycsb_record(number)
        sets = ", ".join(f"{name} = ${place}" for place, name in enumerate(record, 2))
        return await self.pool.execute(f"UPDATE record SET {sets} WHERE id = $1", _record_key(number), *record.values())

    async def _insert(self, _number: int, _length: int) -> Any:
        number = next(self._next)
        record = ycsb_record(number)
        marks = ", ".join(f"${place}" for place in range(1, len(record) + 2))
        await self.pool.execute(f"INSERT INTO record VALUES ({marks})", _record_key(number), *record.values())
        self.newest = max(self.newest, number)
        return number

    async def _scan(self, number: int, length: int) -> Any:
        statement = "SELECT * FROM record WHERE id >= $1 ORDER BY id LIMIT $2"
        return await self.pool.fetch(statement, _record_key(number), length) or None

    async def _modify(self, number: int, _length: int) -> Any:
        key = _record_key(number)
        async with self.pool.acquire() as db, db.transaction():
            found = await db.fetchrow("SELECT * FROM record WHERE id = $1 FOR UPDATE", key)
            if found is None:
                return None
            return await db.execute("UPDATE record SET field0 = $2 WHERE id = $1", key, found["field1"])

    # ----------------------------------------------------------------------------------------- bank

    def transfers(self, name: str, accounts: int, seed: int, *, zipf: bool) -> Subject:
        return Subject(name, self._transfer, draw_transfers(accounts, seed, zipf=zipf))

    async def _transfer(self, asked: tuple[int, int, int]) -> Any:
        source, target, amount = asked
        async with self.pool.acquire() as db, db.transaction():
            # In the order of the ids: two transfers that wait for one another would be a deadlock.
            rows = await db.fetch(
                "SELECT id, balance FROM account WHERE id IN ($1, $2) ORDER BY id FOR UPDATE", source, target
            )
            balances = {row["id"]: row["balance"] for row in rows}
            if balances[source] >= amount:
                await db.execute(
                    "UPDATE account SET balance = CASE id WHEN $1 THEN $3::bigint ELSE $4::bigint END"
                    " WHERE id IN ($1, $2)",
                    source,
                    target,
                    balances[source] - amount,
                    balances[target] + amount,
                )
        return True

    def increments(self, name: str) -> Subject:
        return Subject(name, self._increment, lambda count: [1] * count)

    async def _increment(self, amount: int) -> Any:
        async with self.pool.acquire() as db, db.transaction():
            balance = await db.fetchval("SELECT balance FROM account WHERE id = 0 FOR UPDATE")
            await db.execute("UPDATE account SET balance = $1 WHERE id = 0", balance + amount)
        self.counted += amount
        return balance + amount

    async def problems(self, accounts: int, counted: int) -> list[str]:
        rows: Sequence[Any] = await self.pool.fetch("SELECT id, balance FROM account")
        counter = sum(row["balance"] for row in rows if row["id"] == 0)
        total = sum(row["balance"] for row in rows) - counter
        return bank_problems(total, accounts * OPENING_BALANCE, counter, counted)


class AsyncPGLean(AsyncPG):
    """Without the reset that costs another round trip whenever a connection goes back to the pool."""

    name = "asyncpg, pool of 10, no reset"
    works = frozenset({"get", "put", "modify", "query"})
    lean = True


class AsyncPGSerializable(AsyncPG):
    """Transactions that are serializable whatever they read."""

    name = "asyncpg, SERIALIZABLE"
    works = frozenset({"bank"})
    serializable = True

    async def _transfer(self, asked: tuple[int, int, int]) -> Any:
        import asyncpg

        while True:
            try:
                return await super()._transfer(asked)
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                continue
