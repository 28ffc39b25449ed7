"""Transactions: serializable, own writes visible, retried, nested, and over when they are over."""

# ruff: noqa: PT012  # what raises is the end of a transaction, not a statement in it

from __future__ import annotations

import functools
from typing import Any

import anyio
import pytest

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadRequestError,
    ConflictError,
    DatastoreError,
    EntityExistsError,
    EntityNotFoundError,
    Rollback,
    TransactionClosedError,
    TransactionFailedError,
    TransactionStateError,
)
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.testing.suite.base import StoreTests, assert_same, gather, numbered
from aiodatastore.txn import Propagation, Transaction

__all__ = ["TransactionTests"]

A, B, C = (Key("Group", 1, "K", name) for name in "abc")
"""Of one entity group: transactions of these work on every shard."""


class UserError(Exception):
    """Of the application."""


async def value(reader: Datastore | Transaction, key: Key) -> Any:
    """Property ``x`` of an entity, None if it is absent."""
    entity = await reader.get(key)
    return None if entity is None else entity["x"]


def x(key: Key, number: int) -> Entity:
    """An entity with one property."""
    return Entity(key, {"x": number})


class TransactionTests(StoreTests):
    """What DESIGN.md promises of transactions."""

    # ---------------------------------------------------------------------------- all or nothing

    async def test_commit_writes_all(self, ds: Datastore) -> None:
        """Nothing is seen outside before."""
        await ds.put(x(C, 1))
        async with ds.transaction():
            entity = x(A, 1)
            await ds.put([entity, x(B, 2)])
            await ds.delete(C)
            async with anyio.create_task_group():
                pass
            assert await _outside(ds, A) is None
        assert [await value(ds, key) for key in (A, B, C)] == [1, 2, None]
        assert entity.version > 0

    async def test_an_error_rolls_back(self, ds: Datastore) -> None:
        """And propagates."""
        with pytest.raises(UserError):
            async with ds.transaction():
                await ds.put(x(A, 1))
                raise UserError
        assert await ds.get(A) is None

    async def test_rollback_is_swallowed(self, ds: Datastore) -> None:
        """In both forms; the function's result is None."""
        async with ds.transaction():
            await ds.put(x(A, 1))
            raise Rollback

        async def body() -> int:
            await ds.put(x(A, 1))
            raise Rollback

        assert await ds.run_in_transaction(body) is None
        assert await ds.get(A) is None

    async def test_results_and_arguments_pass_through(self, ds: Datastore) -> None:
        """Of a function run in a transaction, decorated or not."""

        async def add(key: Key, *, amount: int) -> int:
            entity = await ds.get(key) or x(key, 0)
            entity["x"] += amount
            await ds.put(entity)
            return int(entity["x"])

        assert await ds.run_in_transaction(add, A, amount=2) == 2
        assert await ds.transactional(add)(A, amount=3) == 5
        assert await ds.transactional(retries=1)(add)(A, amount=4) == 9
        assert await value(ds, A) == 9

    async def test_insert_update_and_versions_inside(self, ds: Datastore) -> None:
        """Fail as outside, against what the transaction sees."""
        await ds.put(x(A, 1))
        async with ds.transaction():
            await ds.insert(x(B, 1))
            await ds.update(x(B, 2))
        assert await value(ds, B) == 2
        with pytest.raises(EntityExistsError):
            async with ds.transaction():
                await ds.insert(x(A, 5))
        with pytest.raises(EntityNotFoundError):
            async with ds.transaction():
                await ds.update(x(C, 5))
        with pytest.raises((ConflictError, TransactionFailedError)):
            async with ds.transaction():
                await ds.put(x(A, 5), if_version=10**9)
        assert [await value(ds, key) for key in (A, B, C)] == [1, 2, None]

    async def test_what_was_put_is_a_copy(self, ds: Datastore) -> None:
        """Changing the entity afterwards changes nothing, before commit either."""
        entity = Entity(A, {"x": [1]})
        async with ds.transaction():
            await ds.put(entity)
            entity["x"].append(2)
            inside = await ds.get(A)
            assert inside is not None
            assert inside["x"] == [1]
            inside["x"].append(3)
        assert await value(ds, A) == [1]

    # ---------------------------------------------------------------------------- own writes show

    async def test_own_writes_show_in_gets_and_queries(self, ds: Datastore) -> None:
        """Puts, deletions, changed and new places in the order; in every way of reading."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.KEY_ORDER, Capability.EXACT_KEYS, Capability.QUERIES)
        await ds.put(numbered("K", 10, even=False))
        async with ds.transaction():
            await ds.delete(Key("K", 3))
            await ds.put(Entity(Key("K", 2), {"n": 7.5, "even": True}))
            await ds.put(Entity(Key("K", 20), {"n": 0, "even": True}))
            new = await ds.put(Entity(Key("K"), {"n": 11, "even": False}))
            assert await ds.get(Key("K", 3)) is None
            numbers = [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 7.5]
            query = ds.query("K").order("n")
            assert [entity["n"] for entity in await query.fetch()] == numbers
            assert [entity["n"] async for entity in ds.query("K").order("-n")] == numbers[::-1]
            assert await query.count() == 11
            assert await ds.query("K").filter("even", "=", True).keys() == [Key("K", 2), Key("K", 20)]
            assert await query.limit(3).offset(1).keys() == [Key("K", 1), Key("K", 4), Key("K", 5)]
            assert [entity["n"] for entity in await query.project("n").limit(2).fetch()] == [0, 1]
            page = await query.page(4)
            rest = await query.start(page.cursor).fetch()
            assert [entity["n"] for entity in [*page.entities, *rest]] == numbers
            assert (await query.first()).key == Key("K", 20)
            assert set(await ds.query("K").filter("n", "in", [3, 0, 11]).keys()) == {Key("K", 20), new}
            assert await ds.query("K").sum("n") == sum(numbers)
        assert [entity["n"] for entity in await ds.query("K").order("n").fetch()] == numbers

    async def test_a_deleted_entity_can_be_put_again(self, ds: Datastore) -> None:
        """The last write of a key counts."""
        await ds.put(x(A, 1))
        async with ds.transaction():
            await ds.delete(A)
            await ds.put(x(A, 2))
            await ds.put(x(B, 1))
            await ds.delete(B)
        assert (await value(ds, A), await ds.get(B)) == (2, None)

    # ---------------------------------------------------------------------------------- conflicts

    async def test_no_lost_update(self, ds: Datastore) -> None:
        """What was read and changed by another since can't be written."""
        await ds.put(x(A, 1))
        one, two = ds.begin(), ds.begin()
        for txn in (one, two):
            await txn.put(x(A, await value(txn, A) + 1))
        await one.commit()
        with pytest.raises(TransactionFailedError):
            await two.commit()
        assert await value(ds, A) == 2

    async def test_no_write_skew(self, ds: Datastore) -> None:
        """What was only read is checked, too; absence as well."""
        await ds.put(x(A, 1))
        one, two = ds.begin(), ds.begin()
        for txn in (one, two):
            assert await value(txn, A) == 1
            assert await txn.get(B) is None
        await one.put(x(B, 1))
        await two.put(x(A, 0))
        await one.commit()
        with pytest.raises(TransactionFailedError):
            await two.commit()

    @pytest.mark.parametrize("look", ["fetch", "keys", "count", "first", "projection", "sum", "ancestor", "in"])
    async def test_no_phantoms(self, ds: Datastore, look: str) -> None:
        """What a query would find now is checked, in every way of asking."""
        self.needs(ds, Capability.QUERIES)
        if look != "ancestor":
            self.needs(ds, Capability.GLOBAL_TRANSACTIONS)
        await ds.put([x(Key("P", 1, "K", n), n) for n in range(1, 4)])

        async def ask(txn: Any) -> object:
            query = txn.query("K").filter("x", ">", 1)
            match look:
                case "fetch":
                    return await query.fetch()
                case "keys":
                    return await query.keys()
                case "count":
                    return await query.count()
                case "first":
                    return await query.order("-x").first()
                case "projection":
                    return await query.project("x").fetch()
                case "sum":
                    return await query.sum("x")
                case "ancestor":
                    return await txn.query(ancestor=Key("P", 1)).fetch()
                case _:
                    return await txn.query("K").filter("x", "in", [2, 3, 9]).fetch()

        for write in ("put", "delete", "change"):
            txn = ds.begin()
            await ask(txn)
            await txn.put(x(Key("P", 1, "Seen", look), 1))
            if write == "put":
                await ds.put(x(Key("P", 1, "K", 9), 9))
            elif write == "delete":
                await ds.delete(Key("P", 1, "K", 9))
                await ds.delete(Key("P", 1, "K", 3))
            else:
                await ds.put(x(Key("P", 1, "K", 2), 0))
            with pytest.raises(TransactionFailedError):
                await txn.commit()
        assert await ds.get(Key("P", 1, "Seen", look)) is None

    async def test_an_empty_result_is_checked(self, ds: Datastore) -> None:
        """Twice nothing is not a licence to insert twice."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        one, two = ds.begin(), ds.begin()
        for number, txn in enumerate((one, two)):
            assert await txn.query("K").filter("x", "=", 7).fetch() == []
            await txn.put(x(Key("K", number + 1), 7))
        await one.commit()
        with pytest.raises(TransactionFailedError):
            await two.commit()
        assert await ds.query("K").filter("x", "=", 7).count() == 1

    async def test_what_was_not_looked_at_does_not_conflict(self, ds: Datastore) -> None:
        """Other entities of the group, other spans of the index, blind writes."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        await ds.put([x(A, 1), x(B, 1)])
        txn = ds.begin()
        await txn.get(A)
        assert len(await txn.query("K").filter("x", "=", 1).keys()) == 2
        await txn.put(x(Key("K", "a", "Child", 1), 5))
        await ds.put(x(C, 2))
        await ds.put(x(Key("Other", 1), 1))
        await ds.put(x(Key("K", "a", "Child", 2), 1))
        await txn.commit()
        blind, other = ds.begin(), ds.begin()
        for number, each in enumerate((blind, other)):
            await each.put(x(A, number))
        await blind.commit()
        await other.commit()
        assert await value(ds, A) == 1

    async def test_no_mixture_of_before_and_after(self, ds: Datastore) -> None:
        """A read that finds something newer notices that an earlier one is stale."""
        await ds.put([x(A, 1), x(B, 1)])
        txn = ds.begin()
        first = await value(txn, A)
        await ds.put([x(A, 2), x(B, 2)])
        with pytest.raises(TransactionFailedError):
            second = await value(txn, B)
            assert first == second, "read skew"
            await txn.commit()
            pytest.fail("committed with stale reads")  # nothing was written: a snapshot would do

    async def test_read_only_transactions_see_one_moment(self, ds: Datastore) -> None:
        """And refuse to write."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        await ds.put([x(A, 1), x(B, 1)])
        async with ds.transaction(read_only=True):
            assert (await value(ds, A), await ds.query("K").count()) == (1, 2)
            with pytest.raises(BadRequestError):
                await ds.put(x(A, 2))
        assert await value(ds, A) == 1

    async def test_conflicts_run_the_function_again(self, ds: Datastore) -> None:
        """Until it gets through."""
        await ds.put(x(A, 0))
        attempts = 0

        async def body() -> int:
            nonlocal attempts
            attempts += 1
            entity = await ds.get(A)
            assert entity is not None
            if attempts <= 2:
                await _put_outside(ds, x(A, attempts * 10))
            entity["x"] += 1
            await ds.put(entity)
            return attempts

        assert await ds.run_in_transaction(body, retries=5) == 3
        assert await value(ds, A) == 21

    async def test_retries_end(self, ds: Datastore) -> None:
        """With the number of attempts, and nothing written."""
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            await ds.get(A)
            await _put_outside(ds, x(A, attempts))
            await ds.put(x(B, attempts))

        with pytest.raises(TransactionFailedError) as caught:
            await ds.run_in_transaction(body, retries=2)
        assert attempts == caught.value.attempts == 3
        assert await ds.get(B) is None

    async def test_time_runs_out(self, ds: Datastore) -> None:
        """Of all attempts together; nothing is written."""

        async def body() -> None:
            await ds.get(A)
            await _put_outside(ds, x(A, 1))
            await ds.put(x(B, 1))
            await anyio.sleep(0.03)

        with anyio.fail_after(60), pytest.raises(TransactionFailedError):
            await ds.run_in_transaction(body, retries=10_000, timeout=0.2)
        assert await ds.get(B) is None

    async def test_get_or_insert_side_by_side(self, ds: Datastore) -> None:
        """One of them inserts, all get the same."""

        async def one(number: int) -> Any:
            return (await ds.get_or_insert(A, {"x": number}))["x"]

        results = await gather([functools.partial(one, number) for number in range(20)])
        assert set(results) == {await value(ds, A)}

    async def test_an_error_of_an_inconsistent_view_is_a_conflict(self, ds: Datastore) -> None:
        """The function raised because of what changed under it: it runs again."""
        await ds.put(x(A, 0))
        attempts = 0

        async def body() -> int:
            nonlocal attempts
            attempts += 1
            seen: int = await value(ds, A)
            if attempts == 1:
                await _put_outside(ds, x(A, 1))
            if seen == 0:
                raise UserError
            return seen

        assert await ds.run_in_transaction(body, retries=3) == 1
        assert attempts == 2

    async def test_other_errors_are_not_retried(self, ds: Datastore) -> None:
        """They are the function's."""
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            await ds.put(x(A, 1))
            raise UserError

        with pytest.raises(UserError):
            await ds.run_in_transaction(body, retries=3)
        assert attempts == 1
        assert await ds.get(A) is None

    # ------------------------------------------------------------------------ between connections

    async def test_conflicts_between_connections(self, ds: Datastore, other: Datastore) -> None:
        """Serializable across them: entities, absence, queries."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        await ds.put(x(A, 1))
        txn = ds.begin()
        await txn.get(A)
        await txn.put(x(B, 1))
        await other.put(x(A, 2))
        with pytest.raises(TransactionFailedError):
            await txn.commit()
        txn = ds.begin()
        assert await txn.query("K").filter("x", ">", 5).fetch() == []
        await txn.put(x(B, 1))
        await other.put(x(C, 9))
        with pytest.raises(TransactionFailedError):
            await txn.commit()
        assert await ds.get(B) is None

    # -------------------------------------------------------------------------------- propagation

    async def test_in_transaction(self, ds: Datastore) -> None:
        """Tells."""
        assert not ds.in_transaction()
        async with ds.transaction():
            assert ds.in_transaction()
        assert not ds.in_transaction()

    async def test_allowed_joins(self, ds: Datastore) -> None:
        """The inner's writes stand and fall with the outer."""

        @ds.transactional
        async def inner() -> None:
            await ds.put(x(A, 1))

        with pytest.raises(UserError):
            async with ds.transaction():
                await inner()
                assert await value(ds, A) == 1
                raise UserError
        assert await ds.get(A) is None
        await inner()
        assert await value(ds, A) == 1

    async def test_mandatory_needs_one(self, ds: Datastore) -> None:
        """And joins it."""

        @ds.transactional(propagation=Propagation.MANDATORY)
        async def inner() -> None:
            await ds.put(x(A, 1))

        with pytest.raises(DatastoreError):
            await inner()
        async with ds.transaction():
            await inner()
        assert await value(ds, A) == 1

    async def test_independent_stands_alone(self, ds: Datastore) -> None:
        """It commits though the outer one fails, and does not see the outer's writes."""

        @ds.transactional(propagation=Propagation.INDEPENDENT)
        async def inner() -> None:
            assert await ds.get(B) is None
            await ds.put(x(A, 1))

        with pytest.raises(UserError):
            async with ds.transaction():
                await ds.put(x(B, 1))
                await inner()
                raise UserError
        assert (await value(ds, A), await ds.get(B)) == (1, None)

    async def test_nested_writes_join_or_vanish(self, ds: Datastore) -> None:
        """With the inner transaction, the outer going on."""

        @ds.transactional(propagation=Propagation.NESTED)
        async def inner(key: Key, fail: bool) -> None:
            seen = await value(ds, C)
            await ds.put([x(key, seen), x(C, seen + 1)])
            if fail:
                raise UserError

        async with ds.transaction():
            await ds.put(x(C, 1))
            await inner(A, False)
            with pytest.raises(UserError):
                await inner(B, True)
            assert (await value(ds, A), await ds.get(B), await value(ds, C)) == (1, None, 2)
        assert (await value(ds, A), await ds.get(B), await value(ds, C)) == (1, None, 2)

    async def test_non_transactional_pauses(self, ds: Datastore) -> None:
        """Reads and writes go past the transaction."""

        @ds.non_transactional(allow_existing=True)
        async def outside() -> None:
            assert not ds.in_transaction()
            assert await ds.get(A) is None
            await ds.put(x(B, 1))

        with pytest.raises(UserError):
            async with ds.transaction():
                await ds.put(x(A, 1))
                await outside()
                assert ds.in_transaction()
                raise UserError
        assert (await ds.get(A), await value(ds, B)) == (None, 1)

    # ----------------------------------------------------------------------------------- callbacks

    async def test_on_commit_runs_after_a_commit_only(self, ds: Datastore) -> None:
        """Once, in order, when the writes can be seen."""
        log: list[Any] = []
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            ds.on_commit(lambda: log.append(attempts))
            await ds.get(A)
            if attempts == 1:
                await _put_outside(ds, x(A, 1))
            await ds.put(x(B, 1))
            assert log == []

        await ds.run_in_transaction(body, retries=2)
        assert log == [2]
        with pytest.raises(UserError):
            async with ds.transaction():
                ds.on_commit(lambda: log.append("never"))
                raise UserError
        async with ds.transaction():
            ds.on_commit(lambda: log.append("never"))
            raise Rollback
        assert log == [2]

    # --------------------------------------------------------------------------------------- tasks

    async def test_child_tasks_take_part(self, ds: Datastore) -> None:
        """Those of a task group started inside."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.KEY_ORDER, Capability.EXACT_KEYS, Capability.QUERIES)
        async with ds.transaction():
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(ds.put, x(Key("K", number + 1), number))
            assert await ds.query("K").count() == 5
            assert await _outside(ds, Key("K", 1)) is None
        assert await ds.query("K").count() == 5

    async def test_a_task_that_outlives_its_transaction_is_told(self, ds: Datastore) -> None:
        """It does not write outside silently."""
        done = anyio.Event()
        errors: list[Exception] = []

        async def straggler() -> None:
            await done.wait()
            try:
                await ds.put(x(A, 1))
            except Exception as exc:
                errors.append(exc)

        async with anyio.create_task_group() as group:
            async with ds.transaction():
                group.start_soon(straggler)
                await ds.put(x(B, 1))
            done.set()
        if errors:
            assert isinstance(errors[0], TransactionClosedError)
            assert await ds.get(A) is None

    async def test_an_ended_transaction_is_closed(self, ds: Datastore) -> None:
        """Committed or rolled back."""
        for end in ("commit", "rollback"):
            txn = ds.begin()
            await txn.put(x(A, 1))
            await getattr(txn, end)()
            for call in (txn.get(A), txn.put(x(B, 1)), txn.commit()):
                with pytest.raises(TransactionClosedError):
                    await call
        assert await ds.get(B) is None

    async def test_concurrent_increments_all_count(self, ds: Datastore) -> None:
        """Many tasks, one entity."""
        await ds.put(x(A, 0))

        async def increment() -> None:
            for _ in range(5):
                entity = await ds.get(A)
                assert entity is not None
                entity["x"] += 1
                await ds.put(entity)

        await gather([lambda: ds.run_in_transaction(increment, retries=1000)] * 20)
        assert await value(ds, A) == 100

    async def test_a_key_is_inserted_once(self, ds: Datastore) -> None:
        """Whoever comes first."""
        results = await gather([lambda: ds.insert(x(A, 1))] * 30)
        assert sum(isinstance(result, EntityExistsError) for result in results) == 29
        assert sum(result == A for result in results) == 1

    async def test_one_conflict_does_not_touch_its_neighbours(self, ds: Datastore) -> None:
        """Commits that travel together."""
        await ds.put([x(Key("K", n), 0) for n in range(1, 41)])

        async def one(number: int) -> Any:
            key = Key("K", number)
            return await ds.put(x(key, 1), if_version=0 if number % 3 == 0 else None)

        results = await gather([functools.partial(one, number) for number in range(1, 41)])
        for number, result in enumerate(results, 1):
            assert isinstance(result, ConflictError) == (number % 3 == 0)
            assert await value(ds, Key("K", number)) == (0 if number % 3 == 0 else 1)

    async def test_auditors_never_see_money_in_flight(self, ds: Datastore) -> None:
        """Transfers between accounts beside readers of all of them, by gets and by a query."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        accounts = [Key("Account", n) for n in range(1, 6)]
        await ds.put([x(key, 100) for key in accounts])
        sums: list[int] = []

        async def transfer(source: Key, target: Key) -> None:
            one, two = await ds.get(source), await ds.get(target)
            assert one is not None
            assert two is not None
            one["x"], two["x"] = one["x"] - 7, two["x"] + 7
            await ds.put(one)
            await ds.put(two)

        async def audit() -> int:
            found = await ds.query("Account").fetch()
            by_key = [await value(ds, key) for key in accounts]
            assert [entity["x"] for entity in found] == by_key
            return sum(by_key)

        async def transfers(step: int) -> None:
            for turn in range(8):
                source, target = accounts[turn % 5], accounts[(turn + step) % 5]
                await ds.run_in_transaction(transfer, source, target, retries=1000)

        async def audits() -> None:
            for _ in range(8):
                sums.append(await ds.run_in_transaction(audit, retries=1000, read_only=True))

        async with anyio.create_task_group() as group:
            for step in (1, 2, 3, 4):
                group.start_soon(transfers, step)
            group.start_soon(audits)
            group.start_soon(audits)
        assert sums == [500] * 16
        assert_same(500, await ds.query("Account").sum("x"))

    async def test_transactions_cannot_begin_inside_silently(self, ds: Datastore) -> None:
        """A bare nested run is an error that says so."""
        async with ds.transaction():
            with pytest.raises(TransactionStateError):
                await ds.run_in_transaction(_nothing)


async def _nothing() -> None:
    """Does."""


async def _outside(ds: Datastore, key: Key) -> Entity | None:
    """What is stored, past any transaction."""

    @ds.non_transactional(allow_existing=True)
    async def look() -> Entity | None:
        entity: Entity | None = await ds.get(key)
        return entity

    found: Entity | None = await look()
    return found


async def _put_outside(ds: Datastore, entity: Entity) -> None:
    @ds.non_transactional(allow_existing=True)
    async def put() -> None:
        await ds.put(entity)

    await put()
