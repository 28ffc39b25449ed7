"""The tables of the file, and the statements that read them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from aiodatastore.rowstore import Space

__all__ = [
    "APPLICATION_ID",
    "COUNT",
    "COUNT_ONLY",
    "FIND",
    "FIND_KEYS",
    "FORMAT_VERSION",
    "GET",
    "PACK",
    "PACK_ROWS",
    "SCANS",
    "SCHEMA",
    "TALLY",
    "VERSION",
    "chunks",
    "values",
]

APPLICATION_ID: Final = 0x41446453  # "ADdS"
FORMAT_VERSION: Final = 1

SCHEMA = """
CREATE TABLE entities (key BLOB PRIMARY KEY, version INTEGER NOT NULL, payload BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (row BLOB PRIMARY KEY, tail INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sequences (name BLOB PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), version INTEGER NOT NULL);
INSERT INTO meta VALUES (0, 0);
"""

VERSION = "SELECT version FROM meta"
GET = "SELECT version, payload FROM entities WHERE key = ?"
# Where there are many parameters they are made bytearrays: sqlite3 binds those at once, but asks its adapters, and
# for an attribute that is not there, about every bytes object (0.6 µs each, a fifth of an inserted row).
# A LEFT JOIN also pins the order of the loops: the span outside, one entity look-up inside for each row.
SCAN_JOINED = (
    "SELECT r.row a, r.tail b, e.version c, e.payload d FROM rows r"
    " LEFT JOIN entities e ON e.key = substr(r.row, -(r.tail & 1048575))"
    " WHERE r.row >= ? AND r.row < ? ORDER BY r.row {order} LIMIT ?"
)
SCAN_ROWS = "SELECT row a, tail b, NULL c, NULL d FROM rows WHERE row >= ? AND row < ? ORDER BY row {order} LIMIT ?"
SCAN_ENTITIES = (
    "SELECT key a, 0 b, version c, payload d FROM entities WHERE key >= ? AND key < ? ORDER BY key {order} LIMIT ?"
)
SCAN_KEYS = SCAN_ENTITIES.replace("payload d", "NULL d")
SCANS = {
    (space, joined, reverse): text.format(order="DESC" if reverse else "ASC")
    for space, joined, text in (
        (Space.ENTITY, True, SCAN_ENTITIES),
        (Space.ENTITY, False, SCAN_KEYS),
        (Space.INDEX, True, SCAN_JOINED),
        (Space.INDEX, False, SCAN_ROWS),
    )
    for reverse in (False, True)
}
"""By space, whether entities are joined, and whether the scan goes backward: texts that the statement cache knows."""
FIND = "WITH k(k) AS (VALUES {values}) SELECT k a, 0 b, version c, payload d FROM k CROSS JOIN entities ON key = k"
FIND_KEYS = FIND.replace("payload d", "NULL d")
COUNT = {
    Space.ENTITY: f"SELECT count(*), 0, ({VERSION}) FROM (SELECT 1 FROM entities WHERE key >= ? AND key < ? LIMIT ?)",
    Space.INDEX: f"SELECT count(*), coalesce(sum(tail & 1048576) >> 20, 0), ({VERSION})"
    " FROM (SELECT tail FROM rows WHERE row >= ? AND row < ? LIMIT ?)",
}
COUNT_ONLY = {space: text.replace(f"({VERSION})", "0") for space, text in COUNT.items()}
# A span's rows, counted by what is between the first bytes and the key.
TALLY = (
    "SELECT substr(row, ? + 1, length(row) - ? - (tail & 1048575)), tail >> 20, count(*) FROM rows"
    " WHERE row >= ? AND row < ? GROUP BY 1, 2"
)
# All rows in one step. sqlite3 takes the GIL again after every step, and while the event loop computes, a
# thread waits up to 5 ms for it: 1000 rows fetched one by one could take seconds.
PACK = (
    "SELECT CAST(group_concat(a, '') AS BLOB), group_concat(length(a)), group_concat(b),"
    " group_concat(coalesce(c, 0)), CAST(group_concat(d, '') AS BLOB), group_concat(coalesce(length(d), -1))"
    " FROM ({query})"
)
PACK_ROWS = 500  # of up to a megabyte each: one packed value must stay below SQLite's limit of 1 GB


@lru_cache(maxsize=256)
def values(count: int, width: int = 1) -> str:
    """The placeholders of so many rows."""
    return ",".join(["(" + ",".join("?" * width) + ")"] * count)


def chunks(count: int, largest: int = 8192) -> Iterator[tuple[int, int]]:
    """Cut into powers of two and one rest of up to 16, so that few different statements are needed."""
    start = 0
    while left := count - start:
        size = left if left <= 16 else min(largest, 1 << (left.bit_length() - 1))
        yield start, size
        start += size
