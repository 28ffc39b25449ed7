"""Transactions: isolation, retries, propagation, tasks, cancellation."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Propagation, transactional
from aiodatastore.contention import Contention
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    EntityExistsError,
    EntityNotFoundError,
    Rollback,
    StoreBusyError,
    TransactionClosedError,
    TransactionFailedError,
    TransactionStateError,
)
from aiodatastore.key import Key

from .stepping import Gate, store

pytestmark = pytest.mark.anyio

A, B, C = Key("T", "a"), Key("T", "b"), Key("T", "c")


def entity(key: Key, n: int = 0) -> Entity:
    return Entity(key, {"n": n})


async def number(ds: Datastore, key: Key) -> int | None:
    found = await ds.get(key)
    return None if found is None else found["n"]


async def add(ds: Datastore, key: Key, amount: int = 1) -> int:
    found = await ds.get(key) or entity(key)
    found["n"] += amount
    await ds.put(found)
    result: int = found["n"]
    return result


async def outside(ds: Datastore, key: Key, n: int) -> None:
    with ds.non_transactional():
        await ds.put(entity(key, n))


# ------------------------------------------------------------------------------------ reads and writes


async def test_writes_are_seen_inside_at_once_and_outside_after_the_commit() -> None:
    ds, _ = store()
    async with ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        async with ds.transaction() as transaction:
            new = Entity(Key("T"), {"n": 5})
            await ds.put([entity(A, 2), new])
            await ds.delete(B)
            assert [await number(ds, key) for key in (A, B, new.key)] == [2, None, 5]
            assert [await number(ds, key) for key in (A, B)] == [2, None]
            assert sorted(e["n"] for e in await ds.query("T").fetch()) == [2, 5]
            with ds.non_transactional():
                assert [await number(ds, key) for key in (A, B, new.key)] == [1, 1, None]
            assert new.version == 0
            assert "2 written" not in repr(transaction)
        assert new.version > 0
        assert [await number(ds, key) for key in (A, B, new.key)] == [2, None, 5]


async def test_a_rollback_leaves_nothing() -> None:
    ds, _ = store()
    async with ds:
        new = Entity(Key("T"), {"n": 5})
        async with ds.transaction():
            await ds.put([entity(A, 2), new])
            assert new.key.is_complete
            raise Rollback
        assert not new.key.is_complete
        assert new.version == 0
        assert await ds.query("T").fetch() == []

        async def failing() -> None:
            async with ds.transaction():
                await ds.put([entity(A, 2), new])
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await failing()
        assert not new.key.is_complete
        assert await ds.query("T").fetch() == []


async def test_what_is_put_and_read_is_nobody_elses() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(Entity(A, {"tags": ["a"]}))
        async with ds.transaction():
            first, second = await ds.get([A, A])
            assert first is not None
            assert second is not None
            first["tags"].append("x")
            assert second["tags"] == ["a"]
            assert await ds.get(A) == second
            other = Entity(B, {"tags": ["b"]})
            await ds.put(other)
            other["tags"].append("x")
            mine = await ds.get(B)
            assert mine is not None
            mine["tags"].append("y")
            (found,) = await ds.query("T").filter("tags", "=", "b").fetch()
            found["tags"].append("z")
        assert await ds.get([A, B]) == [Entity(A, {"tags": ["a"]}), Entity(B, {"tags": ["b"]})]


async def test_one_round_trip_reads_and_one_commits() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(A), entity(B)])
        adapter.commits.clear()
        async with ds.transaction():
            await ds.get([A, B])
            await ds.get(A)
            await ds.put(entity(A, 1))
            await ds.put(entity(A, 2))
            await ds.delete(C)
        assert len(adapter.lookups) == 1
        (((commit,)),) = adapter.commits
        assert set(commit.checks) == {A, B}
        assert len(commit.writes) == 2
        async with ds.transaction():
            await ds.get(A)
        assert len(adapter.commits) == 1


async def test_conditions_are_judged_inside() -> None:
    ds, _ = store()
    async with ds:
        stored = entity(A, 1)
        await ds.put(stored)
        async with ds.transaction():
            with pytest.raises(EntityExistsError):
                await ds.insert(entity(A))
            with pytest.raises(EntityNotFoundError):
                await ds.update(entity(B))
            with pytest.raises(ConflictError):
                await ds.put(entity(A), if_version=stored.version + 1)
            with pytest.raises(ConflictError):
                await ds.delete(B, if_version=1)
            with pytest.raises(EntityExistsError):
                await ds.insert([entity(B), entity(B)])
            await ds.insert(entity(B))
            with pytest.raises(EntityExistsError):
                await ds.insert(entity(B))
            await ds.update(entity(B, 2))
            await ds.delete(B)
            with pytest.raises(EntityNotFoundError):
                await ds.update(entity(B))
            await ds.insert(entity(B, 3))
            await ds.put(stored, if_version=stored.version)
            assert await ds.get_or_insert(C, n=7) == entity(C, 7)
            assert await ds.get_or_insert(C, n=8) == entity(C, 7)
        assert [await number(ds, key) for key in (A, B, C)] == [1, 3, 7]


async def test_what_an_insert_found_absent_is_verified() -> None:
    ds, _ = store()
    async with ds:

        async def inserting() -> None:
            async with ds.transaction():
                await ds.insert(entity(A, 1))
                await outside(ds, A, 2)

        with pytest.raises(TransactionFailedError):
            await inserting()
        assert await number(ds, A) == 2


# ----------------------------------------------------------------------------------------- conflicts


async def test_a_conflict_runs_it_again() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        attempts: list[int | None] = []

        async def body(amount: int, *, times: int) -> int:
            attempts.append(await number(ds, A))
            if len(attempts) <= times:
                await outside(ds, A, 10 * len(attempts))
            return await add(ds, A, amount)

        assert await ds.run_in_transaction(body, 5, times=2) == 25
        assert attempts == [1, 10, 20]
        assert await number(ds, A) == 25
        attempts.clear()
        with pytest.raises(TransactionFailedError) as failed:
            await ds.run_in_transaction(body, 5, times=99, retries=2)
        assert failed.value.attempts == len(attempts) == 3
        assert "Key('T', 'a')" in str(failed.value)


async def test_blind_writes_never_conflict() -> None:
    ds, adapter = store()
    async with ds:
        async with ds.transaction():
            await ds.put(entity(A, 1))
            await ds.delete(B)
            await outside(ds, A, 2)
            await outside(ds, B, 2)
        assert [await number(ds, key) for key in (A, B)] == [1, None]
        assert adapter.commits[-1][0].checks == {}


async def test_reads_are_of_one_moment() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(A, 0), entity(B, 0)])
        # B is older than the first read: no more is asked.
        async with ds.transaction():
            assert await number(ds, A) == 0
            await outside(ds, C, 1)
            assert await number(ds, B) == 0
        assert len(adapter.commits) == 2
        # B is newer: A is verified, and was not changed.
        async with ds.transaction():
            assert await number(ds, A) == 0
            await outside(ds, B, 1)
            assert await number(ds, B) == 1
            assert await number(ds, A) == 0
        assert len(adapter.commits) == 4
        # Both have changed: the attempt ends there and then.
        async with ds.transaction() as transaction:
            assert await number(ds, A) == 0
            await outside(ds, A, 2)
            await outside(ds, B, 2)
            with pytest.raises(TransactionFailedError):
                await ds.get(B)
            assert not transaction.is_active
            for operation in (lambda: ds.get(A), lambda: ds.put(entity(C)), lambda: ds.query("T").count()):
                with pytest.raises(TransactionClosedError, match="conflict"):
                    await operation()
            raise Rollback


async def test_absence_is_part_of_the_moment() -> None:
    ds, _ = store()
    async with ds:
        await ds.put([entity(A, 0), entity(B, 0)])
        attempts: list[tuple[int | None, int | None]] = []

        async def body() -> None:
            first = await number(ds, A)
            if not attempts:
                with ds.non_transactional():
                    await ds.put(entity(A, 1))
                    await ds.delete(B)
            attempts.append((first, None))
            attempts[-1] = (first, await number(ds, B))

        await ds.run_in_transaction(body)
        assert attempts == [(0, None), (1, None)]


async def test_a_query_is_part_of_the_moment_and_of_the_commit() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        seen: list[Any] = []

        async def body() -> None:
            seen.append(await ds.query("T").filter("n", ">", 0).count())
            if len(seen) == 1:
                await outside(ds, B, 5)
            await ds.put(Entity(Key("Count", 1), {"n": seen[-1]}))

        await ds.run_in_transaction(body)
        assert seen == [1, 2]
        seen.clear()

        async def reading() -> None:
            found = {e.key: e["n"] for e in await ds.query("T").fetch()}
            if not seen:
                with ds.non_transactional():
                    await ds.put([entity(A, 7), entity(C, 7)])
            seen.append(None)
            seen[-1] = (found, await number(ds, C))

        await ds.run_in_transaction(reading, read_only=True)
        assert seen == [None, ({A: 7, B: 5, C: 7}, 7)]


async def test_what_wrote_nothing_took_place_when_it_read() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(entity(A, 1))
        for read_only in (True, False):
            adapter.commits.clear()
            async with ds.transaction(read_only=read_only):
                assert await number(ds, A) is not None
                await outside(ds, A, 2)
                assert await number(ds, A) == (1 if read_only else 2)
            assert len(adapter.commits) == 1


async def test_an_error_from_a_stale_view_is_a_conflict() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        attempts = 0

        async def body(stale: bool) -> None:
            nonlocal attempts
            attempts += 1
            await ds.get(A)
            if stale and attempts == 1:
                await outside(ds, A, 2)
            raise ValueError(f"attempt {attempts}")

        with pytest.raises(ValueError, match="attempt 2"):
            await ds.run_in_transaction(body, True)
        attempts = 0
        with pytest.raises(ValueError, match="attempt 1"):
            await ds.run_in_transaction(body, False)

        async def stale() -> None:
            async with ds.transaction():
                await ds.get(A)
                await outside(ds, A, 3)
                raise ValueError("seen")

        with pytest.raises(TransactionFailedError) as failed:
            await stale()
        assert isinstance(failed.value.__cause__, ValueError)


async def test_rollback_is_never_questioned() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        attempts = 0

        class Mine(Rollback):
            pass

        async def body() -> str:
            nonlocal attempts
            attempts += 1
            await ds.get(A)
            await outside(ds, A, 2)
            raise Mine

        assert await ds.run_in_transaction(body) is None
        assert attempts == 1

        async def in_group() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(body)

        assert await ds.run_in_transaction(in_group) is None


async def test_a_transaction_failed_error_of_the_function_is_its_own() -> None:
    ds, _ = store()
    async with ds:
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            await ds.put(entity(A))
            raise TransactionFailedError("mine")

        with pytest.raises(TransactionFailedError, match="mine"):
            await ds.run_in_transaction(body)
        assert attempts == 1


async def test_automatic_ids_in_transactions_pass_over_explicit_ones() -> None:
    ds, _ = store()
    async with ds:
        await ds.put([Entity(Key("New", n), {"explicit": True}) for n in range(1, 300)])

        async def body() -> Key:
            return await ds.put(Entity(Key("New"), {"explicit": False}))

        assert (await ds.run_in_transaction(body, retries=0)).is_complete
        async with ds.transaction():
            await ds.put([Entity(Key("New"), {"explicit": False}) for _ in range(3)])
        used, _ = await ds.allocate_ids(Key("New"), 1)
        await ds.put([Entity(Key("New", n), {"explicit": True}) for n in range(used + 2, used + 402)])
        transaction = ds.begin()
        for _ in range(3):
            await transaction.put(Entity(Key("New"), {"explicit": False}))
        await transaction.commit()
        assert await ds.query("New").filter("explicit", "=", True).count() == 699
        assert await ds.query("New").filter("explicit", "=", False).count() == 7


async def test_an_entity_deleted_under_its_automatic_id_was_never_there() -> None:
    ds, adapter = store()
    async with ds:
        async with ds.transaction():
            new = Entity(Key("New"))
            await ds.put(new)
            await ds.delete(new)
            assert await ds.get(new.key) is None
            await ds.put(entity(A))
        assert [len(commit.writes) for (commit,) in adapter.commits] == [1]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls makes nobody give up a line."""
    for name in ("PATIENCE_S", "HOT_S"):
        monkeypatch.setattr(f"aiodatastore.contention.{name}", 3600.0)


