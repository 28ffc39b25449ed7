"""What is measured beside SQLite.

*aiosqlite*: one connection, WAL, ``synchronous=FULL`` (what this library's SQLite adapter has), a page cache of the
same size, sqlite3's own cache of prepared statements. Reads in two ways: the documented ``async with db.execute(...)``
with ``fetchone`` / ``fetchall`` (three trips to its thread), and ``execute_fetchall`` (one trip).

*SQLAlchemy*: the ORM on its aiosqlite dialect, a session for each operation, the default pool.

*sqlite3 in a thread*: the standard library's module, one connection, ``anyio.to_thread.run_sync``.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from aiodatastore.bench.data import Mix, item, person, scrambled, ycsb_record
from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import (
    Shape,
    bank_problems,
    draw_categories,
    draw_numbers,
    draw_prices,
    draw_transfers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiosqlite

__all__ = [
    "AioSQLite",
    "AlchemyPeople",
    "SQLItems",
    "ThreadedSQLite",
    "connect",
]

PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536")

PERSON_TABLE = ("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, score REAL)",)
PERSON_INDEXES = tuple(f"CREATE INDEX person_{name} ON person ({name})" for name in ("name", "age", "score"))

ITEM_TABLE = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, category TEXT, brand TEXT, price INTEGER, rating REAL, title TEXT,"
    " stock INTEGER)",
    "CREATE INDEX item_category_price ON item (category, price DESC)",
    "CREATE INDEX item_brand ON item (brand)",
    "CREATE INDEX item_price ON item (price)",
    "CREATE INDEX item_rating ON item (rating)",
)
ITEM_COLUMNS = ("category", "brand", "price", "rating", "title", "stock")
TOP = "SELECT * FROM item WHERE category = ? ORDER BY price DESC LIMIT 20"
TOP_BELOW = "SELECT * FROM item WHERE category = ? AND price < ? ORDER BY price DESC LIMIT 20"

Numbered = tuple[int, dict[str, Any]]
Draw = Callable[[int], Sequence[Any]]


@asynccontextmanager
async def connect(path: Path, *, isolation_level: str | None = "DEFERRED") -> AsyncIterator[aiosqlite.Connection]:
    """An aiosqlite connection with our durability settings."""
    import aiosqlite

    async with aiosqlite.connect(path, isolation_level=isolation_level, timeout=30) as db:
        for pragma in PRAGMAS:
            await db.execute(f"PRAGMA {pragma}")
        yield db


def connect_now(path: Path) -> sqlite3.Connection:
    """A plain connection with our durability settings, for whichever thread."""
    db = sqlite3.connect(path, check_same_thread=False, timeout=30)
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


async def _create(db: aiosqlite.Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        await db.execute(statement)
    await db.commit()


class AioSQLite:
    """Gets and puts, YCSB and transfers with aiosqlite, by hand."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self.db = db
        self._lock = anyio.Lock()
        self._next = itertools.count(1)
        self.newest = 0
        self.records = 0
        self.accounts = 0
        self.counted = 0

    # --------------------------------------------------------------------------------------- people

    async def load_people(self, count: int) -> None:
        """A table with three indexes, and as many rows."""
        await _create(self.db, (*PERSON_TABLE, *PERSON_INDEXES))
        rows = [(number, *person(number).values()) for number in range(1, count + 1)]
        await self.db.execute("BEGIN")
        await self.db.executemany("INSERT INTO person VALUES (?, ?, ?, ?)", rows)
        await self.db.commit()

    def get(self, name: str, count: int, seed: int) -> Subject:
        """The documented way."""
        execute = self.db.execute

        async def operate(number: int) -> Any:
            async with execute("SELECT * FROM person WHERE id = ?", (number,)) as cursor:
                return await cursor.fetchone()

        return Subject(name, operate, draw_numbers(count, seed))

    def get_at_once(self, name: str, count: int, seed: int) -> Subject:
        """The shortcut: one trip to the thread."""
        fetchall = self.db.execute_fetchall

        async def operate(number: int) -> Any:
            return [*await fetchall("SELECT * FROM person WHERE id = ?", (number,))] or None

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        """Insert and commit; with several tasks on the connection, what one commits may be another's insert."""
        return Subject(name, self._insert_person, draw)

    def put_alone(self, name: str, draw: Draw) -> Subject:
        """Insert and commit under a lock: each insert is a transaction of its own, as each put of ours is."""

        async def operate(numbered: Numbered) -> Any:
            async with self._lock:
                return await self._insert_person(numbered)

        return Subject(name, operate, draw)

    def put_at_once(self, name: str, draw: Draw) -> Subject:
        """One statement in autocommit mode (the connection's ``isolation_level`` is None), and one trip."""

        async def operate(numbered: Numbered) -> Any:
            number, row = numbered
            values = (number, row["name"], row["age"], row["score"])
            await self.db.execute_fetchall("INSERT INTO person VALUES (?, ?, ?, ?)", values)
            return number

        return Subject(name, operate, draw)

    async def _insert_person(self, numbered: Numbered) -> Any:
        number, row = numbered
        values = (number, row["name"], row["age"], row["score"])
        await self.db.execute("INSERT INTO person VALUES (?, ?, ?, ?)", values)
        await self.db.commit()
        return number

    # ----------------------------------------------------------------------------------------- YCSB

    async def load_records(self, count: int) -> None:
        """YCSB's table."""
        fields = ", ".join(f"{name} TEXT" for name in ycsb_record(0))
        await _create(self.db, (f"CREATE TABLE record (id TEXT PRIMARY KEY, {fields}) WITHOUT ROWID",))
        rows = ((self._record_key(number), *ycsb_record(number).values()) for number in range(1, count + 1))
        await self.db.executemany(f"INSERT INTO record VALUES (?{', ?' * 10})", rows)
        await self.db.commit()
        self.records = self.newest = count
        self._next = itertools.count(count + 1)

    @staticmethod
    def _record_key(number: int) -> str:
        return f"user{scrambled(number):020d}"

    def ycsb(self, name: str, mix: Mix, seed: int) -> Subject:
        """A workload's mix of operations."""
        operations = mix.operations(seed, self.records)
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
        found = await self.db.execute_fetchall("SELECT * FROM record WHERE id = ?", (self._record_key(number),))
        return [*found] or None

    async def _update(self, number: int, _length: int) -> Any:
        sets = ", ".join(f"{name} = ?" for name in ycsb_record(0))
        values = (*ycsb_record(number).values(), self._record_key(number))
        await self.db.execute(f"UPDATE record SET {sets} WHERE id = ?", values)
        await self.db.commit()
        return number

    async def _insert(self, _number: int, _length: int) -> Any:
        number = next(self._next)
        values = (self._record_key(number), *ycsb_record(number).values())
        await self.db.execute(f"INSERT INTO record VALUES (?{', ?' * 10})", values)
        await self.db.commit()
        self.newest = max(self.newest, number)
        return number

    async def _scan(self, number: int, length: int) -> Any:
        statement = "SELECT * FROM record WHERE id >= ? ORDER BY id LIMIT ?"
        return [*await self.db.execute_fetchall(statement, (self._record_key(number), length))] or None

    async def _modify(self, number: int, _length: int) -> Any:
        # Read and write must not mingle with others': one at a time on the one connection.
        async with self._lock:
            found = [*await self.db.execute_fetchall("SELECT * FROM record WHERE id = ?", (self._record_key(number),))]
            if not found:
                return None
            await self.db.execute("UPDATE record SET field0 = ? WHERE id = ?", (found[0][2], self._record_key(number)))
            await self.db.commit()
            return number


