"""State machines: random operations, queries, cursors and interleaved transactions, compared with the naive model.

A subclass says how to reach an empty store; Hypothesis does the rest and shrinks what fails to a short script::

    class MyStore(StoreMachine):
        def fresh(self):
            return lambda: Datastore("mystore://")

    TestMyStore = MyStore.TestCase

Transactions are judged as a black box: what one has read must have been true all at once in some state since it
began; if it commits writes, in the very state it is committed to; and it may fail only where others have written.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

from anyio.from_thread import start_blocking_portal
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule

from aiodatastore.cursor import Cursor
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    ConflictError,
    EntityExistsError,
    EntityNotFoundError,
    TransactionFailedError,
)
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.testing.model import Model, Position, same
from aiodatastore.testing.strategies import World
from aiodatastore.txn import Transaction

__all__ = ["StoreMachine"]

WORLD = World(kinds=("K", "Ka"), names=("a", "b", "c"))
DEFINITIONS = (
    IndexDefinition("K", (("a", "asc"), ("b", "desc"))),
    IndexDefinition("K", (("b", "asc"), ("c", "asc"))),
    IndexDefinition("K", (("a", "desc"),), ancestor=True),
)
MAX_OPEN = 3


@dataclass(slots=True)
class OpenTransaction:
    """A transaction under way: what it wrote, and what it saw as conditions on the state it began from."""

    handle: Transaction
    began: int
    writes: dict[Key, Entity | None] = field(default_factory=dict)
    reads: list[Callable[[Model], bool]] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)
    queried: bool = False

    def view(self, state: Model) -> Model:
        """A state with this transaction's writes on top."""
        view = state.copy()
        for key, entity in self.writes.items():
            if entity is None:
                view.delete(key)
            else:
                view.put(entity)
        return view