@pytest.mark.usefixtures("patience")
async def test_contended_transactions_all_succeed() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(entity(A, 0))
        adapter.commits.clear()

        async def body() -> None:
            await add(ds, A)
            await add(ds, B)

        async def many() -> None:
            for _ in range(5):
                await ds.run_in_transaction(body)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(many)
        assert [await number(ds, key) for key in (A, B)] == [100, 100]
        assert ds._contention.idle()
        attempts = sum(len(batch) for batch in adapter.commits)
        assert attempts < 250


@pytest.mark.parametrize("seed", range(3))
async def test_no_money_is_made(seed: int) -> None:
    """Transfers between accounts, while readers check that the sum never changes."""
    ds, adapter = store()
    source = random.Random(seed)
    adapter.before_lookup = lambda: anyio.sleep(source.random() / 500)
    accounts = [Key("Account", n) for n in range(1, 6)]
    async with ds:
        await ds.put([entity(key, 100) for key in accounts])

        async def transfer() -> None:
            one, other = source.sample(accounts, 2)
            amount = source.randrange(1, 50)
            if await add(ds, one, -amount) < 0:
                raise Rollback
            await add(ds, other, amount)

        async def check() -> None:
            total = 0
            for key in source.sample(accounts, 5):
                total += await number(ds, key) or 0
            assert total == await ds.query("Account").sum("n") == 500

        async def work() -> None:
            for _ in range(8):
                await ds.run_in_transaction(transfer, retries=50)
                await ds.run_in_transaction(check, read_only=True, retries=50)

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(work)
        assert await ds.query("Account").sum("n") == 500