class AioSQLiteBank:
    """Transfers and a counter: BEGIN IMMEDIATE on a pool of connections, again when the database is busy."""

    def __init__(self, connections: Sequence[aiosqlite.Connection], accounts: int) -> None:
        self._connections = connections
        self._free = list(connections)
        self._limit = anyio.Semaphore(len(connections))
        self.accounts = accounts
        self.opening_balance = 1000
        self.counted = 0

    async def load(self) -> None:
        """Open the accounts; number 0 is the counter's."""
        db = self._connections[0]
        await db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
        rows = [(0, 0), *((number, self.opening_balance) for number in range(1, self.accounts + 1))]
        await db.execute("BEGIN IMMEDIATE")
        await db.executemany("INSERT INTO account VALUES (?, ?)", rows)
        await db.execute("COMMIT")

    @asynccontextmanager
    async def _immediate(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._limit:
            db = self._free.pop()
            try:
                while True:
                    try:
                        await db.execute("BEGIN IMMEDIATE")
                    except sqlite3.OperationalError as exc:
                        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                            raise
                    else:
                        break
                try:
                    yield db
                except BaseException:
                    await db.execute("ROLLBACK")
                    raise
                await db.execute("COMMIT")
            finally:
                self._free.append(db)

    def transfers(self, name: str, seed: int) -> Subject:
        """Take from one account, give to another, if there is enough."""
        return Subject(name, self._transfer, draw_transfers(self.accounts, seed))

    async def _transfer(self, asked: tuple[int, int, int]) -> Any:
        source, target, amount = asked
        async with self._immediate() as db:
            rows = await db.execute_fetchall("SELECT id, balance FROM account WHERE id IN (?, ?)", (source, target))
            balances = {row[0]: row[1] for row in rows}
            if balances[source] >= amount:
                changes = [(balances[source] - amount, source), (balances[target] + amount, target)]
                await db.executemany("UPDATE account SET balance = ? WHERE id = ?", changes)
        return True

    def increments(self, name: str) -> Subject:
        """Everybody increments the same row."""
        return Subject(name, self._increment, lambda count: [1] * count)

    async def _increment(self, amount: int) -> Any:
        async with self._immediate() as db:
            ((balance,),) = await db.execute_fetchall("SELECT balance FROM account WHERE id = 0")
            await db.execute("UPDATE account SET balance = ? WHERE id = 0", (balance + amount,))
        self.counted += amount
        return balance + amount

    async def problems(self) -> list[str]:
        """What went wrong."""
        db = self._connections[0]
        ((total,),) = await db.execute_fetchall("SELECT sum(balance) FROM account WHERE id > 0")
        ((counted,),) = await db.execute_fetchall("SELECT balance FROM account WHERE id = 0")
        return bank_problems(total, self.accounts * self.opening_balance, counted, self.counted)


class SQLItems:
    """A file with the table of items, for all who query it by SQL."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, count: int) -> None:
        """The table, its indexes, and as many rows; the planner gets its statistics."""
        db = connect_now(self.path)
        for statement in ITEM_TABLE:
            db.execute(statement)
        rows = (
            (number, *(made[name] for name in ITEM_COLUMNS))
            for number in range(1, count + 1)
            for made in [item(number)]
        )
        with db:
            db.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("ANALYZE")
        db.close()


class ThreadedSQLite:
    """SQL by hand in a thread."""

    def __init__(self, path: Path) -> None:
        self.db = connect_now(path)

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    def subject(self, name: str, sql: str, draw: Draw) -> Subject:
        """A query's rows, as tuples."""
        execute = self.db.execute

        def fetch(parameters: tuple[Any, ...]) -> list[Any]:
            return execute(sql, parameters).fetchall()

        async def operate(parameters: tuple[Any, ...]) -> Any:
            return await anyio.to_thread.run_sync(fetch, parameters)

        return Subject(name, operate, draw)

    def top(self, name: str, seed: int) -> Subject:
        """Filter, order, limit 20."""
        draw = draw_categories(seed)
        return self.subject(name, TOP, lambda count: [(category,) for category in draw(count)])

    def top_below(self, name: str, seed: int) -> Subject:
        """The same, from a random price downwards."""
        return self.subject(name, TOP_BELOW, draw_prices(seed))


def aiosqlite_query(name: str, db: aiosqlite.Connection, sql: str, draw: Draw) -> Subject:
    """A query's rows with aiosqlite, in its shortest way."""
    fetchall = db.execute_fetchall

    async def operate(parameters: tuple[Any, ...]) -> Any:
        return await fetchall(sql, parameters)

    return Subject(name, operate, draw)


def aiosqlite_top(name: str, db: aiosqlite.Connection, seed: int) -> Subject:
    """Filter, order, limit 20."""
    draw = draw_categories(seed)
    return aiosqlite_query(name, db, TOP, lambda count: [(category,) for category in draw(count)])


def aiosqlite_shape(name: str, db: aiosqlite.Connection, shape: Shape, seed: int) -> Subject:
    """What answers one of our shapes of queries."""
    draw = draw_numbers(1_000_000, seed)
    return aiosqlite_query(name, db, shape.sql, lambda count: [shape.parameters(number) for number in draw(count)])


class AlchemyPeople:
    """Gets, puts and the query with SQLAlchemy's ORM."""

    def __init__(self, path: Path) -> None:
        from sqlalchemy import event
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        from benchmarks.peers.alchemy import Base

        self._metadata = Base.metadata
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 30})
        self.session = async_sessionmaker(self.engine, expire_on_commit=False)

        @event.listens_for(self.engine.sync_engine, "connect")
        def set_pragmas(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in PRAGMAS:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    async def load_people(self, count: int) -> None:
        """The table, and as many rows."""
        from benchmarks.peers.alchemy import Person

        async with self.engine.begin() as connection:
            await connection.run_sync(self._metadata.create_all)
            if count:
                rows = [{"id": number, **person(number)} for number in range(1, count + 1)]
                await connection.execute(Person.metadata.tables["person"].insert(), rows)

    def get(self, name: str, count: int, seed: int) -> Subject:
        """``session.get``."""
        from benchmarks.peers.alchemy import Person

        session = self.session

        async def operate(number: int) -> Any:
            async with session() as each:
                return await each.get(Person, number)

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        """``session.add`` and commit."""
        from benchmarks.peers.alchemy import Person

        session = self.session

        async def operate(numbered: Numbered) -> Any:
            number, row = numbered
            async with session.begin() as each:
                each.add(Person(id=number, **row))
            return number

        return Subject(name, operate, draw)

    def top(self, name: str, seed: int) -> Subject:
        """Filter, order, limit 20, on a file that :class:`SQLItems` made."""
        from sqlalchemy import select

        from benchmarks.peers.alchemy import Item

        session = self.session

        async def operate(category: str) -> Any:
            statement = select(Item).where(Item.category == category).order_by(Item.price.desc()).limit(20)
            async with session() as each:
                return (await each.scalars(statement)).all()

        return Subject(name, operate, draw_categories(seed))