class StoreMachine(RuleBasedStateMachine):
    """Override :meth:`fresh`. ``connections`` open the same store; ``backend`` is the event loop."""

    backend: ClassVar[str] = "asyncio"
    connections: ClassVar[int] = 1
    reopens: ClassVar[bool] = False
    cursors: Bundle[tuple[Query, Cursor, Position | None]] = Bundle("cursors")

    def fresh(self) -> Callable[[], Datastore]:
        """How to reach an empty store; called once an example."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[Datastore] = []
        self.states: list[Model] = [Model()]
        self.written: list[set[Key]] = [set()]
        self.versions: dict[Key, int] = {}
        self.open: list[OpenTransaction] = []
        self.indexes: set[IndexDefinition] = set()
        self.resources = ExitStack()
        try:
            self.portal = self.resources.enter_context(start_blocking_portal(self.backend))
            self.connect = self.fresh()
            self._open_stores()
        except BaseException:
            self._close()
            raise

    def _open_stores(self) -> None:
        for _ in range(self.connections):
            store = self.connect()
            self.call(store.open())
            self.stores.append(store)

    def teardown(self) -> None:
        """What is stored is what the model holds, and the indexes agree."""
        try:
            if self.stores:
                for store in self.stores:
                    found = self.call(store.query().fetch())
                    wanted = [self.model.entities[key] for key in sorted(self.model.entities)]
                    assert same(wanted, found), f"left in the store: {found!r}, expected {wanted!r}"
                assert self.call(self.stores[0].check()) == []
        finally:
            self._close()

    def _close(self) -> None:
        with self.resources:
            for store in self.stores:
                self.call(store.aclose())

    def call(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop; errors come out."""

        async def run() -> Any:
            return await awaitable

        return self.portal.call(run)

    @property
    def model(self) -> Model:
        """What is committed."""
        return self.states[-1]

    def store(self, pick: int) -> Datastore:
        """One of the connections."""
        return self.stores[pick % len(self.stores)]

    def commit(self, changes: dict[Key, Entity | None]) -> None:
        """A new committed state."""
        state = self.model.copy()
        for key, entity in changes.items():
            if entity is None:
                state.delete(key)
                self.versions.pop(key, None)
            else:
                state.put(entity)
                assert entity.version > max(self.versions.values(), default=0), "versions rise"
        self.versions.update({key: entity.version for key, entity in changes.items() if entity is not None})
        self.states.append(state)
        self.written.append(set(changes))

    # ------------------------------------------------------------------------------ plain operations

    picks = st.integers(0, 11)

    @rule(pick=picks, entities=st.lists(WORLD.entities(), min_size=1, max_size=4))
    def put(self, pick: int, entities: list[Entity]) -> None:
        self.call(self.store(pick).put(entities))
        self.commit({entity.key: entity for entity in entities})

    @rule(pick=picks, kind=st.sampled_from(WORLD.kinds), value=WORLD.single())
    def put_incomplete(self, pick: int, kind: str, value: Any) -> None:
        entity = Entity(Key(kind), {"a": value})
        key = self.call(self.store(pick).put(entity))
        assert key == entity.key
        assert key not in self.model.entities, "an automatic id must be new"
        self.commit({key: entity})

    @rule(pick=picks, entity=WORLD.entities())
    def insert(self, pick: int, entity: Entity) -> None:
        try:
            self.call(self.store(pick).insert(entity))
        except EntityExistsError:
            assert entity.key in self.model.entities
        else:
            assert entity.key not in self.model.entities
            self.commit({entity.key: entity})

    @rule(pick=picks, entity=WORLD.entities())
    def update(self, pick: int, entity: Entity) -> None:
        try:
            self.call(self.store(pick).update(entity))
        except EntityNotFoundError:
            assert entity.key not in self.model.entities
        else:
            assert entity.key in self.model.entities
            self.commit({entity.key: entity})

    @rule(pick=picks, entity=WORLD.entities(), stale=st.integers(0, 2))
    def put_if_version(self, pick: int, entity: Entity, stale: int) -> None:
        version = self.versions.get(entity.key, 0)
        given = max(0, version - stale)
        try:
            self.call(self.store(pick).put(entity, if_version=given))
        except ConflictError as exc:
            assert (exc.expected, exc.actual, given != version) == (given, version, True)  # noqa: PT017
        else:
            assert given == version
            self.commit({entity.key: entity})

    @rule(pick=picks, keys=st.lists(WORLD.keys(), min_size=1, max_size=4))
    def delete(self, pick: int, keys: list[Key]) -> None:
        self.call(self.store(pick).delete(keys))
        self.commit(dict.fromkeys(keys))

    @rule(pick=picks, keys=st.lists(WORLD.keys(), min_size=1, max_size=5))
    def get(self, pick: int, keys: list[Key]) -> None:
        found = self.call(self.store(pick).get(keys))
        assert same([self.model.get(key) for key in keys], found), f"got {found!r}"
        for entity in found:
            if entity is not None:
                assert entity.version == self.versions[entity.key]

    @rule(pick=picks, query=WORLD.queries(), page_size=st.sampled_from((None, 1, 2)))
    def query(self, pick: int, query: Query, page_size: int | None) -> None:
        found = self.call(self.store(pick).query(query).fetch(page_size=page_size))
        wanted = self.model.results(query)
        assert same(wanted, found), f"{query!r}: got {found!r}, expected {wanted!r}"

    @rule(pick=picks, query=WORLD.queries())
    def count(self, pick: int, query: Query) -> None:
        assert self.call(self.store(pick).query(query).count()) == self.model.count(query)

    # --------------------------------------------------------------------------------------- cursors

    @rule(target=cursors, pick=picks, query=WORLD.queries(projections=False, limits=False), size=st.integers(1, 3))
    def begin_paging(self, pick: int, query: Query, size: int) -> tuple[Query, Cursor, Position | None]:
        return self._page(pick, query, None, None, size)

    @rule(target=cursors, pick=picks, paging=cursors, size=st.integers(1, 3))
    def go_on_paging(
        self, pick: int, paging: tuple[Query, Cursor, Position | None], size: int
    ) -> tuple[Query, Cursor, Position | None]:
        query, cursor, position = paging
        return self._page(pick, query, cursor, position, size)

    def _page(
        self, pick: int, query: Query, cursor: Cursor | None, position: Position | None, size: int
    ) -> tuple[Query, Cursor, Position | None]:
        page = self.call(self.store(pick).query(query).page(size, start=cursor))
        rows = self.model.run(query, after=position)
        wanted = [self.model.result(query, row) for row in rows[:size]]
        assert same(wanted, page.entities), f"{query!r} after {position}: got {page.entities!r}, expected {wanted!r}"
        if len(rows) > size:
            assert page.more
        after = rows[:size][-1].position if rows else position
        return query, Cursor.from_urlsafe(page.cursor.to_urlsafe()), after

    @rule(pick=picks, paging=cursors)
    def read_up_to_cursor(self, pick: int, paging: tuple[Query, Cursor, Position | None]) -> None:
        query, cursor, position = paging
        found = self.call(self.store(pick).query(query).end(cursor).fetch())
        rows = [] if position is None else self.model.run(query, until=position)
        wanted = [self.model.result(query, row) for row in rows]
        assert same(wanted, found), f"{query!r} until {position}: got {found!r}, expected {wanted!r}"

    # ---------------------------------------------------------------------------------- transactions

    @precondition(lambda self: len(self.open) < MAX_OPEN)
    @rule(pick=picks)
    def begin(self, pick: int) -> None:
        async def begin() -> Transaction:
            return self.store(pick).begin()

        self.open.append(OpenTransaction(self.call(begin()), len(self.states) - 1))

    @precondition(lambda self: self.open)
    @rule(pick=picks, entities=st.lists(WORLD.entities(), min_size=1, max_size=3))
    def put_in_transaction(self, pick: int, entities: list[Entity]) -> None:
        txn = self.open[pick % len(self.open)]
        self.call(txn.handle.put(entities))
        txn.writes.update({entity.key: entity for entity in entities})

    @precondition(lambda self: self.open)
    @rule(pick=picks, keys=st.lists(WORLD.keys(), min_size=1, max_size=3))
    def delete_in_transaction(self, pick: int, keys: list[Key]) -> None:
        txn = self.open[pick % len(self.open)]
        self.call(txn.handle.delete(keys))
        txn.writes.update(dict.fromkeys(keys))

    @precondition(lambda self: self.open)
    @rule(pick=picks, keys=st.lists(WORLD.keys(), min_size=1, max_size=3))
    def get_in_transaction(self, pick: int, keys: list[Key]) -> None:
        txn = self.open[pick % len(self.open)]
        txn.keys.update(set(keys) - txn.writes.keys())
        found = self._read(txn, txn.handle.get(keys))
        if found is not None:
            self._saw(txn, lambda view: same([view.get(key) for key in keys], found), f"get {keys} → {found!r}")

    @precondition(lambda self: self.open)
    @rule(pick=picks, query=WORLD.queries(), page_size=st.sampled_from((None, 1, 2)))
    def query_in_transaction(self, pick: int, query: Query, page_size: int | None) -> None:
        txn = self.open[pick % len(self.open)]
        txn.queried = True
        found = self._read(txn, txn.handle.query(query).fetch(page_size=page_size))
        if found is not None:
            self._saw(txn, lambda view: same(view.results(query), found), f"{query!r} → {found!r}")

    @precondition(lambda self: self.open)
    @rule(pick=picks, query=WORLD.queries())
    def count_in_transaction(self, pick: int, query: Query) -> None:
        txn = self.open[pick % len(self.open)]
        txn.queried = True
        found = self._read(txn, txn.handle.query(query).count())
        if found is not None:
            self._saw(txn, lambda view: view.count(query) == found, f"count of {query!r} → {found}")

    def _read(self, txn: OpenTransaction, awaitable: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.call(awaitable)
        except TransactionFailedError:
            self.open.remove(txn)
            self._check_conflict(txn)
            return None

    def _saw(self, txn: OpenTransaction, holds: Callable[[Model], bool], what: str) -> None:
        """Note a read: with all before it, it must be true in one of the states since the transaction began."""
        now = OpenTransaction(txn.handle, txn.began, dict(txn.writes))
        txn.reads.append(lambda state: holds(now.view(state)))
        note(f"transaction begun at state {txn.began} saw {what}")
        possible = [
            number
            for number in range(txn.began, len(self.states))
            if all(read(self.states[number]) for read in txn.reads)
        ]
        assert possible, f"what the transaction has seen was never true at once; the last: {what}"

    def _check_conflict(self, txn: OpenTransaction) -> None:
        """A conflict needs somebody who wrote what was read."""
        since = set[Key]().union(*self.written[txn.began + 1 :])
        assert since, "a conflict though nobody wrote"
        assert txn.queried or since & txn.keys, f"a conflict though nobody wrote any of {txn.keys}"

    @precondition(lambda self: self.open)
    @rule(pick=picks)
    def commit_transaction(self, pick: int) -> None:
        txn = self.open.pop(pick % len(self.open))
        try:
            self.call(txn.handle.commit())
        except TransactionFailedError:
            self._check_conflict(txn)
            return
        if txn.writes:
            assert all(read(self.model) for read in txn.reads), "committed, though what it read had changed"
            self.commit(dict(txn.writes))

    @precondition(lambda self: self.open)
    @rule(pick=picks)
    def roll_back_transaction(self, pick: int) -> None:
        txn = self.open.pop(pick % len(self.open))
        self.call(txn.handle.rollback())

    # ----------------------------------------------------------------------------- everything else

    @rule(pick=picks, definition=st.sampled_from(DEFINITIONS))
    def create_index(self, pick: int, definition: IndexDefinition) -> None:
        self.call(self.store(pick).create_index(definition, build=True))
        self.indexes.add(definition)

    @precondition(lambda self: self.indexes)
    @rule(pick=picks)
    def delete_index(self, pick: int) -> None:
        definition = sorted(self.indexes, key=repr)[pick % len(self.indexes)]
        self.call(self.store(pick).delete_index(definition))
        self.indexes.discard(definition)

    @precondition(lambda self: self.reopens)
    @rule()
    def reopen(self) -> None:
        self.open.clear()
        for store in self.stores:
            self.call(store.aclose())
        self.stores.clear()
        self._open_stores()