# --------------------------------------------------------------------------------------- propagation


async def test_nesting_must_be_asked_for() -> None:
    ds, _ = store()
    async with ds:
        with pytest.raises(TransactionStateError, match="MANDATORY"):
            await ds.run_in_transaction(add, ds, A, propagation=Propagation.MANDATORY)
        async with ds.transaction() as outer:
            with pytest.raises(BadRequestError, match="propagation"):
                await ds.run_in_transaction(add, ds, A)
            with pytest.raises(TransactionStateError):
                async with ds.transaction():
                    pass
            for propagation in (Propagation.ALLOWED, Propagation.MANDATORY):
                async with ds.transaction(propagation=propagation) as joined:
                    assert joined is outer
                assert outer.is_active
                assert await ds.run_in_transaction(add, ds, A, propagation=propagation)
        assert await number(ds, A) == 2
        with pytest.raises(BadArgumentError, match="propagation"):
            await ds.run_in_transaction(add, ds, A, propagation="allowed")  # type: ignore[arg-type]  # tested


async def test_independent_ones_commit_by_themselves() -> None:
    ds, _ = store()
    async with ds:
        async with ds.transaction():
            await add(ds, A)
            await ds.run_in_transaction(add, ds, B, propagation=Propagation.INDEPENDENT)
            assert ds.in_transaction()
            raise Rollback
        assert [await number(ds, key) for key in (A, B)] == [None, 1]
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            await add(ds, A)
            if attempts == 1:
                await ds.run_in_transaction(add, ds, A, propagation=Propagation.INDEPENDENT)

        await ds.run_in_transaction(body)
        assert (attempts, await number(ds, A)) == (2, 2)


