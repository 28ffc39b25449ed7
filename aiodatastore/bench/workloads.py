"""The work that is measured, done with a :class:`~aiodatastore.datastore.Datastore`.

Each class holds the data of one kind of work and gives :class:`~aiodatastore.bench.measure.Subject` objects. The
project's own benchmarks put the same work, done by other libraries, beside them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aiodatastore.bench.data import CATEGORIES, Mix, Zipfian, item, person, scrambled, ycsb_record
from aiodatastore.bench.measure import Subject
from aiodatastore.entity import Entity
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.key import Key

if TYPE_CHECKING:
    from aiodatastore.bound_query import BoundQuery
    from aiodatastore.datastore import Datastore

__all__ = [
    "ITEM_INDEX",
    "SHAPES",
    "Bank",
    "Families",
    "Items",
    "People",
    "Records",
    "Shape",
    "draw_distinct",
    "draw_fresh",
    "draw_numbers",
    "draw_transfers",
    "each_batch",
]

ITEM_INDEX = IndexDefinition("BenchItem", (("category", "asc"), ("price", "desc")))
LOAD_BATCH = 5000

Draw = Callable[[int], Sequence[Any]]


def draw_numbers(population: int, seed: int) -> Draw:
    """Arguments drawn evenly from 1 to ``population``."""
    chance = random.Random(seed)
    numbers = range(1, population + 1)
    return lambda count: chance.choices(numbers, k=count)


def draw_distinct(population: int, seed: int) -> Draw:
    """All numbers from 1 to ``population`` in a shuffled order, again and again: tasks side by side never meet."""
    numbers = [*range(1, population + 1)]
    random.Random(seed).shuffle(numbers)
    endless = itertools.cycle(numbers)
    return lambda count: [*itertools.islice(endless, count)]


def draw_fresh(start: int, make: Callable[[int], Any]) -> Draw:
    """(number, made of it) for numbers that were not there before."""
    counter = itertools.count(start)
    return lambda count: [(number, make(number)) for number in itertools.islice(counter, count)]


def each_batch(count: int, size: int = LOAD_BATCH) -> Iterator[range]:
    """1 to ``count`` in batches."""
    for start in range(1, count + 1, size):
        yield range(start, min(start + size, count + 1))


class _Work:
    kind = ""

    def __init__(self, ds: Datastore) -> None:
        self.ds = ds

    def key(self, number: int) -> Key:
        """The key of the entity of a number."""
        return Key(self.kind, number, namespace=self.ds.namespace)

    async def _load(self, count: int, make: Callable[[int], dict[str, Any]], unindexed: Sequence[str] = ()) -> None:
        for batch in each_batch(count):
            await self.ds.put([Entity(self.key(number), make(number), unindexed=unindexed) for number in batch])


class People(_Work):
    """Gets by key, and puts of entities with three indexed properties."""

    kind = "BenchPerson"

    async def load(self, count: int) -> None:
        """Put as many."""
        await self._load(count, person)

    def get(self, name: str, count: int, seed: int) -> Subject:
        """Gets of keys that are at hand."""
        keys = [self.key(number) for number in range(1, count + 1)]
        chance = random.Random(seed)
        return Subject(name, self.ds.get, lambda wanted: chance.choices(keys, k=wanted), ours=True)

    def get_by_number(self, name: str, count: int, seed: int) -> Subject:
        """Gets of keys that are made on the way."""
        get, key = self.ds.get, self.key
        return Subject(name, lambda number: get(key(number)), draw_numbers(count, seed), ours=True)

    def put(self, name: str, draw: Draw) -> Subject:
        """Puts of new entities, one call each."""
        put, key = self.ds.put, self.key

        def operate(numbered: tuple[int, dict[str, Any]]) -> Awaitable[Any]:
            number, properties = numbered
            return put(Entity(key(number), properties))

        return Subject(name, operate, draw, ours=True)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        """Transactions that read an entity and write it with one indexed property changed; no two of the same key."""
        transact, ds = self.ds.run_in_transaction, self.ds

        async def grow_older(key: Key) -> Any:
            found = await ds.get(key)
            if found is None:
                return None
            found["age"] += 1
            return await ds.put(found)

        keys = [self.key(number) for number in range(1, count + 1)]
        draw = draw_distinct(count, seed)
        return Subject(
            name, lambda key: transact(grow_older, key), lambda n: [keys[each - 1] for each in draw(n)], ours=True
        )


class Items(_Work):
    """Queries."""

    kind = "BenchItem"

    async def load(self, count: int) -> None:
        """Put as many; their composite index is there before."""
        await self.ds.create_index(ITEM_INDEX)
        await self._load(count, item, ("title", "stock"))

    def query(self) -> BoundQuery:
        """Of all of them."""
        return self.ds.query(self.kind)

    def top(self, name: str, seed: int) -> Subject:
        """Filter, order, limit 20, served by the composite index."""
        query = self.query

        def operate(category: str) -> Awaitable[Any]:
            return query().filter("category", "=", category).order("-price").limit(20).fetch()

        return Subject(name, operate, draw_categories(seed), ours=True)

    def top_below(self, name: str, seed: int) -> Subject:
        """The same, from a random price downwards: results all over the data."""
        query = self.query

        def operate(asked: tuple[str, int]) -> Awaitable[Any]:
            found = query().filter("category", "=", asked[0]).filter("price", "<", asked[1])
            return found.order("-price").limit(20).fetch()

        return Subject(name, operate, draw_prices(seed), ours=True)

    def page(self, name: str, seed: int, limit: int) -> Subject:
        """A page of all of them by price, from a random one upwards."""
        query = self.query

        def operate(price: int) -> Awaitable[Any]:
            return query().filter("price", ">=", price).order("price").page(limit)

        return Subject(name, operate, draw_numbers(800_000, seed), ours=True)

    def shape(self, name: str, shape: Shape, seed: int) -> Subject:
        """Another query."""
        query = self.query
        run = shape.run
        return Subject(name, lambda number: run(query(), number), draw_numbers(1_000_000, seed), ours=True)


class Families(_Work):
    """Queries below an ancestor: families of twenty."""

    kind = "BenchChild"
    size = 20

    def __init__(self, ds: Datastore) -> None:
        super().__init__(ds)
        self.families = 0

    def key(self, number: int) -> Key:
        """The key of a child."""
        return self.ds.key(self.kind, number, parent=self._parent(1 + (number - 1) // self.size))

    def _parent(self, family: int) -> Key:
        return self.ds.key("BenchFamily", family)

    async def load(self, count: int) -> None:
        """Put as many children."""
        await self._load(count, person)
        self.families = -(-count // self.size)

    def of_one(self, name: str, seed: int) -> Subject:
        """The children of a family."""
        query, parents = self.ds.query, [self._parent(family) for family in range(1, self.families + 1)]
        chance = random.Random(seed)

        def operate(parent: Key) -> Awaitable[Any]:
            return query(self.kind, ancestor=parent).limit(self.size).fetch()

        return Subject(name, operate, lambda count: chance.choices(parents, k=count), ours=True)


def draw_categories(seed: int) -> Draw:
    """Categories of items."""
    chance = random.Random(seed)
    names = [f"category-{number:03d}" for number in range(CATEGORIES)]
    return lambda count: chance.choices(names, k=count)


def draw_prices(seed: int) -> Draw:
    """Categories, each with a price."""
    categories, chance = draw_categories(seed), random.Random(seed + 1)
    return lambda count: [(category, chance.randrange(50_000, 1_000_000)) for category in categories(count)]


class Shape:
    """A query of items: how we run it, and the SQL that answers the same. Both get a number to choose values by."""

    def __init__(
        self,
        name: str,
        run: Callable[[BoundQuery, int], Awaitable[Any]],
        sql: str,
        parameters: Callable[[int], tuple[Any, ...]],
    ) -> None:
        self.name = name
        self.run = run
        self.sql = sql
        self.parameters = parameters


def _category(number: int) -> str:
    return f"category-{number % CATEGORIES:03d}"


def _brand(number: int) -> str:
    return f"brand-{number % 50:02d}"


def _three(number: int) -> tuple[str, str, str]:
    return _category(number), _category(number + 33), _category(number + 66)


SHAPES = (
    Shape(
        "single span",
        lambda query, n: query.filter("price", ">=", n % 900_000).order("price").limit(20).fetch(),
        "SELECT * FROM item WHERE price >= ? ORDER BY price LIMIT 20",
        lambda n: (n % 900_000,),
    ),
    Shape(
        "merge join of two",
        lambda query, n: query.filter("category", "=", _category(n)).filter("brand", "=", _brand(n)).limit(20).fetch(),
        "SELECT * FROM item WHERE category = ? AND brand = ? ORDER BY id LIMIT 20",
        lambda n: (_category(n), _brand(n)),
    ),
    Shape(
        "union of three",
        lambda query, n: query.filter("category", "in", list(_three(n))).order("-price").limit(20).fetch(),
        "SELECT * FROM item WHERE category IN (?, ?, ?) ORDER BY price DESC LIMIT 20",
        _three,
    ),
    Shape(
        "projection",
        lambda query, n: query.filter("category", "=", _category(n)).order("-price").project("price").limit(20).fetch(),
        "SELECT price FROM item WHERE category = ? ORDER BY price DESC LIMIT 20",
        lambda n: (_category(n),),
    ),
    Shape(
        "keys only",
        lambda query, n: query.filter("category", "=", _category(n)).keys_only().limit(20).fetch(),
        "SELECT id FROM item WHERE category = ? ORDER BY id LIMIT 20",
        lambda n: (_category(n),),
    ),
    Shape(
        "residual sort",
        lambda query, n: query.filter("category", "=", _category(n)).order("rating", "-stock").limit(20).fetch(),
        "SELECT * FROM item WHERE category = ? ORDER BY rating, stock DESC LIMIT 20",
        lambda n: (_category(n),),
    ),
    Shape(
        "count",
        lambda query, n: query.filter("category", "=", _category(n)).count(),
        "SELECT count(*) FROM item WHERE category = ?",
        lambda n: (_category(n),),
    ),
    Shape(
        "sum",
        lambda query, n: query.filter("category", "=", _category(n)).sum("price"),
        "SELECT sum(price) FROM item WHERE category = ?",
        lambda n: (_category(n),),
    ),
)


class Records(_Work):
    """YCSB: records of ten fields of a hundred characters, not indexed (but by key), as its stores keep them."""

    kind = "BenchRecord"

    def __init__(self, ds: Datastore) -> None:
        super().__init__(ds)
        self.records = 0
        self.newest = 0
        self._next = itertools.count(1)

    def key(self, number: int) -> Key:
        """YCSB's keys are names that do not follow the order of insertion."""
        return Key(self.kind, f"user{scrambled(number):020d}", namespace=self.ds.namespace)

    async def load(self, count: int) -> None:
        """Put as many."""
        names = [*ycsb_record(0)]
        await self._load(count, ycsb_record, names)
        self.records = self.newest = count
        self._next = itertools.count(count + 1)

    def subject(self, name: str, mix: Mix, seed: int) -> Subject:
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
            chosen = self.newest - number if mix.latest else number + 1
            return does[operation](chosen, length)

        return Subject(name, operate, lambda count: list(itertools.islice(operations, count)), ours=True)

    def _entity(self, number: int) -> Entity:
        record = ycsb_record(number)
        return Entity(self.key(number), record, unindexed=[*record])

    async def _read(self, number: int, _length: int) -> Any:
        return await self.ds.get(self.key(number))

    async def _update(self, number: int, _length: int) -> Any:
        return await self.ds.put(self._entity(number))

    async def _insert(self, _number: int, _length: int) -> Any:
        number = next(self._next)
        await self.ds.put(self._entity(number))
        self.newest = max(self.newest, number)
        return number

    async def _scan(self, number: int, length: int) -> Any:
        query = self.ds.query(self.kind).filter("__key__", ">=", self.key(number)).order("__key__")
        return await query.limit(length).fetch() or None

    async def _modify(self, number: int, _length: int) -> Any:
        return await self.ds.run_in_transaction(self._read_modify_write, number, retries=20)

    async def _read_modify_write(self, number: int) -> Any:
        found = await self.ds.get(self.key(number))
        if found is None:
            return None
        found["field0"] = found["field1"]
        return await self.ds.put(found)


