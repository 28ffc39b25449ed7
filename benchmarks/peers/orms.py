"""What is measured beside PostgreSQL, with objects: *SQLAlchemy* (on asyncpg), *Tortoise*, *Piccolo*.

Each with a pool of ten connections, on the tables that :class:`benchmarks.peers.postgres.AsyncPG` made. SQLAlchemy
reads in its AUTOCOMMIT mode, which spares it BEGIN and ROLLBACK around each read; the others do so by themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import bank_problems, draw_categories, draw_distinct, draw_numbers, draw_transfers
from benchmarks.peers.postgres import OPENING_BALANCE, POOL
from benchmarks.sides import Draw, Place, Side

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Alchemy", "Piccolo", "Tortoise"]


def _parts(dsn: str) -> dict[str, Any]:
    parts = urlsplit(dsn)
    return {
        "host": parts.hostname or "127.0.0.1",
        "port": parts.port or 5432,
        "user": unquote(parts.username or "postgres"),
        "password": None if parts.password is None else unquote(parts.password),
        "database": unquote(parts.path.lstrip("/")) or "postgres",
    }


class Alchemy(Side):
    """SQLAlchemy's ORM, a session for each operation."""

    name = "SQLAlchemy ORM"
    works = frozenset({"get", "put", "modify", "query", "bank", "counter"})

    def __init__(self, engine: AsyncEngine) -> None:
        from sqlalchemy.ext.asyncio import async_sessionmaker

        self.session = async_sessionmaker(engine, expire_on_commit=False)
        reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.reading = async_sessionmaker(reading, expire_on_commit=False)
        self.counted = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """An engine with a pool of ten."""
        from sqlalchemy import URL
        from sqlalchemy.ext.asyncio import create_async_engine

        parts = _parts(place.dsn)
        url = URL.create("postgresql+asyncpg", username=parts.pop("user"), **parts)
        engine = create_async_engine(
            url,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=300,
            connect_args={"server_settings": {"search_path": place.space}},
        )
        try:
            yield cls(engine)
        finally:
            await engine.dispose()

    def get(self, name: str, count: int, seed: int) -> Subject:
        from benchmarks.peers.alchemy import Person

        session = self.reading

        async def operate(number: int) -> Any:
            async with session() as each:
                return await each.get(Person, number)

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        from benchmarks.peers.alchemy import Person

        session = self.session

        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            async with session.begin() as each:
                each.add(Person(id=numbered[0], **numbered[1]))
            return numbered[0]

        return Subject(name, operate, draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        from benchmarks.peers.alchemy import Person

        session = self.session

        async def operate(number: int) -> Any:
            async with session.begin() as each:
                found = await each.get(Person, number, with_for_update=True)
                if found is not None:
                    found.age += 1
            return found

        return Subject(name, operate, draw_distinct(count, seed))

    def top(self, name: str, seed: int) -> Subject:
        from sqlalchemy import select

        from benchmarks.peers.alchemy import Item

        session = self.reading

        async def operate(category: str) -> Any:
            statement = select(Item).where(Item.category == category).order_by(Item.price.desc()).limit(20)
            async with session() as each:
                return (await each.scalars(statement)).all()

        return Subject(name, operate, draw_categories(seed))

    def transfers(self, name: str, accounts: int, seed: int, *, zipf: bool) -> Subject:
        from sqlalchemy import select

        from benchmarks.peers.alchemy import Account

        session = self.session

        async def operate(asked: tuple[int, int, int]) -> Any:
            source, target, amount = asked
            statement = select(Account).where(Account.id.in_((source, target))).order_by(Account.id).with_for_update()
            async with session.begin() as each:
                found = {account.id: account for account in await each.scalars(statement)}
                if found[source].balance >= amount:
                    found[source].balance -= amount
                    found[target].balance += amount
            return True

        return Subject(name, operate, draw_transfers(accounts, seed, zipf=zipf))

    def increments(self, name: str) -> Subject:
        from benchmarks.peers.alchemy import Account

        session = self.session

        async def operate(amount: int) -> Any:
            async with session.begin() as each:
                counter = await each.get(Account, 0, with_for_update=True)
                assert counter is not None
                counter.balance += amount
            self.counted += amount
            return counter

        return Subject(name, operate, lambda count: [1] * count)

    async def problems(self, accounts: int, counted: int) -> list[str]:
        from sqlalchemy import select

        from benchmarks.peers.alchemy import Account

        async with self.reading() as each:
            found = {account.id: account.balance for account in await each.scalars(select(Account))}
        return bank_problems(sum(found.values()) - found[0], accounts * OPENING_BALANCE, found[0], counted)


class Tortoise(Side):
    """Tortoise's models."""

    name = "Tortoise"
    works = frozenset({"get", "put", "modify", "query"})

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """A context of its own, so that nothing of it is left in the process."""
        from tortoise.context import TortoiseContext

        credentials = {**_parts(place.dsn), "schema": place.space, "minsize": POOL, "maxsize": POOL}
        connection = {"engine": "tortoise.backends.asyncpg", "credentials": credentials}
        models = {"models": ["benchmarks.peers.tortoise"], "default_connection": "default"}
        async with TortoiseContext() as context:
            await context.init(config={"connections": {"default": connection}, "apps": {"models": models}})
            yield cls()

    def get(self, name: str, count: int, seed: int) -> Subject:
        from benchmarks.peers.tortoise import Person

        return Subject(name, lambda number: Person.get_or_none(id=number), draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        from benchmarks.peers.tortoise import Person

        return Subject(name, lambda numbered: Person.create(id=numbered[0], **numbered[1]), draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        from tortoise.transactions import in_transaction

        from benchmarks.peers.tortoise import Person

        async def operate(number: int) -> Any:
            async with in_transaction() as db:
                found = await Person.select_for_update().using_db(db).get_or_none(id=number)
                if found is not None:
                    found.age += 1
                    await found.save(using_db=db, update_fields=["age"])
            return found

        return Subject(name, operate, draw_distinct(count, seed))

    def top(self, name: str, seed: int) -> Subject:
        from benchmarks.peers.tortoise import Item

        async def operate(category: str) -> Any:
            return await Item.filter(category=category).order_by("-price").limit(20)

        return Subject(name, operate, draw_categories(seed))


class Piccolo(Side):
    """Piccolo's tables."""

    name = "Piccolo"
    works = frozenset({"get", "put", "modify", "query"})

    def __init__(self, engine: Any) -> None:
        from piccolo.columns import BigInt, DoublePrecision, Text
        from piccolo.table import create_table_class

        self.engine = engine
        self.person: Any = create_table_class(
            "Person",
            class_kwargs={"db": engine, "tablename": "person"},
            class_members={"id": BigInt(primary_key=True), "name": Text(), "age": BigInt(), "score": DoublePrecision()},
        )
        self.item: Any = create_table_class(
            "Item",
            class_kwargs={"db": engine, "tablename": "item"},
            class_members={
                "id": BigInt(primary_key=True),
                "category": Text(),
                "brand": Text(),
                "price": BigInt(),
                "rating": DoublePrecision(),
                "title": Text(),
                "stock": BigInt(),
            },
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """An engine with a pool of ten."""
        from piccolo.engine.postgres import PostgresEngine

        engine = PostgresEngine(config={"dsn": place.dsn, "server_settings": {"search_path": place.space}})
        await engine.start_connection_pool(min_size=POOL, max_size=POOL)
        try:
            yield cls(engine)
        finally:
            await engine.close_connection_pool()

    def get(self, name: str, count: int, seed: int) -> Subject:
        person = self.person

        async def operate(number: int) -> Any:
            return await person.objects().get(person.id == number)

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        person = self.person

        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            await person(id=numbered[0], **numbered[1]).save()
            return numbered[0]

        return Subject(name, operate, draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        person, engine = self.person, self.engine

        async def operate(number: int) -> Any:
            async with engine.transaction():
                found = await person.objects().where(person.id == number).lock_rows().first()
                if found is not None:
                    found.age += 1
                    await found.save([person.age])
            return found

        return Subject(name, operate, draw_distinct(count, seed))

    def top(self, name: str, seed: int) -> Subject:
        item = self.item

        async def operate(category: str) -> Any:
            return await item.objects().where(item.category == category).order_by(item.price, ascending=False).limit(20)

        return Subject(name, operate, draw_categories(seed))
