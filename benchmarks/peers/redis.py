"""What is measured beside Redis and Valkey: *redis-py* by hand with a pool and hiredis, *py-key-value-aio*.

By hand an entity is a string of JSON, its indexes are sorted sets; a put is MULTI with SET and a ZADD for each index,
a transaction is WATCH, GET, MULTI, SET, ZADD, EXEC, and again if EXEC refuses. The pool is
``BlockingConnectionPool``, whose callers wait for one of ten connections (with 20 or 64 redis-py was not faster).
YCSB's records are hashes beside a sorted set of their keys, as in its own binding for Redis, but in the order of keys.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from aiodatastore.bench.data import Mix, item, person, scrambled, ycsb_record
from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import (
    bank_problems,
    draw_categories,
    draw_distinct,
    draw_numbers,
    draw_transfers,
    each_batch,
)
from benchmarks.sides import Draw, Place, Side

__all__ = ["KeyValueRedis", "RedisPy", "RedisPyIncrement"]

POOL = 10
OPENING_BALANCE = 1000

_dumps: Callable[[Any], bytes] = msgspec.json.encode
_loads: Callable[[bytes], Any] = msgspec.json.decode


class RedisPy(Side):
    """Commands by hand."""

    name = "redis-py, pool of 10"
    works = frozenset({"get", "put", "modify", "query", "ycsb", "bank", "counter"})

    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.counted = 0
        self.newest = 0
        self._next = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """A client on a pool."""
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(place.dsn, max_connections=POOL, timeout=None)
        async with Redis.from_pool(pool) as client:
            yield cls(client, place.space)

    async def load(self, data: str, count: int) -> None:
        """Pipelines of whole batches."""
        for batch in each_batch(count):
            pipe = self.client.pipeline(transaction=False)
            for number in batch:
                if data == "people":
                    self._put_person(pipe, number, person(number))
                elif data == "items":
                    self._put_item(pipe, number)
                elif data == "records":
                    self._put_record(pipe, number)
                else:
                    pipe.set(self._account(number), OPENING_BALANCE)
            await pipe.execute()
        if data == "accounts":
            await self.client.set(self._account(0), 0)
        if data == "records":
            self.newest = count
            self._next = itertools.count(count + 1)

    def _put_person(self, pipe: Any, number: int, row: dict[str, Any]) -> None:
        prefix = self.prefix
        pipe.set(f"{prefix}person:{number}", _dumps(row))
        pipe.zadd(f"{prefix}person-name", {f"{row['name']}:{number}": 0})
        pipe.zadd(f"{prefix}person-age", {str(number): row["age"]})
        pipe.zadd(f"{prefix}person-score", {str(number): row["score"]})

    def _put_item(self, pipe: Any, number: int) -> None:
        prefix, row = self.prefix, item(number)
        pipe.set(f"{prefix}item:{number}", _dumps(row))
        pipe.zadd(f"{prefix}item-category:{row['category']}", {str(number): row["price"]})
        pipe.zadd(f"{prefix}item-brand", {f"{row['brand']}:{number}": 0})
        pipe.zadd(f"{prefix}item-price", {str(number): row["price"]})
        pipe.zadd(f"{prefix}item-rating", {str(number): row["rating"]})

    def get(self, name: str, count: int, seed: int) -> Subject:
        client, prefix = self.client, self.prefix

        async def operate(number: int) -> Any:
            found = await client.get(f"{prefix}person:{number}")
            return None if found is None else _loads(found)

        return Subject(name, operate, draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        client = self.client

        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            async with client.pipeline(transaction=True) as pipe:
                self._put_person(pipe, *numbered)
                return await pipe.execute()

        return Subject(name, operate, draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        from redis.exceptions import WatchError

        client, prefix = self.client, self.prefix

        async def operate(number: int) -> Any:
            key = f"{prefix}person:{number}"
            async with client.pipeline(transaction=True) as pipe:
                while True:
                    await pipe.watch(key)
                    found = await pipe.get(key)
                    if found is None:
                        return None
                    row = _loads(found)
                    row["age"] += 1
                    pipe.multi()
                    pipe.set(key, _dumps(row))
                    pipe.zadd(f"{prefix}person-age", {str(number): row["age"]})
                    try:
                        return await pipe.execute()
                    except WatchError:
                        continue

        return Subject(name, operate, draw_distinct(count, seed))

    def top(self, name: str, seed: int) -> Subject:
        client, prefix = self.client, self.prefix

        async def operate(category: str) -> Any:
            numbers = await client.zrange(f"{prefix}item-category:{category}", 0, 19, desc=True)
            if not numbers:
                return []
            found = await client.mget([f"{prefix}item:{number.decode()}" for number in numbers])
            return [_loads(each) for each in found]

        return Subject(name, operate, draw_categories(seed))

    # ----------------------------------------------------------------------------------------- YCSB

    def _record(self, number: int) -> str:
        return f"{self.prefix}record:{_record_key(number)}"

    def _put_record(self, pipe: Any, number: int) -> None:
        pipe.hset(self._record(number), mapping=ycsb_record(number))
        pipe.zadd(f"{self.prefix}records", {_record_key(number): 0})

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
        return await self.client.hgetall(self._record(number)) or None

    async def _update(self, number: int, _length: int) -> Any:
        return await self.client.hset(self._record(number), mapping=ycsb_record(number))

    async def _insert(self, _number: int, _length: int) -> Any:
        number = next(self._next)
        async with self.client.pipeline(transaction=True) as pipe:
            self._put_record(pipe, number)
            await pipe.execute()
        self.newest = max(self.newest, number)
        return number

    async def _scan(self, number: int, length: int) -> Any:
        low = f"[{_record_key(number)}"
        keys: Sequence[bytes] = await self.client.zrangebylex(f"{self.prefix}records", low, "+", 0, length)
        async with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(f"{self.prefix}record:{key.decode()}")
            return await pipe.execute() or None

    async def _modify(self, number: int, _length: int) -> Any:
        from redis.exceptions import WatchError

        key = self._record(number)
        async with self.client.pipeline(transaction=True) as pipe:
            while True:
                await pipe.watch(key)
                found = await pipe.hgetall(key)
                if not found:
                    return None
                pipe.multi()
                pipe.hset(key, "field0", found[b"field1"])
                try:
                    return await pipe.execute()
                except WatchError:
                    continue

    # ----------------------------------------------------------------------------------------- bank

    def _account(self, number: int) -> str:
        return f"{self.prefix}account:{number}"

    def transfers(self, name: str, accounts: int, seed: int, *, zipf: bool) -> Subject:
        return Subject(name, self._transfer, draw_transfers(accounts, seed, zipf=zipf))

    async def _transfer(self, asked: tuple[int, int, int]) -> Any:
        from redis.exceptions import WatchError

        source, target, amount = asked
        giver, taker = self._account(source), self._account(target)
        async with self.client.pipeline(transaction=True) as pipe:
            while True:
                await pipe.watch(giver, taker)
                has, had = map(int, await pipe.mget(giver, taker))
                pipe.multi()
                if has >= amount:
                    pipe.mset({giver: has - amount, taker: had + amount})
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return True

    def increments(self, name: str) -> Subject:
        return Subject(name, self._increment, lambda count: [1] * count)

    async def _increment(self, amount: int) -> Any:
        from redis.exceptions import WatchError

        key = self._account(0)
        async with self.client.pipeline(transaction=True) as pipe:
            while True:
                await pipe.watch(key)
                balance = int(await pipe.get(key)) + amount
                pipe.multi()
                pipe.set(key, balance)
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                self.counted += amount
                return balance

    async def problems(self, accounts: int, counted: int) -> list[str]:
        found = await self.client.mget([self._account(number) for number in range(accounts + 1)])
        balances = [*map(int, found)]
        return bank_problems(sum(balances[1:]), accounts * OPENING_BALANCE, balances[0], counted)


class RedisPyIncrement(RedisPy):
    """The one command that Redis has for a counter."""

    name = "redis-py, INCRBY"
    works = frozenset({"counter"})

    async def _increment(self, amount: int) -> Any:
        found = await self.client.incrby(self._account(0), amount)
        self.counted += amount
        return found


class KeyValueRedis(Side):
    """py-key-value-aio on Redis: no indexes, no transactions. Its client has redis-py's default pool."""

    name = "py-key-value-aio RedisStore"
    works = frozenset({"get", "put"})

    def __init__(self, store: Any) -> None:
        self.store = store

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """A store in a collection of its own."""
        from key_value.aio.stores.redis import RedisStore
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(place.dsn, max_connections=POOL, timeout=None, decode_responses=True)
        async with (
            Redis.from_pool(pool) as client,
            RedisStore(client=client, default_collection=f"{place.space}key-value") as store,
        ):
            yield cls(store)

    async def load(self, data: str, count: int) -> None:
        """As many values."""
        for batch in each_batch(count, 1000):
            await self.store.put_many([f"person-{number}" for number in batch], [person(number) for number in batch])

    def get(self, name: str, count: int, seed: int) -> Subject:
        get = self.store.get
        return Subject(name, lambda number: get(f"person-{number}"), draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        put = self.store.put

        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            await put(f"person-{numbered[0]}", numbered[1])
            return numbered[0]

        return Subject(name, operate, draw)


def _record_key(number: int) -> str:
    return f"user{scrambled(number):020d}"