class Bank(_Work):
    """Transactions that meet: transfers between few accounts, and one counter that everybody increments."""

    kind = "BenchAccount"
    opening_balance = 1000

    def __init__(self, ds: Datastore, accounts: int) -> None:
        super().__init__(ds)
        self.accounts = accounts
        self.counted = 0

    async def load(self) -> None:
        """Open the accounts; number 0 is the counter's."""
        await self._load(self.accounts, lambda _number: {"balance": self.opening_balance}, ["balance"])
        await self.ds.put(Entity(self._counter(), {"balance": 0}, unindexed=["balance"]))

    def _counter(self) -> Key:
        return Key(self.kind, "counter", namespace=self.ds.namespace)

    def transfers(self, name: str, seed: int, *, zipf: bool = False) -> Subject:
        """Take from one account, give to another, if there is enough."""
        return Subject(name, self.transfer, draw_transfers(self.accounts, seed, zipf=zipf), ours=True)

    async def transfer(self, asked: tuple[int, int, int]) -> Any:
        """One of them: from, to, amount."""
        return await self.ds.run_in_transaction(self._move, *asked, retries=50)

    async def _move(self, source: int, target: int, amount: int) -> bool:
        ds = self.ds
        giver, taker = await ds.get([self.key(source), self.key(target)])
        assert giver is not None
        assert taker is not None
        if giver["balance"] >= amount:
            giver["balance"] -= amount
            taker["balance"] += amount
            await ds.put([giver, taker])
        return True

    def increments(self, name: str) -> Subject:
        """Everybody increments the same entity."""
        return Subject(name, self._increment, lambda count: [1] * count, ours=True)

    async def _increment(self, amount: int) -> Any:
        found = await self.ds.run_in_transaction(self._add, amount, retries=200)
        self.counted += amount
        return found

    async def _add(self, amount: int) -> int:
        counter = await self.ds.get(self._counter())
        assert counter is not None
        counter["balance"] += amount
        await self.ds.put(counter)
        return int(counter["balance"])

    async def problems(self) -> list[str]:
        """What went wrong: money made or lost, increments lost."""
        counter = await self.ds.get(self._counter())
        total = 0
        async for account in self.ds.query(self.kind):
            total += account["balance"]
        counted = counter["balance"] if counter is not None else 0
        return bank_problems(total - counted, self.accounts * self.opening_balance, counted, self.counted)


def bank_problems(total: int, expected: int, counted: int, acknowledged: int) -> list[str]:
    """The invariants of :class:`Bank`, in words; empty if they hold."""
    lines = []
    if total != expected:
        lines.append(f"the accounts hold {total}, not {expected}")
    if counted != acknowledged:
        lines.append(f"the counter stands at {counted} after {acknowledged} acknowledged increments")
    return lines


def draw_transfers(accounts: int, seed: int, *, zipf: bool = False) -> Draw:
    """(from, to, amount) between two different accounts; with ``zipf`` a few accounts are in most of them."""
    chance = random.Random(seed)
    zipfian = Zipfian(accounts, seed + 1)

    def two() -> tuple[int, int]:
        if not zipf:
            source, target = chance.sample(range(1, accounts + 1), 2)
            return source, target
        source = target = zipfian.draw()
        while source == target:
            target = zipfian.draw()
        return source + 1, target + 1

    return lambda count: [(*two(), chance.randint(1, 10)) for _ in range(count)]
