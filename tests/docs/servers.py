"""Servers for the examples of pages: what a page calls ``localhost`` is a server of the tests.

In ``python`` and ``shell`` blocks

- ``postgresql://localhost/shop`` (with a user, a password or the port 5432, too) is an empty database of the test
  server, one for each name in the page;
- ``redis://localhost``, ``redis://localhost:6379/1`` is an empty database of the test server, one for each number;
- ``redis+cluster://localhost:6379?prefix=shop`` is the test cluster, with a prefix of the page's own.

What follows (``?schema=...``) stays. Addresses of any other host or port stay as they are. ``sql`` blocks run in the
first such PostgreSQL database of the page, each in a transaction that is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.engines import ClusterSession, PostgresSession, RedisSession, fresh_name

__all__ = ["Servers"]

_POSTGRES = re.compile(r"postgres(?:ql)?://(?:[^@/\s\"'`]*@)?localhost(?::5432)?/(\w+)")
_REDIS = re.compile(r"redis://(?:[^@/\s\"'`]*@)?localhost(?::6379)?(?![:\w.-])(?:/(\d+))?")
_CLUSTER = re.compile(r"redis\+cluster://localhost(?::6379)?/?\?prefix=(\w+)")
_IN_USE = "in-use-by-an-example"


class Servers:
    """The servers of one page, its databases made when they are first named; ``session`` gives a fixture."""

    def __init__(self, session: Callable[[str], Any]) -> None:
        self._session = session
        self._stack = ExitStack()
        self._postgres: dict[str, str] = {}
        self._redis: dict[str, str] = {}
        self._clusters: dict[str, str] = {}

    def substitute(self, text: str) -> str:
        """The text with the test servers' addresses in it."""
        text = _CLUSTER.sub(lambda found: self._cluster_prefix(found[1]), text)
        text = _POSTGRES.sub(lambda found: self._postgres_database(found[1]), text)
        return _REDIS.sub(lambda found: self._redis_database(found[1] or "0"), text)

    def run_sql(self, text: str) -> bool:
        """Run statements, and take back what they did; false if the page has named no database."""
        for dsn in self._postgres.values():
            session = PostgresSession(dsn)
            try:
                session.run("BEGIN")
                for statement in filter(None, map(str.strip, _statements(text))):
                    session.run(statement)
                session.run("ROLLBACK")
            finally:
                session.close()
            return True
        return False

    def close(self) -> None:
        """Remove the databases."""
        self._stack.close()

    def _postgres_database(self, name: str) -> str:
        if name not in self._postgres:
            session: PostgresSession = self._session("postgres_session")
            real = f"{fresh_name()}_{name}"
            session.run(f'CREATE DATABASE "{real}"')
            self._stack.callback(session.run, f'DROP DATABASE IF EXISTS "{real}" WITH (FORCE)')
            self._postgres[name] = urlsplit(session.dsn)._replace(path=f"/{real}", query="").geturl()
        return self._postgres[name]

    def _cluster_prefix(self, name: str) -> str:
        if name not in self._clusters:
            session: ClusterSession = self._session("cluster_session")
            prefix = f"{fresh_name()}_{name}"
            self._stack.callback(session.remove, prefix)
            self._clusters[name] = f"{session.dsn}?prefix={prefix}"
        return self._clusters[name]

    def _redis_database(self, number: str) -> str:
        if number not in self._redis:
            from redis import Redis

            session: RedisSession = self._session("redis_session")
            for free in range(15, 0, -1):  # 0 has the other tests' prefixes
                dsn = urlsplit(session.dsn)._replace(path=f"/{free}", query="").geturl()
                client = Redis.from_url(dsn)
                self._stack.callback(client.close)
                if client.set(_IN_USE, 1, nx=True):
                    if client.dbsize() == 1:
                        self._stack.callback(client.flushdb)
                        break
                    client.delete(_IN_USE)
            else:
                pytest.skip("no database of the Redis server is empty")
            self._redis[number] = dsn
        return self._redis[number]


def _statements(text: str) -> list[str]:
    """Statements that end with a semicolon at the end of a line, less comments."""
    return re.split(r";\s*$", re.sub(r"--.*$", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