async def test_nested_writes_join_or_vanish() -> None:
    ds, _ = store()
    async with ds:
        calls: list[str] = []
        async with ds.transaction() as outer:
            await ds.put(entity(A, 1))
            new = Entity(Key("T"))
            async with ds.transaction(propagation=Propagation.NESTED) as inner:
                assert await number(ds, A) == 1
                await ds.put([entity(A, 2), entity(B, 2)])
                ds.on_commit(lambda: calls.append("inner"))
                assert [await number(ds, key) for key in (A, B)] == [2, 2]
                assert "nested" in repr(inner)
                assert await outer.get(A) == entity(A, 1)
            assert [await number(ds, key) for key in (A, B)] == [2, 2]
            for error in (Rollback, ValueError):
                try:
                    async with ds.transaction(propagation=Propagation.NESTED):
                        await ds.delete(A)
                        await ds.put([entity(C, 9), new])
                        ds.on_commit(lambda: calls.append("never"))
                        assert [await number(ds, key) for key in (A, C)] == [None, 9]
                        assert await ds.query("T").count() == 3
                        raise error
                except ValueError:
                    pass
                assert not new.key.is_complete
                assert [await number(ds, key) for key in (A, C)] == [2, None]
            assert await ds.query("T").count() == 2
            assert not calls
            with pytest.raises(TransactionClosedError):
                await inner.get(A)
        assert calls == ["inner"]
        assert [await number(ds, key) for key in (A, B, C)] == [2, 2, None]

        async def inner_function() -> str:
            await ds.put(entity(C, 1))
            raise Rollback

        async def outer_function() -> Any:
            await ds.put(entity(A, 5))
            return await ds.run_in_transaction(inner_function, propagation=Propagation.NESTED)

        assert await ds.run_in_transaction(outer_function) is None
        assert [await number(ds, key) for key in (A, C)] == [5, None]
        # Outside it is one like any other.
        assert await ds.run_in_transaction(add, ds, C, propagation=Propagation.NESTED) == 1
        assert await number(ds, C) == 1


