"""PostgreSQL behind a real pgbouncer in transaction mode, its server sessions taken in turns.

The binary is the one on the PATH, or the one that ``AIODATASTORE_TEST_PGBOUNCER`` names.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("asyncpg")

from aiodatastore import Capability, Datastore, Entity, Key
from aiodatastore.adapters.postgres import PostgresRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import UnavailableError, UnsupportedError
from aiodatastore.shims.cached import Cached
from aiodatastore.shims.sharded import Sharded
from aiodatastore.testing.servers import GivenServer, PgBouncer, PostgresServer, ServerError
from tests.adapters.rows import commit, puts
from tests.engines import PostgresSession

pytestmark = pytest.mark.anyio

PREPARES_SINCE = (1, 21)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def in_front_of(dsn: str, **settings: str | int) -> PgBouncer:
    try:
        return PgBouncer(dsn, os.environ.get("AIODATASTORE_TEST_PGBOUNCER", "pgbouncer"), **settings)
    except ServerError as exc:
        pytest.skip(str(exc))


@pytest.fixture(params=[0, 100], ids=["unnamed", "named"])
def statements(request: pytest.FixtureRequest) -> int:
    """How many statements a connection prepares."""
    count: int = request.param
    return count


@pytest.fixture
def pooler(postgres_server: PostgresServer | GivenServer, statements: int) -> Iterator[PgBouncer]:
    settings = {"max_prepared_statements": statements} if statements else {}
    made = in_front_of(postgres_server.dsn, server_round_robin=1, server_login_retry=1, default_pool_size=5, **settings)
    if statements and made.version < PREPARES_SINCE:
        made.remove()
        pytest.skip("this pgbouncer is older than 1.21 and keeps no prepared statements")
    with made:
        yield made


@pytest.fixture
def url(pooler: PgBouncer, statements: int, space: str) -> str:
    return f"{pooler.dsn}?pooler=transaction&statement_cache_size={statements}&schema={space}"


async def test_64_tasks_at_once(url: str) -> None:
    async with Datastore(url, max_size=8) as ds, Datastore(url) as other:

        async def work(n: int) -> None:
            key = Key("K", n)
            await ds.put(Entity(key, {"n": n, "tags": ["all", f"t{n % 8}"]}))
            assert await other.get(key) == Entity(key, {"n": n, "tags": ["all", f"t{n % 8}"]})
            for store in (ds, other):

                @store.transactional(retries=50)
                async def count(store: Datastore = store) -> None:
                    entity = await store.get(Key("Count", n % 16 + 1)) or Entity(Key("Count", n % 16 + 1), {"n": 0})
                    await store.put(Entity(entity.key, {"n": entity["n"] + 1}))

                await count()
            found = await other.query("K").filter("tags", "=", "all").filter("tags", "=", f"t{n % 8}").fetch()
            assert n in {each["n"] for each in found}
            assert await ds.query("K").filter("n", "=", n).count() == 1

        await asyncio.gather(*[work(n) for n in range(1, 65)])
        assert [each["n"] for each in await ds.query("Count").fetch()] == [8] * 16
        await ds.put([Entity(Key("Many", n), {"n": n}) for n in range(1, 701)])  # by COPY, in a transaction
        assert await other.query("Many").filter("n", ">", 50).count() == 650
        await ds.delete([Key("K", n) for n in range(1, 65)])
        assert await other.query("K").fetch() == []
        assert await ds.check() == []


async def test_commits_are_prepared_and_resolved(url: str, space: str, postgres_session: PostgresSession) -> None:
    if postgres_session.run("SHOW max_prepared_transactions")[0][0] == "0":
        pytest.skip("the server's max_prepared_transactions is 0")
    shards = [adapter_from_url(each) for each in (url, url.replace(space, space + "2"))]
    try:
        async with Datastore(Sharded(shards)) as ds:
            assert all(Capability.TWO_PHASE in each.capabilities for each in shards)

            @ds.transactional(retries=50)
            async def move(n: int) -> None:
                entities = await ds.get([Key("K", each) for each in range(1, 9)])
                await ds.put([Entity(Key("K", each), {"n": n}) for each in range(1, 9)])
                assert len({each and each["n"] for each in entities}) == 1

            await asyncio.gather(*[move(n) for n in range(8)])
            assert len({each["n"] for each in await ds.query("K").fetch()}) == 1
            assert [await each.prepared() for each in shards] == [[], []]
    finally:
        postgres_session.run(f'DROP SCHEMA IF EXISTS "{space}2" CASCADE')


async def test_nobody_is_told_of_commits(url: str) -> None:
    """LISTEN is of a session, and there is none: caches that insist are refused, others go by the time."""
    async with Datastore(url) as ds:
        await ds.put(Entity(Key("K", 1), {"n": 1}))
        with pytest.raises(UnsupportedError, match="does not tell of commits"):
            await Datastore(Cached(adapter_from_url(url), staleness_s=0.1, invalidation="push")).open()
        async with Datastore(Cached(adapter_from_url(url), staleness_s=0.1)) as cached:
            assert await cached.get(Key("K", 1)) == Entity(Key("K", 1), {"n": 1})
            await ds.put(Entity(Key("K", 1), {"n": 2}))
            await asyncio.sleep(0.1)
            assert await cached.get(Key("K", 1)) == Entity(Key("K", 1), {"n": 2})


async def test_lost_sessions_and_a_killed_pooler(
    pooler: PgBouncer, url: str, space: str, postgres_session: PostgresSession
) -> None:
    async with Datastore(url) as ds:
        await ds.put(Entity(Key("Count", 1), {"n": 0}))

        @ds.transactional(retries=50)
        async def count() -> None:
            entity = await ds.get(Key("Count", 1))
            assert entity is not None
            await ds.put(Entity(entity.key, {"n": entity["n"] + 1}))

        for step in range(6):
            counting = asyncio.gather(*[count() for _ in range(10)])
            await asyncio.sleep(0.005 * step)
            if step % 2:
                pooler.kill9()
                pooler.start()
            else:
                postgres_session.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE $1 AND pid <> $2",
                    f"%{space}%",
                    postgres_session.run("SELECT pg_backend_pid()")[0][0],
                )
            await counting
        found = await ds.get(Key("Count", 1))
        assert found is not None
        assert found["n"] == 60


async def test_a_server_that_comes_back_is_waited_for() -> None:
    """pgbouncer does not try again before ``server_login_retry``, in which every call is refused."""
    try:
        server = PostgresServer(fsync="off")
    except ServerError as exc:
        pytest.skip(str(exc))
    with server, in_front_of(server.dsn, server_login_retry=2) as pooler:
        store = PostgresRowStore(pooler.dsn, pooler="transaction", retry_s=60)
        await store.open()
        await commit(store, puts((b"a", b"x")))
        await asyncio.to_thread(server.kill9)
        waiting = asyncio.create_task(commit(store, puts((b"b", b"x"))))
        await asyncio.sleep(0.3)  # it has failed once
        await asyncio.to_thread(server.start)
        assert [outcome.version for outcome in await waiting] == [2]
        assert (await store.read([b"a", b"b"])).records == [(1, b"x"), (2, b"x")]
        await store.aclose()


async def test_who_forgets_to_say_so_is_told(pooler: PgBouncer, space: str) -> None:
    before = time.monotonic()
    with pytest.raises(UnavailableError, match=r"unsupported startup parameter.*say pooler=transaction"):
        await PostgresRowStore(pooler.dsn, schema=space, retry_s=100).open()
    assert time.monotonic() < before + 90
