"""What all tests share: the event loops that asynchronous tests run on, how long Hypothesis looks, and the servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from aiodatastore.testing.servers import GivenServer, PostgresServer, ServerError, ValkeyCluster, ValkeyServer
from tests.engines import ENGINES, Bound, ClusterSession, Engine, Place, PostgresSession, RedisSession
from tests.suites import load_profile

load_profile()  # before any test is imported: Hypothesis gives most of them their settings then

REQUIRED = os.environ.get("AIODATASTORE_TEST_SERVERS") == "required"
"""A run that must not pass without having tried the servers: a missing one is a failure, not a skip."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of tests marked ``anyio``: each runs on both."""
    name: str = request.param
    if name == "trio":
        pytest.importorskip("trio")
    return name


def missing(exc: ServerError) -> NoReturn:
    if REQUIRED:
        raise exc
    pytest.skip(str(exc))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer | GivenServer]:
    """PostgreSQL, started when the first test wants it; the one that ``AIODATASTORE_TEST_POSTGRES`` names, if set.

    It does not wait for the disk: tests of durability start servers of their own.
    """
    if given := os.environ.get("AIODATASTORE_TEST_POSTGRES"):
        yield GivenServer(given)
        return
    try:
        server = PostgresServer(fsync="off", synchronous_commit="off", full_page_writes="off")
    except ServerError as exc:
        missing(exc)
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer | GivenServer]:
    """Valkey, started when the first test wants it; the one that ``AIODATASTORE_TEST_REDIS`` names, if set."""
    if given := os.environ.get("AIODATASTORE_TEST_REDIS"):
        yield GivenServer(given)
        return
    try:
        server = ValkeyServer()
    except ServerError as exc:
        missing(exc)
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[ValkeyCluster | GivenServer]:
    """A cluster, started when the first test wants it; the one that ``AIODATASTORE_TEST_CLUSTER`` names, if set.

    Its nodes are patient, and it has no replicas: tests of failover start clusters of their own.
    """
    if given := os.environ.get("AIODATASTORE_TEST_CLUSTER"):
        yield GivenServer(given)
        return
    try:
        cluster = ValkeyCluster(replicas=0, node_timeout_ms=15000, appendonly="no")
    except ServerError as exc:
        missing(exc)
    with cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_session(valkey_cluster: ValkeyCluster | GivenServer) -> Iterator[ClusterSession]:
    """Synchronous connections to the nodes of a cluster."""
    session = ClusterSession(valkey_cluster.dsn)
    yield session
    session.close()


@pytest.fixture(scope="session")
def postgres_session(postgres_server: PostgresServer | GivenServer) -> Iterator[PostgresSession]:
    """A synchronous connection to PostgreSQL."""
    session = PostgresSession(postgres_server.dsn)
    yield session
    session.close()


@pytest.fixture(scope="session")
def redis_session(valkey_server: ValkeyServer | GivenServer) -> Iterator[RedisSession]:
    """A synchronous connection to Valkey."""
    session = RedisSession(valkey_server.dsn)
    yield session
    session.close()


@pytest.fixture(params=ENGINES.values(), ids=str)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Bound:
    """Each engine, or those that :func:`tests.engines.engines` chooses."""
    chosen: Engine = request.param
    return Bound(chosen, request.getfixturevalue(chosen.session) if chosen.session else None, tmp_path)


@pytest.fixture
def place(engine: Bound) -> Iterator[Place]:
    """An empty store of the engine."""
    with engine.place() as made:
        yield made