async def test_a_nested_one_that_outlives_its_outer_one_writes_nothing() -> None:
    ds, _ = store()
    async with ds:
        go, errors = anyio.Event(), []

        async def late() -> None:
            try:
                async with ds.transaction(propagation=Propagation.NESTED):
                    await ds.put(entity(B, 1))
                    await go.wait()
            except TransactionClosedError as exc:
                errors.append(exc)

        async with anyio.create_task_group() as group:
            async with ds.transaction():
                await ds.put(entity(A, 1))
                group.start_soon(late)
                await anyio.wait_all_tasks_blocked()
            go.set()
        assert len(errors) == 1
        assert [await number(ds, key) for key in (A, B)] == [1, None]


async def test_a_conflict_inside_a_nested_one_runs_the_whole_again() -> None:
    ds, _ = store()
    async with ds:
        await ds.put([entity(A, 0), entity(B, 0)])
        attempts: list[str] = []

        async def inner() -> None:
            attempts.append("inner")
            if len(attempts) == 2:
                await outside(ds, A, 1)
                await outside(ds, B, 1)
            await add(ds, B)

        async def outer() -> None:
            attempts.append("outer")
            await add(ds, A)
            await ds.run_in_transaction(inner, propagation=Propagation.NESTED)

        await ds.run_in_transaction(outer)
        assert attempts == ["outer", "inner"] * 2
        assert [await number(ds, key) for key in (A, B)] == [2, 2]


async def test_decorators() -> None:
    ds, _ = store()
    other, _ = store()

    @ds.transactional
    async def plain(key: Key) -> int:
        """Adds."""
        assert ds.in_transaction()
        return await add(ds, key)

    @ds.transactional(retries=1, propagation=Propagation.INDEPENDENT)
    async def independent(key: Key) -> int:
        return await add(ds, key)

    @transactional
    async def free(where: Datastore, key: Key) -> bool:
        await add(where, key)
        return where.in_transaction()

    @transactional(datastore=ds, propagation=Propagation.MANDATORY)
    async def mandatory(key: Key) -> int:
        return await add(ds, key)

    @ds.non_transactional
    async def paused(key: Key) -> int | None:
        assert not ds.in_transaction()
        return await number(ds, key)

    @ds.non_transactional(allow_existing=False)
    async def never_inside() -> None:
        return None

    class Service:
        @ds.transactional
        async def method(self, key: Key) -> int:
            return await add(ds, key)

    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Adds."
    with pytest.raises(TransactionStateError, match="no datastore is open"):
        await free(ds, A)
    async with ds:
        assert await plain(A) == 1
        assert await free(ds, A)
        assert await Service().method(A) == 3
        with pytest.raises(TransactionStateError):
            await mandatory(A)
        await never_inside()
        async with ds.transaction():
            assert await plain(A) == 4
            assert await mandatory(A) == 5
            assert await paused(A) == 3
            assert await independent(B) == 1
            async with ds.non_transactional():
                assert not ds.in_transaction()
            with pytest.raises(TransactionStateError):
                await never_inside()
        assert [await number(ds, key) for key in (A, B)] == [5, 1]
        async with other:
            with pytest.raises(TransactionStateError, match="2 datastores"):
                await free(ds, A)
            async with other.transaction():
                assert not ds.in_transaction()
                assert await free(other, A)
                assert not await free(ds, B)
            assert [await number(ds, B), await number(other, A)] == [2, 1]
    with pytest.raises(BadArgumentError, match="async"):
        ds.transactional(store)  # type: ignore[arg-type]  # this is what is tested
    for wrong in (-1, "3", 1.0, True):
        with pytest.raises(BadArgumentError, match="retries"):
            ds.transactional(retries=wrong)  # type: ignore[arg-type]  # this is what is tested
        with pytest.raises(BadArgumentError, match="retries"):
            await ds.run_in_transaction(add, retries=wrong)  # type: ignore[arg-type]  # this is what is tested


async def test_transactions_of_two_datastores_are_apart() -> None:
    ds, _ = store()
    other, _ = store()
    async with ds, other:
        async with ds.transaction():
            await ds.put(entity(A, 1))
            async with other.transaction():
                await other.put(entity(A, 2))
                await ds.put(entity(B, 1))
                assert await number(other, A) == 2
            assert await number(other, A) == 2
            raise Rollback
        assert [await number(ds, A), await number(ds, B), await number(other, A)] == [None, None, 2]


