"""The statements of a store, for its schema and for whether it has long rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from aiodatastore.adapters.postgres.functions import spanned
from aiodatastore.rowstore import Space

__all__ = ["SESSION", "Statements", "statements"]

SESSION: Final = {
    "jit": "off",
    "default_transaction_isolation": "read committed",
    # Plans are made once, perhaps while the tables are empty; this leaves only those that stay right: along an index.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_memoize": "off",
    "idle_in_transaction_session_timeout": "60s",
}
"""Settings of the connections a store makes for itself."""

_WRITE_PARAMETERS: Final = 27
_PLAIN_PARAMETERS: Final = 12
_VERIFY_PARAMETERS: Final = 11


@dataclass(frozen=True, slots=True)
class Statements:
    """Every statement has ``$1``, ``$2``, … for its values; the only name in them is the schema's.

    Those that read give the store's version with the rows; a version of -2 tells that the store has
    long rows, and has to be asked with the statements for those.
    """

    get: str
    read: str
    scan_joined: tuple[str, str]
    scan_rows: tuple[str, str]
    scan_entities: tuple[str, str]
    scan_keys: tuple[str, str]
    many_joined: tuple[str, str]
    many_rows: tuple[str, str]
    many_entities: tuple[str, str]
    many_keys: tuple[str, str]
    count: dict[Space, str]
    tally: str
    intersect: str
    intersect_joined: str
    verify: str
    write: str
    write_plain: str
    allocate: str
    sizes: str
    version: str
    existing: str


@lru_cache(maxsize=32)
def statements(schema: str, long: bool) -> Statements:
    """``schema`` as the server's ``quote_ident`` writes it."""

    def named(text: str) -> str:
        return text.replace("@", schema)

    suffix = "_long" if long else ""
    meta = f"CASE WHEN long AND {not long} THEN -2 ELSE version END"
    also = "UNION ALL SELECT version, payload FROM @.long_entities WHERE key = {key}" if long else ""
    entity = f"SELECT version, payload FROM @.entities WHERE key = {{key}} {also} LIMIT 1"
    of_row = entity.format(key="substr(r.row, (octet_length(r.row) - (r.tail & 1048575) + 1)::int)")

    def scan(rows: str, reverse: bool) -> str:
        order = "DESC" if reverse else "ASC"
        return named(
            f"SELECT NULL::bytea AS row, NULL::bigint AS tail, {meta} AS version, NULL::bytea AS payload FROM @.meta"
            f" UNION ALL (SELECT * FROM ({rows}) x ORDER BY row {order})"
        )

    def scans(rows: str, table: str, column: str, columns: str) -> tuple[str, str]:
        both = []
        for reverse in (False, True):
            span = spanned(table, column, columns, "$1", "$2", "$3", long=long, reverse=reverse)
            both.append(scan(rows.format(span=span), reverse))
        return both[0], both[1]

    def many(rows: str, table: str, column: str, columns: str) -> tuple[str, str]:
        """Several spans at once; the rows of each may come in any order."""
        both = []
        for reverse in (False, True):
            span = spanned(table, column, columns, "s.lo", "s.hi", "s.size", long=long, reverse=reverse)
            both.append(
                named(
                    "SELECT 0::bigint AS n, NULL::bytea AS row, NULL::bigint AS tail,"
                    f" {meta} AS version, NULL::bytea AS payload FROM @.meta"
                    f" UNION ALL SELECT s.n, {rows} FROM unnest($1::bytea[], $2::bytea[], $3::int[])"
                    f" WITH ORDINALITY AS s(lo, hi, size, n) CROSS JOIN LATERAL {span} r"
                    + (f" LEFT JOIN LATERAL ({of_row}) e ON true" if "e." in rows else "")
                )
            )
        return both[0], both[1]

    def every(table: str, column: str, columns: str) -> str:
        short = f"SELECT {columns} FROM @.{table} WHERE {column} >= $1 AND {column} < $2"
        if not long:
            return short
        inner = spanned(table, column, columns, "$1", "$2", "ALL", long=True)
        return f"SELECT * FROM {inner} y"

    def numbered(count: int) -> str:
        return ", ".join(f"${n}" for n in range(1, count + 1))

    merged = f"@.intersect{suffix}($1, $2, $3, $4, $5)"
    by_rest = f"""SELECT i.version, i.resume, x.rest, x.tail, e.version, e.payload FROM {merged} i
        LEFT JOIN LATERAL unnest(i.rests, i.tails) WITH ORDINALITY AS x(rest, tail, n) ON true
        LEFT JOIN LATERAL (SELECT ($1::bytea[])[1] || x.rest AS row, x.tail AS tail) r ON true
        LEFT JOIN LATERAL ({of_row}) e ON true ORDER BY x.n"""
    return Statements(
        get=named(
            f"SELECT {meta}, e.* FROM @.meta LEFT JOIN LATERAL ({entity.format(key='$1')}) AS e(own, payload) ON true"
        ),
        read=named(
            f"SELECT 0::bigint AS n, {meta} AS version, NULL::bytea AS payload FROM @.meta"
            " UNION ALL SELECT k.n, e.version, e.payload FROM unnest($1::bytea[]) WITH ORDINALITY AS k(key, n)"
            f" CROSS JOIN LATERAL ({entity.format(key='k.key')}) e"
        ),
        scan_joined=scans(
            f"SELECT r.row, r.tail, e.version, e.payload FROM {{span}} r LEFT JOIN LATERAL ({of_row}) e ON true",
            "rows",
            "row",
            "row, tail",
        ),
        scan_rows=scans("SELECT r.row, r.tail, NULL::bigint, NULL::bytea FROM {span} r", "rows", "row", "row, tail"),
        scan_entities=scans(
            "SELECT key AS row, 0::bigint, version, payload FROM {span} r", "entities", "key", "key, version, payload"
        ),
        scan_keys=scans(
            "SELECT key AS row, 0::bigint, version, NULL::bytea FROM {span} r", "entities", "key", "key, version"
        ),
        many_joined=many("r.row, r.tail, e.version, e.payload", "rows", "row", "row, tail"),
        many_rows=many("r.row, r.tail, NULL::bigint, NULL::bytea", "rows", "row", "row, tail"),
        many_entities=many("r.key, 0::bigint, r.version, r.payload", "entities", "key", "key, version, payload"),
        many_keys=many("r.key, 0::bigint, r.version, NULL::bytea", "entities", "key", "key, version"),
        count={
            Space.ENTITY: named(
                f"SELECT (SELECT count(*) FROM ({every('entities', 'key', 'key')}) x), 0::bigint, {meta} FROM @.meta"
            ),
            Space.INDEX: named(
                f"SELECT x.*, {meta} FROM @.meta, LATERAL (SELECT count(*), count(*) FILTER (WHERE tail & 1048576 <> 0)"
                f" FROM ({every('rows', 'row', 'row, tail')}) y) x"
            ),
        },
        tally=named(
            f"""SELECT NULL::bytea, NULL::bigint, {meta} FROM @.meta UNION ALL (
            SELECT substr(row, $3::int + 1, octet_length(row) - $3::int - (tail & 1048575)::int) AS value, tail >> 20,
                count(*) FROM ({every("rows", "row", "row, tail")}) y GROUP BY 1, 2)"""
        ),
        intersect=named(
            f"""SELECT i.version, i.resume, x.rest, x.tail, NULL::bigint, NULL::bytea FROM {merged} i
            LEFT JOIN LATERAL unnest(i.rests, i.tails) WITH ORDINALITY AS x(rest, tail, n) ON true ORDER BY x.n"""
        ),
        intersect_joined=named(by_rest),
        verify=named(f"SELECT * FROM @.verify{suffix}({numbered(_VERIFY_PARAMETERS)})"),
        write=named(f"SELECT * FROM @.write{suffix}({numbered(_WRITE_PARAMETERS)})"),
        write_plain=named(f"SELECT * FROM @.write_plain({numbered(_PLAIN_PARAMETERS)})"),
        allocate=named(
            "INSERT INTO @.sequences VALUES (sha256($1::bytea), $1::bytea, greatest(1, $3::bigint) + $2::bigint)"
            " ON CONFLICT (hash) DO UPDATE SET next = greatest(sequences.next, $3::bigint) + $2::bigint"
            " RETURNING next - $2::bigint"
        ),
        sizes=named(
            "SELECT pg_total_relation_size('@.entities') + pg_total_relation_size('@.long_entities'),"
            " pg_total_relation_size('@.rows') + pg_total_relation_size('@.long_rows')"
        ),
        version=named(f"SELECT {meta} FROM @.meta"),
        existing=named(
            "SELECT EXISTS (SELECT FROM unnest($1::bytea[]) AS k(key)"
            " CROSS JOIN LATERAL (SELECT FROM @.entities WHERE key = k.key LIMIT 1) e)"
        ),
    )
