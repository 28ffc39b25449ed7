"""Servers that keep what they have acknowledged, for tests that kill them or cut their connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiodatastore.testing.servers import PostgresServer, Server, ServerError, ValkeyServer
from tests.conftest import missing


@pytest.fixture(params=["postgres", "redis"])
def durable_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own: PostgreSQL as it comes, Valkey with ``appendfsync always``."""
    try:
        made: Server = (
            PostgresServer()
            if request.param == "postgres"
            else ValkeyServer(appendonly="yes", appendfsync="always", aof_use_rdb_preamble="no")
        )
    except ServerError as exc:
        missing(exc)
    with made:
        yield made