# ------------------------------------------------------------------------------------------ by hand


async def test_by_hand() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        first, second = ds.begin(), ds.begin()
        assert not ds.in_transaction()
        for transaction in (first, second):
            found = await transaction.get(A)
            assert found is not None
            found["n"] += 1
            await transaction.put(found)
            assert await transaction.query("T").sum("n") == 2
            assert await transaction.query("T").filter("n", "=", 2).keys() == [A]
        assert await number(ds, A) == 1
        await first.commit()
        with pytest.raises(TransactionFailedError):
            await second.commit()
        assert await number(ds, A) == 2
        for transaction in (first, second):
            assert not transaction.is_active
            calls: dict[str, list[Any]] = {"get": [A], "put": [entity(A)], "delete": [A], "allocate_ids": [A, 1]}
            for call, arguments in {**calls, "commit": [], "rollback": []}.items():
                with pytest.raises(TransactionClosedError):
                    await getattr(transaction, call)(*arguments)
            with pytest.raises(TransactionClosedError):
                transaction.query("T")
        third = ds.begin(read_only=True)
        operations: list[Any] = [
            lambda: third.put(entity(A)),
            lambda: third.insert(entity(A)),
            lambda: third.delete(A),
            lambda: third.get_or_insert(B),
        ]
        for operation in operations:
            with pytest.raises(TransactionStateError, match="read-only"):
                await operation()
        assert await third.allocate_ids(Key("X"), 2) == (1, 2)
        await third.rollback()


async def test_ended_by_hand_inside_a_block() -> None:
    ds, _ = store()
    async with ds:
        async with ds.transaction() as transaction:
            await ds.put(entity(A, 1))
            await transaction.commit()
            with pytest.raises(TransactionClosedError):
                await ds.put(entity(A, 2))
        async with ds.transaction() as transaction:
            await ds.put(entity(A, 3))
            await transaction.rollback()
        assert await number(ds, A) == 1


# ----------------------------------------------------------------------------------------- callbacks


async def test_callbacks_run_after_the_commit_and_only_then() -> None:
    ds, _ = store()
    async with ds:
        calls: list[Any] = []
        attempts = 0

        async def after() -> None:
            calls.append((ds.in_transaction(), await number(ds, A)))

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            ds.on_commit(after)
            ds.on_commit(lambda: calls.append(attempts))
            await add(ds, A)
            if attempts == 1:
                await outside(ds, A, 5)
            assert not calls

        await ds.run_in_transaction(body)
        assert calls == [(False, 6), 2]
        calls.clear()
        async with ds.transaction():
            ds.on_commit(after)
            await ds.put(entity(A))
            raise Rollback
        async with ds.transaction():
            ds.on_commit(after)
        assert calls == [(False, 6)]
        with pytest.raises(TransactionStateError):
            ds.on_commit(after)
        async with ds.transaction():
            with pytest.raises(BadArgumentError):
                ds.on_commit(None)  # type: ignore[arg-type]  # this is what is tested


async def test_callbacks_that_fail_undo_nothing() -> None:
    ds, _ = store()
    async with ds:
        calls: list[int] = []
        attempts = 0

        def fail(error: type[Exception]) -> Any:
            def failing() -> None:
                raise error("mine")

            return failing

        async def body(*errors: type[Exception]) -> None:
            nonlocal attempts
            attempts += 1
            for error in errors:
                ds.on_commit(fail(error))
            ds.on_commit(lambda: calls.append(1))
            await add(ds, A)

        with pytest.raises(ValueError, match="mine"):
            await ds.run_in_transaction(body, ValueError)
        with pytest.raises(ExceptionGroup):
            await ds.run_in_transaction(body, ValueError, TransactionFailedError)
        assert (attempts, calls, await number(ds, A)) == (2, [1, 1], 2)


# --------------------------------------------------------------------------------- tasks, cancellation


async def test_child_tasks_take_part() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(A, 1), entity(B, 2)])
        adapter.lookups.clear()
        adapter.commits.clear()
        total: list[int] = []

        async def one(key: Key) -> None:
            assert ds.in_transaction()
            total.append(await add(ds, key, 10))
            await ds.put(Entity(Key("Log"), {"n": 1}))

        async def body() -> None:
            async with anyio.create_task_group() as group:
                for key in (A, B, C):
                    group.start_soon(one, key)
            assert await ds.query("Log").count() == 3

        await ds.run_in_transaction(body)
        assert sorted(total) == [10, 11, 12]
        assert [await number(ds, key) for key in (A, B, C)] == [11, 12, 10]
        assert await ds.query("Log").count() == 3
        assert len(adapter.commits) == 1
        assert len(adapter.lookups[:2]) == 2


