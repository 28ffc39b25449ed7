"""The tables of a store and their versions: made at its first open, all in one schema.

``@`` stands for the schema's name, as the server's own ``quote_ident`` writes it. Every name is qualified, so nothing
depends on a ``search_path``, which a pooler or an application's own pool would have to keep.

A B-tree holds at most about 2700 bytes a row, and an index row may have ten thousand. Longer ones are kept in
``long_entities`` and ``long_rows``, whose indexes have the first bytes (for order) and a hash (to find one). A store
that never met one (``meta.long`` is false) never looks there.
"""

from __future__ import annotations

from typing import Final

from aiodatastore.adapters.postgres.functions import SHORT, functions
from aiodatastore.adapters.postgres.views import VIEWS

__all__ = ["MIGRATIONS"]

_TABLES: Final = f"""
CREATE TABLE @.meta (
    id int PRIMARY KEY CHECK (id = 0),
    version bigint NOT NULL,
    long boolean NOT NULL,
    heard timestamptz  -- until when somebody may listen for what is committed
) WITH (fillfactor = 10);
INSERT INTO @.meta VALUES (0, 0, false);

CREATE TABLE @.entities (
    key bytea PRIMARY KEY,
    version bigint NOT NULL,
    payload bytea NOT NULL,
    rows bytea[] NOT NULL,
    tails bigint[] NOT NULL  -- empty where all are the length of the key
);
CREATE TABLE @.rows (row bytea NOT NULL, tail bigint NOT NULL, PRIMARY KEY (row) INCLUDE (tail));

CREATE TABLE @.long_entities (LIKE @.entities);
CREATE INDEX ON @.long_entities USING hash (key);
CREATE INDEX ON @.long_entities (substr(key, 1, {SHORT}));
CREATE TABLE @.long_rows (LIKE @.rows);
CREATE INDEX ON @.long_rows USING hash (row);
CREATE INDEX ON @.long_rows (substr(row, 1, {SHORT}));

CREATE TABLE @.sequences (hash bytea PRIMARY KEY, name bytea NOT NULL, next bigint NOT NULL) WITH (fillfactor = 50);

CREATE TABLE @.tokens (
    slot bytea PRIMARY KEY,
    number bigint NOT NULL,
    used timestamptz NOT NULL,
    start bigint NOT NULL,
    check_of int[],
    checks int[],
    actual bigint[],
    span_of int[]
) WITH (fillfactor = 50);

CREATE TYPE @.put AS (of int, version bigint, key bytea, payload bytea, rows bytea[], tails bigint[]);

COMMENT ON TABLE @.meta IS 'one row: the version of the last commit';
COMMENT ON TABLE @.entities IS 'encoded keys and payloads, with the names of their index rows';
COMMENT ON TABLE @.rows IS 'rows of all indexes, in order';
COMMENT ON TABLE @.sequences IS 'the next id of each kind';
COMMENT ON TABLE @.tokens IS 'the last batch of each writer, and what became of it';
"""

MIGRATIONS: Final[tuple[str, ...]] = (_TABLES + functions() + VIEWS,)
"""What leads from each version of the schema to the next, from 0: none. A released one is never changed."""