async def test_side_by_side_reads_are_of_one_moment() -> None:
    ds, _ = store()
    keys = [Key("Many", n) for n in range(1, 8)]
    source = random.Random(3)
    async with ds:
        await ds.put([entity(key, 0) for key in keys])
        running = True

        async def write() -> None:
            generation = 0
            while running:
                generation += 1
                await ds.put([entity(key, generation) for key in keys])
                await anyio.sleep(source.random() / 300)

        async def body() -> None:
            found: list[int | None] = []

            async def read(key: Key) -> None:
                await anyio.sleep(source.random() / 100)
                found.append(await number(ds, key))

            async with anyio.create_task_group() as group:
                for key in keys:
                    group.start_soon(read, key)
            assert len(set(found)) == 1

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            for _ in range(10):
                try:
                    await ds.run_in_transaction(body, retries=1)
                except TransactionFailedError:
                    pass
            running = False


async def test_a_task_that_outlives_its_transaction_is_told() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A, 1))
        go, errors = anyio.Event(), []

        async def late() -> None:
            await go.wait()
            operations: list[Any] = [
                lambda: ds.get(A),
                lambda: ds.put(entity(A, 99)),
                lambda: ds.delete(A),
                lambda: ds.query("T").fetch(),
                lambda: ds.query("T").count(),
                lambda: ds.run_in_transaction(add, ds, A),
                lambda: ds.run_in_transaction(add, ds, A, propagation=Propagation.ALLOWED),
                lambda: ds.get_or_insert(B),
            ]
            for operation in operations:
                with pytest.raises(TransactionClosedError) as error:
                    await operation()
                errors.append(error.value)
            with ds.non_transactional():
                assert await number(ds, A) == 2
            assert await ds.run_in_transaction(add, ds, B, propagation=Propagation.INDEPENDENT) == 1

        async with anyio.create_task_group() as group:
            async with ds.transaction():
                group.start_soon(late)
                await add(ds, A)
            go.set()
        assert len(errors) == 8
        assert [await number(ds, key) for key in (A, B)] == [2, 1]


async def test_what_is_under_way_at_the_end_is_refused() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(entity(A, 1))
        results: list[Any] = []

        async def operate(operation: Any) -> None:
            try:
                results.append(await operation())
            except TransactionClosedError as exc:
                results.append(type(exc))

        gate = adapter.before_lookup = Gate()
        async with anyio.create_task_group() as group:
            async with ds.transaction():
                group.start_soon(operate, lambda: ds.get(A))
                group.start_soon(operate, lambda: ds.insert(entity(B)))
                await gate.arrived.wait()
                await anyio.wait_all_tasks_blocked()
                await ds.put(entity(C, 1))
            gate.opened.set()
        assert results == [TransactionClosedError] * 2
        assert [await number(ds, key) for key in (A, B, C)] == [1, None, 1]


async def test_cancelled_it_rolls_back() -> None:
    ds, adapter = store()
    async with ds:
        started = anyio.Event()
        attempts = 0

        async def body() -> None:
            nonlocal attempts
            attempts += 1
            await add(ds, A)
            started.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(ds.run_in_transaction, body)
            await started.wait()
            group.cancel_scope.cancel()
        assert attempts == 1
        assert not adapter.commits
        assert await number(ds, A) is None


@pytest.mark.parametrize("way", ["function", "block"])
async def test_cancelled_while_it_commits_it_is_waited_for(way: str) -> None:
    ds, adapter = store()
    async with ds:
        calls: list[str] = []
        gate = adapter.before_commit = Gate()
        new = Entity(Key("New"))

        async def after() -> None:
            await anyio.lowlevel.checkpoint()
            calls.append("after")

        async def body() -> None:
            await ds.put([entity(A, 1), new])
            ds.on_commit(after)

        async def run() -> None:
            with scope:
                if way == "function":
                    await ds.run_in_transaction(body)
                else:
                    async with ds.transaction():
                        await body()
                await anyio.lowlevel.checkpoint()
                calls.append("not cancelled")

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await gate.arrived.wait()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            gate.opened.set()
        assert calls == ["after"]
        assert scope.cancelled_caught
        assert new.version > 0
        assert await number(ds, A) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_cancels_no_commit_of_a_transaction() -> None:
    ds, adapter = store()
    async with ds:
        calls: list[str] = []
        gate = adapter.before_commit = Gate()

        async def after() -> None:
            await anyio.lowlevel.checkpoint()
            calls.append("after")

        async def body() -> None:
            await ds.put(entity(A, 1))
            ds.on_commit(after)

        task = asyncio.create_task(ds.run_in_transaction(body))
        await gate.arrived.wait()
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls == ["after"]
        assert await number(ds, A) == 1


async def test_cancellation_at_every_step_leaves_all_or_nothing() -> None:
    """Cancel after n turns of the loop, for every n until it gets through."""
    for turns in range(200):
        ds, _ = store()
        async with ds:
            await ds.put([entity(A, 1), entity(B, 1)])
            done = False

            async def body(ds: Datastore = ds) -> None:
                await add(ds, A)
                assert await ds.query("T").count() == 2
                await add(ds, B)

            async def run(ds: Datastore = ds) -> None:
                nonlocal done
                await ds.run_in_transaction(body)
                done = True

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            assert [await number(ds, key) for key in (A, B)] in ([1, 1], [2, 2])
            assert await number(ds, A) == 2 or not done
            await ds.run_in_transaction(body)
            assert ds._contention.idle()
            if done:
                return
    pytest.fail("it never got through")


async def test_the_datastores_timeout_holds_inside() -> None:
    ds, adapter = store(timeout=0.02)
    async with ds:
        adapter.before_lookup = anyio.sleep_forever
        for operation in (lambda: ds.get(A), lambda: ds.get([A]), lambda: ds.insert(entity(A))):
            transaction = ds.begin()
            async with ds.transaction():
                with pytest.raises(DeadlineExceededError):
                    await operation()
            with pytest.raises(DeadlineExceededError):
                await transaction.get(A)


async def test_a_commit_that_can_not_be_sent_fails() -> None:
    ds, adapter = store()
    async with ds:
        adapter.commit_error = StoreBusyError("busy")
        new = Entity(Key("New"))

        async def body() -> None:
            await ds.put(new)

        with pytest.raises(StoreBusyError):
            await ds.run_in_transaction(body)
        # Nobody knows whether it was written: put again, it is the same entity.
        assert new.key.is_complete
        adapter.commit_error = None
        with pytest.raises(BadRequestError):
            await ds.run_in_transaction(ds.put, Entity(A, {"tags": list(range(20_001))}))


async def test_functions_need_not_be_coroutines() -> None:
    ds, _ = store()
    async with ds:
        assert await ds.run_in_transaction(lambda: 5) == 5
        assert await ds.run_in_transaction(ds.get, A) is None


async def test_an_ended_transaction_holds_nothing() -> None:
    ds, _ = store()
    async with ds:
        async with ds.transaction() as transaction:
            await ds.put(entity(A))
            await ds.get(B)
        gc.collect()
        assert not transaction._writes
        assert not transaction._view.entities


# ----------------------------------------------------------------------------------------------- lines


@pytest.mark.usefixtures("patience")
async def test_lines_are_first_come_first_served_and_survive_cancellation() -> None:
    contention = Contention()
    order: list[int] = []

    async def enter(n: int) -> None:
        assert await contention.enter(A)
        order.append(n)
        await anyio.lowlevel.checkpoint()
        contention.leave(A)

    assert contention.hot([A]) is None
    assert await contention.enter(A)
    assert contention.hot([B, A]) == A
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await enter(99)

        group.start_soon(enter, 1)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(enter, 2)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        contention.leave(A)
    assert order == [1, 2]
    assert contention.idle()


@pytest.mark.usefixtures("patience")
async def test_a_task_that_gets_its_turn_too_late_leaves_the_line() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(entity(A))
        assert await ds._contention.enter(A)
        async with anyio.create_task_group() as group:

            async def late() -> None:
                with pytest.raises(TransactionClosedError):
                    await ds.get(A)

            async def body() -> None:
                group.start_soon(late)
                await anyio.wait_all_tasks_blocked()

            await ds.run_in_transaction(body)
            ds._contention.leave(A)
        assert ds._contention.idle()


async def test_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodatastore.contention.PATIENCE_S", 0.01)
    contention = Contention()
    assert await contention.enter(A)
    assert not await contention.enter(A)
    contention.leave(A)
    assert contention.idle()
