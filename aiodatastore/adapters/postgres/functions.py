"""The functions of a store: a batch of commits in one call, merge joins, and what verifies without writing.

Each is made twice: for stores that have only short keys and rows, and (``_long``) for those that met a long one, whose
statements look into both tables. ``@`` stands for the schema; the numbers of commits begin with 1.

Why the statements are as they are: a plan is made once and kept, perhaps while the tables are empty.
``LATERAL … LIMIT 1`` leaves the planner nothing but a probe for each name, and ``enable_seqscan = off`` makes that an
index's. Rows to change are named by their ``ctid``: that is safe for the only writer.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LOCK_CLASS", "SHORT", "functions", "spanned"]

SHORT: Final = 2600
"""Bytes of the longest key or row that is kept in the tables for short ones: a B-tree takes about 2700."""

_DECENT_WORK: Final = 20_000
"""Probes of one call of a merge join, about 40 ms: then it says where to go on."""

LOCK_CLASS: Final = 1633972339
"""First half of the writers' advisory lock (``ads`` and a number); the second is the oid of the store's ``meta``."""

_KEY_PARAMETERS: Final = """
    p_fence_key bytea, p_fence_version bigint,
    p_check_of int[], p_check_keys bytea[], p_check_versions bigint[]"""
_SPAN_PARAMETERS: Final = """
    p_span_of int[], p_span_spaces int[], p_span_los bytea[], p_span_his bytea[], p_span_counts bigint[],
    p_span_digests bytea[]"""

_OUTCOME: Final = """
    OUT start bigint, OUT check_of int[], OUT checks int[], OUT actual bigint[], OUT span_of int[]"""


_TELL: Final = """
CREATE FUNCTION @.tell(p_start bigint, p_version bigint, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $function$
-- Messages of at most 8000 bytes: the versions before and after, then keys; * where these are not told.
DECLARE
    keys text[] := ARRAY(SELECT translate(encode(k, 'base64'), E'\\n', '') FROM unnest(p_keys) k);
    start bigint := p_start;
    part text := '';
    key text;
BEGIN
    IF p_keys IS NULL OR cardinality(keys) > 2000 OR octet_length(array_to_string(keys, '')) > 100000 THEN
        keys := ARRAY['*'];
    END IF;
    FOREACH key IN ARRAY keys LOOP
        IF octet_length(key) > 3000 THEN key := '*'; END IF;
        IF octet_length(part) + octet_length(key) > 7900 THEN
            PERFORM pg_notify('ads' || '@.meta'::regclass::oid, start || ' ' || p_version || part);
            start := p_version;
            part := '';
        END IF;
        part := part || ' ' || key;
    END LOOP;
    PERFORM pg_notify('ads' || '@.meta'::regclass::oid, start || ' ' || p_version || part);
END $function$;
"""


def functions() -> str:
    """The statements that make them."""
    both = "".join(part for long in (False, True) for part in (_verify(long), _write(long), _intersect(long)))
    return both + _write(False, plain=True) + _TELL


def _conflicts(long: bool) -> str:
    """Checks that do not hold: of which commits, which checks, and what is there."""
    also = "UNION ALL SELECT version FROM @.long_entities WHERE key = c.key" if long else ""
    return f"""
        SELECT array_agg(c.of), array_agg(c.n), array_agg(coalesce(e.version, 0))
        INTO bad_of, bad_checks, bad_actual
        FROM unnest(p_check_of, p_check_keys, p_check_versions) WITH ORDINALITY AS c(of, key, version, n)
        LEFT JOIN LATERAL (
            SELECT version FROM @.entities WHERE key = c.key {also} LIMIT 1
        ) e ON true
        WHERE c.of >= first
        AND e.version IS DISTINCT FROM nullif(c.version, 0) AND (c.version <> -1 OR e.version IS NULL);"""


def _stale(long: bool) -> str:
    """Spans that do not hold. One row more than expected is enough to know."""
    entities = spanned("entities", "key", "key, version", "s.lo", "s.hi", "s.number + 1", long=long)
    rows = spanned("rows", "row", "row", "s.lo", "s.hi", "s.number + 1", long=long)
    return f"""
        SELECT array_agg(s.of) INTO bad_spans
        FROM unnest(p_span_of, p_span_spaces, p_span_los, p_span_his, p_span_counts, p_span_digests)
            AS s(of, space, lo, hi, number, digest)
        WHERE s.of BETWEEN first AND last AND NOT CASE WHEN s.space = 0 THEN (
            SELECT count(*) = s.number AND (s.digest IS NULL OR s.digest = sha256(coalesce(string_agg(
                int4send(octet_length(x.key)) || x.key || int8send(x.version), ''::bytea ORDER BY x.key), ''::bytea)))
            FROM {entities} x
        ) ELSE (
            SELECT count(*) = s.number AND (s.digest IS NULL OR s.digest = sha256(coalesce(string_agg(
                int4send(octet_length(x.row)) || x.row, ''::bytea ORDER BY x.row), ''::bytea)))
            FROM {rows} x
        ) END;"""


def _begin(long: bool) -> str:
    """The store's version; -2 says that the other function has to be called, -1 that the fence does not hold."""
    also = " UNION ALL SELECT version FROM @.long_entities WHERE key = p_fence_key" if long else ""
    stop = "" if long else "IF is_long THEN start := -2; RETURN; END IF;"
    return f"""
    SELECT m.version, m.long, (SELECT version FROM @.entities WHERE key = p_fence_key{also})
    INTO start, is_long, fence FROM @.meta m;
    {stop}
    IF coalesce(fence, 0) <> p_fence_version THEN start := -1; RETURN; END IF;"""


def _verify(long: bool) -> str:
    return f"""
CREATE FUNCTION @.verify{"_long" if long else ""}({_KEY_PARAMETERS},{_SPAN_PARAMETERS}, {_OUTCOME}
) LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $function$
DECLARE
    is_long boolean;
    fence bigint;
    first CONSTANT int := 0;
    last CONSTANT int := 2147483647;
    bad_of int[]; bad_checks int[]; bad_actual bigint[]; bad_spans int[];
BEGIN
    {_begin(long)}
    IF p_check_of <> '{{}}' THEN {_conflicts(long)} END IF;
    IF p_span_of <> '{{}}' THEN {_stale(long)} END IF;
    check_of := bad_of; checks := bad_checks; actual := bad_actual; span_of := bad_spans;
END $function$;
"""


def _write(long: bool, *, plain: bool = False) -> str:
    """The function that commits. The ``plain`` one has no spans, no rows apart from entities and no commit that depends
    on another: what is sent for those, and asking for it, would be a third of the cost of a lone put."""
    name = "write_plain" if plain else "write_long" if long else "write"
    checks = _KEY_PARAMETERS if plain else _KEY_PARAMETERS + "," + _SPAN_PARAMETERS
    more = (
        ""
        if plain
        else """,
    p_row_of int[], p_rows bytea[], p_tails bigint[], p_gone_of int[], p_gone bytea[],
    p_touch_of int[], p_touched int[], p_touch_looks boolean[], p_touch_writes boolean[]"""
    )
    independent = "" if plain else "AND bad_spans IS NULL AND p_touch_of = '{}'"
    put = f"IF p_puts <> '{{}}' THEN {_apply(long)} END IF;"
    if plain:
        put = f"""
        IF cardinality(p_puts) = 1 AND versions IS NULL THEN {_APPLY_ONE}
        ELSIF p_puts <> '{{}}' THEN {_APPLY_PLAIN} END IF;"""
    work = f"""
        {"" if plain else _round(long)}
        IF bad_of IS NULL {independent} THEN
            versions := NULL;
            total := p_writes[last];
        ELSE
            check_of := check_of || bad_of; checks := checks || bad_checks; actual := actual || bad_actual;
            span_of := span_of || bad_spans;
            SELECT array_agg(CASE WHEN x.holds THEN base + x.version END ORDER BY x.n), max(x.version)
            INTO versions, total
            FROM (
                SELECT w.n, w.holds, sum(w.writes) OVER (ORDER BY w.n) AS version
                FROM (
                    SELECT n, w.holds, CASE WHEN w.holds AND u.ordinal > coalesce(p_writes[n - 1], 0) THEN 1 ELSE 0 END
                        AS writes
                    FROM unnest(p_writes) WITH ORDINALITY AS u(ordinal, n)
                    CROSS JOIN LATERAL (
                        SELECT n BETWEEN first AND last AND (bad_of IS NULL OR n <> ALL (bad_of))
                            AND (bad_spans IS NULL OR n <> ALL (bad_spans))
                    ) AS w(holds)
                ) w
            ) x;
        END IF;
        {put}
        IF p_deletes <> '{{}}' THEN {_delete(long)} END IF;
        base := base + total;"""
    if plain:
        body = f"IF p_check_of <> '{{}}' THEN {_conflicts(long)} END IF; {work}"
    else:
        body = f"""
    LOOP
        IF p_check_of <> '{{}}' THEN {_conflicts(long)} END IF; {work}
        IF p_gone <> '{{}}' THEN {_remove_rows(long)} END IF;
        IF p_rows <> '{{}}' THEN {_add_rows(long)} END IF;
        EXIT WHEN last >= cardinality(p_writes);
        first := last + 1;
    END LOOP;"""
    index_only = "" if plain else "OR p_rows <> '{}' OR p_gone <> '{}'"
    return f"""
CREATE FUNCTION @.{name}(
    p_slot bytea, p_number bigint, p_again boolean,
    p_writes int[], {checks},
    p_puts @.put[], p_delete_of int[], p_deletes bytea[]{more}, {_OUTCOME}
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $function$
DECLARE
    is_long boolean;
    is_heard boolean;
    fence bigint;
    base bigint;
    first int := 1;
    last int := cardinality(p_writes);
    versions bigint[];
    total int;
    bad_of int[]; bad_checks int[]; bad_actual bigint[]; bad_spans int[];
    {"one @.put; old_rows bytea[]; old_tails bigint[];" if plain else ""}
BEGIN
    PERFORM pg_advisory_xact_lock({LOCK_CLASS}, '@.meta'::regclass::oid::int);
    IF p_again THEN
        SELECT t.start, t.check_of, t.checks, t.actual, t.span_of INTO start, check_of, checks, actual, span_of
        FROM @.tokens t WHERE t.slot = p_slot AND t.number = p_number;
        IF FOUND THEN RETURN; END IF;
    END IF;
    {_begin(long)}
    base := start;
    {body}
    IF base > start THEN
        UPDATE @.meta SET version = base {", long = true" if long else ""} RETURNING heard > now() INTO is_heard;
        IF is_heard THEN
            PERFORM @.tell(start, base, CASE WHEN p_puts <> '{{}}' OR p_deletes <> '{{}}' {index_only} THEN
                ARRAY(SELECT q.key FROM unnest(p_puts) q) || p_deletes END);
        END IF;
    ELSIF NOT p_again THEN
        RETURN;  -- nothing was written, and if this is sent again, it may as well be judged again
    END IF;
    UPDATE @.tokens t SET number = p_number, used = now(), start = {name}.start,
        check_of = {name}.check_of, checks = {name}.checks, actual = {name}.actual, span_of = {name}.span_of
    WHERE t.slot = p_slot AND t.number < p_number;
    IF NOT FOUND THEN  -- a new slot; or this was sent before, and the second sending was here first: then it fails
        INSERT INTO @.tokens VALUES (p_slot, p_number, now(), start, check_of, checks, actual, span_of);
    END IF;
END $function$;
"""


def _round(long: bool) -> str:
    """How far this round goes, and which spans do not hold."""
    return f"""
        IF p_touch_of <> '{{}}' THEN
            -- Up to before the first that touches what one before it may change: that one sees the next round.
            SELECT min(t.of) - 1 INTO last FROM unnest(p_touch_of, p_touched, p_touch_looks) AS t(of, name, looks)
            JOIN (
                SELECT w.name, min(w.of) AS of
                FROM unnest(p_touch_of, p_touched, p_touch_writes) AS w(of, name, writes)
                WHERE w.writes AND w.of >= first AND (bad_of IS NULL OR w.of <> ALL (bad_of))
                GROUP BY w.name
            ) f ON f.name = t.name AND f.of < t.of AND t.looks;
            last := coalesce(last, cardinality(p_writes));
            IF bad_of IS NOT NULL THEN
                SELECT array_agg(x.of), array_agg(x.n), array_agg(x.actual) INTO bad_of, bad_checks, bad_actual
                FROM unnest(bad_of, bad_checks, bad_actual) AS x(of, n, actual) WHERE x.of <= last;
            END IF;
        END IF;
        IF p_span_of <> '{{}}' THEN {_stale(long)} END IF;"""


_HOLDS: Final = "(versions IS NULL OR versions[{of}] IS NOT NULL)"


def _apply(long: bool) -> str:
    """The puts of the commits that hold, in one statement: it reads old rows as they were before it."""
    short_key = f"WHERE octet_length(q.key) <= {SHORT}" if long else ""
    short_row = f"octet_length(n.row) <= {SHORT} AND" if long else ""
    also_old = "UNION ALL SELECT l.rows, l.tails FROM @.long_entities l WHERE l.key = q.key" if long else ""
    also = (
        f"""
        long_gone AS (
            DELETE FROM @.long_rows WHERE ctid = ANY (ARRAY(
                SELECT r.place
                FROM (SELECT row FROM old UNION SELECT u.row FROM q CROSS JOIN LATERAL unnest(q.rows) AS u(row)) g
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.long_rows WHERE row = g.row LIMIT 1) r
                WHERE octet_length(g.row) > {SHORT}))
        ),
        long_new AS (
            INSERT INTO @.long_rows SELECT n.row, coalesce(n.tail, octet_length(q.key))
            FROM q CROSS JOIN LATERAL unnest(q.rows, q.tails) AS n(row, tail) WHERE octet_length(n.row) > {SHORT}
        ),
        long_replaced AS (
            DELETE FROM @.long_entities WHERE ctid = ANY (ARRAY(
                SELECT e.place FROM q
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.long_entities WHERE key = q.key LIMIT 1) e))
        ),
        long_kept AS (
            INSERT INTO @.long_entities
            SELECT q.key, q.version, q.payload, q.rows, q.tails FROM q WHERE octet_length(q.key) > {SHORT}
        ),"""
        if long
        else ""
    )
    return f"""
        WITH q AS MATERIALIZED (
            SELECT q.key, CASE WHEN versions IS NULL THEN base + q.version ELSE versions[q.of] END AS version,
                q.payload, q.rows, q.tails
            FROM unnest(p_puts) q WHERE {_HOLDS.format(of="q.of")}
        ),
        old AS MATERIALIZED (
            SELECT u.row, coalesce(u.tail, octet_length(q.key)) AS tail FROM q
            CROSS JOIN LATERAL (SELECT rows, tails FROM @.entities WHERE key = q.key {also_old} LIMIT 1) e
            CROSS JOIN LATERAL unnest(e.rows, e.tails) AS u(row, tail)
        ),
        gone AS (
            DELETE FROM @.rows WHERE ctid = ANY (ARRAY(
                SELECT r.place
                FROM (
                    SELECT row FROM old EXCEPT SELECT u.row FROM q CROSS JOIN LATERAL unnest(q.rows) AS u(row)
                ) g
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.rows WHERE row = g.row LIMIT 1) r))
        ),{also}
        kept AS (
            INSERT INTO @.entities SELECT q.key, q.version, q.payload, q.rows, q.tails FROM q {short_key}
            ON CONFLICT (key) DO UPDATE SET version = excluded.version, payload = excluded.payload,
                rows = excluded.rows, tails = excluded.tails
        )
        INSERT INTO @.rows SELECT n.row, n.tail
        FROM (
            SELECT u.row, coalesce(u.tail, octet_length(q.key)) AS tail
            FROM q CROSS JOIN LATERAL unnest(q.rows, q.tails) AS u(row, tail)
        ) n
        WHERE {short_row} NOT EXISTS (SELECT FROM old o WHERE o.row = n.row AND o.tail = n.tail)
        ON CONFLICT (row) DO UPDATE SET tail = excluded.tail;"""


_APPLY_PLAIN: Final = f"""
        WITH q AS MATERIALIZED (
            SELECT q.key, CASE WHEN versions IS NULL THEN base + q.version ELSE versions[q.of] END AS version,
                q.payload, q.rows, q.tails, e.place, e.rows AS old_rows, e.tails AS old_tails
            FROM unnest(p_puts) q
            LEFT JOIN LATERAL (SELECT ctid AS place, rows, tails FROM @.entities WHERE key = q.key LIMIT 1) e ON true
            WHERE {_HOLDS.format(of="q.of")}
        ),
        old AS MATERIALIZED (
            SELECT u.row FROM q CROSS JOIN LATERAL unnest(q.old_rows) AS u(row) WHERE q.old_rows <> q.rows
        ),
        new AS MATERIALIZED (
            SELECT u.row, coalesce(u.tail, octet_length(q.key)) AS tail
            FROM q CROSS JOIN LATERAL unnest(q.rows, q.tails) AS u(row, tail) WHERE q.old_rows IS DISTINCT FROM q.rows
        ),
        gone AS (
            DELETE FROM @.rows WHERE ctid = ANY (ARRAY(
                SELECT r.place FROM (SELECT row FROM old EXCEPT SELECT row FROM new) g
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.rows WHERE row = g.row LIMIT 1) r))
        ),
        other AS (
            UPDATE @.rows SET tail = c.tail FROM (
                SELECT r.place, coalesce(n.tail, octet_length(q.key)) AS tail FROM q
                CROSS JOIN LATERAL unnest(q.rows, q.tails) AS n(row, tail)
                JOIN LATERAL unnest(q.old_rows, q.old_tails) AS o(row, tail) ON o.row = n.row
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.rows WHERE row = n.row LIMIT 1) r
                WHERE (q.old_tails <> '{{}}' OR q.tails <> '{{}}')
                    AND (q.old_rows <> q.rows OR q.old_tails <> q.tails) AND o.tail IS DISTINCT FROM n.tail
            ) c WHERE rows.ctid = c.place
        ),
        kept AS (
            UPDATE @.entities SET version = q.version, payload = q.payload, rows = q.rows, tails = q.tails
            FROM q WHERE entities.ctid = q.place
        ),
        made AS (
            INSERT INTO @.entities SELECT q.key, q.version, q.payload, q.rows, q.tails FROM q WHERE q.place IS NULL
        )
        INSERT INTO @.rows SELECT n.row, n.tail FROM new n WHERE NOT EXISTS (SELECT FROM old o WHERE o.row = n.row);"""
"""The same where nothing is long: what is there is told from what is new, so that nothing is inserted ON CONFLICT,
which costs more. A row that should not be there is a unique violation; then the other function is called."""

_APPLY_ONE: Final = """
            one := p_puts[1];
            SELECT e.rows, e.tails INTO old_rows, old_tails FROM @.entities e WHERE e.key = one.key;
            IF NOT FOUND THEN
                INSERT INTO @.entities VALUES (one.key, base + one.version, one.payload, one.rows, one.tails);
                INSERT INTO @.rows SELECT u.row, coalesce(u.tail, octet_length(one.key))
                FROM unnest(one.rows, one.tails) AS u(row, tail);
            ELSE
                UPDATE @.entities SET version = base + one.version, payload = one.payload, rows = one.rows,
                    tails = one.tails WHERE key = one.key;
                IF old_rows <> one.rows OR old_tails <> one.tails THEN
                    DELETE FROM @.rows WHERE row = ANY (ARRAY(SELECT unnest(old_rows) EXCEPT SELECT unnest(one.rows)));
                    INSERT INTO @.rows SELECT u.row, coalesce(u.tail, octet_length(one.key))
                    FROM unnest(one.rows, one.tails) AS u(row, tail)
                    WHERE old_tails <> '{}' OR one.tails <> '{}' OR u.row NOT IN (SELECT unnest(old_rows))
                    ON CONFLICT (row) DO UPDATE SET tail = excluded.tail;
                END IF;
            END IF;"""
"""The same for one put alone: setting up the statement above would take longer than all of these."""


def _delete(long: bool) -> str:
    """The deletes of the commits that hold."""

    def delete(table: str, rows: str) -> str:
        return f"""
        WITH dead AS (
            DELETE FROM @.{table} WHERE ctid = ANY (ARRAY(
                SELECT e.place FROM unnest(p_delete_of, p_deletes) AS d(of, key)
                CROSS JOIN LATERAL (SELECT ctid AS place FROM @.{table} WHERE key = d.key LIMIT 1) e
                WHERE {_HOLDS.format(of="d.of")}))
            RETURNING rows
        )
        DELETE FROM @.{rows} WHERE ctid = ANY (ARRAY(
            SELECT r.place FROM dead CROSS JOIN LATERAL unnest(dead.rows) AS u(row)
            CROSS JOIN LATERAL (SELECT ctid AS place FROM @.{rows} WHERE row = u.row LIMIT 1) r));"""

    if not long:
        return delete("entities", "rows")
    # Whose rows may be of both lengths: rows of both go first, while the entities still tell them.
    both = "".join(
        f"""
        DELETE FROM @.{rows} WHERE ctid = ANY (ARRAY(
            SELECT r.place FROM unnest(p_delete_of, p_deletes) AS d(of, key)
            CROSS JOIN LATERAL (
                SELECT e.rows FROM @.entities e WHERE e.key = d.key
                UNION ALL SELECT l.rows FROM @.long_entities l WHERE l.key = d.key LIMIT 1
            ) e
            CROSS JOIN LATERAL unnest(e.rows) AS u(row)
            CROSS JOIN LATERAL (SELECT ctid AS place FROM @.{rows} WHERE row = u.row LIMIT 1) r
            WHERE {_HOLDS.format(of="d.of")}));"""
        for rows in ("rows", "long_rows")
    )
    return both + delete("entities", "rows") + delete("long_entities", "long_rows")


def _remove_rows(long: bool) -> str:
    def remove(table: str) -> str:
        return f"""
        DELETE FROM @.{table} WHERE ctid = ANY (ARRAY(
            SELECT r.place FROM unnest(p_gone_of, p_gone) AS g(of, row)
            CROSS JOIN LATERAL (SELECT ctid AS place FROM @.{table} WHERE row = g.row LIMIT 1) r
            WHERE {_HOLDS.format(of="g.of")}));"""

    return remove("rows") + (remove("long_rows") if long else "")


def _add_rows(long: bool) -> str:
    """Rows of composite indexes that are being built: their entities' lists learn them too."""

    def own(table: str) -> str:
        return f"""
        WITH new AS MATERIALIZED (
            SELECT substr(n.row, (octet_length(n.row) - (n.tail & 1048575) + 1)::int) AS key, n.row, n.tail
            FROM unnest(p_row_of, p_rows, p_tails) AS n(of, row, tail) WHERE {_HOLDS.format(of="n.of")}
        ),
        owner AS MATERIALIZED (
            SELECT k.key, e.place, e.rows, e.tails FROM (SELECT DISTINCT key FROM new) k
            CROSS JOIN LATERAL (SELECT ctid AS place, rows, tails FROM @.{table} WHERE key = k.key LIMIT 1) e
        )
        UPDATE @.{table} e SET rows = m.rows, tails = m.tails
        FROM (
            SELECT x.place, array_agg(x.row) AS rows, array_agg(x.tail) AS tails
            FROM (
                SELECT o.place, u.row, coalesce(u.tail, octet_length(o.key)) AS tail
                FROM owner o CROSS JOIN LATERAL unnest(o.rows, o.tails) AS u(row, tail)
                WHERE u.row NOT IN (SELECT row FROM new)
                UNION ALL SELECT o.place, n.row, n.tail FROM owner o JOIN new n ON n.key = o.key
            ) x GROUP BY x.place
        ) m WHERE e.ctid = m.place;"""

    def add(table: str, where: str, conflict: str) -> str:
        return f"""
        INSERT INTO @.{table} SELECT n.row, n.tail FROM unnest(p_row_of, p_rows, p_tails) AS n(of, row, tail)
        WHERE {_HOLDS.format(of="n.of")} {where} {conflict};"""

    keep = "ON CONFLICT (row) DO UPDATE SET tail = excluded.tail"
    if not long:
        return own("entities") + add("rows", "", keep)
    clear = f"""
        DELETE FROM @.long_rows WHERE ctid = ANY (ARRAY(
            SELECT r.place FROM unnest(p_row_of, p_rows) AS n(of, row)
            CROSS JOIN LATERAL (SELECT ctid AS place FROM @.long_rows WHERE row = n.row LIMIT 1) r
            WHERE {_HOLDS.format(of="n.of")}));"""
    return (
        own("entities")
        + own("long_entities")
        + add("rows", f"AND octet_length(n.row) <= {SHORT}", keep)
        + clear
        + add("long_rows", f"AND octet_length(n.row) > {SHORT}", "")
    )


def _intersect(long: bool) -> str:
    """A leapfrog in chunks: some rows of one span are looked up in the others, then all go on where the farthest is,
    and that one leads."""
    also = "UNION ALL SELECT tail FROM @.long_rows WHERE row = a.prefix || c.rest" if long else ""

    def part(reverse: bool) -> str:
        span = spanned("rows", "row", "row", "prefix || lo", "prefix || hi", "size", long=long, reverse=reverse)
        order = "DESC" if reverse else "ASC"
        return f"""
            SELECT array_agg(substr(x.row, octet_length(prefix) + 1) ORDER BY x.row {order}) INTO part
            FROM {span} x;"""

    def leap(reverse: bool) -> str:
        span = spanned(
            "rows", "row", "row", "p_prefixes[i] || lo", "p_prefixes[i] || hi", "1", long=long, reverse=reverse
        )
        found = f"""
            SELECT substr(x.row, octet_length(p_prefixes[i]) + 1) INTO place FROM {span} x;
            IF NOT FOUND THEN RETURN; END IF;"""
        if reverse:
            return found + "IF place || '\\x00' < hi THEN hi := place || '\\x00'; leader := i; END IF;"
        return found + "IF place > lo THEN lo := place; leader := i; END IF;"

    return f"""
CREATE FUNCTION @.intersect{"_long" if long else ""}(
    p_prefixes bytea[], p_lo bytea, p_hi bytea, p_limit int, p_reverse boolean,
    OUT version bigint, OUT resume bytea, OUT rests bytea[], OUT tails bigint[]
) LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $function$
DECLARE
    is_long boolean;
    lo bytea := p_lo;
    hi bytea := p_hi;
    leader int := 1;
    prefix bytea;
    place bytea;
    part bytea[];
    size int := least(greatest(2 * p_limit, 16), 256);
    worked int := 0;
    more_rests bytea[];
    more_tails bigint[];
BEGIN
    SELECT m.version, m.long INTO version, is_long FROM @.meta m;
    {"" if long else "IF is_long THEN version := -2; RETURN; END IF;"}
    rests := ARRAY[]::bytea[];
    tails := ARRAY[]::bigint[];
    LOOP
        FOR i IN 1 .. cardinality(p_prefixes) LOOP
            IF p_reverse THEN {leap(True)} ELSE {leap(False)} END IF;
        END LOOP;
        prefix := p_prefixes[leader];
        IF p_reverse THEN {part(True)} ELSE {part(False)} END IF;
        IF part IS NULL THEN RETURN; END IF;
        SELECT array_agg(y.rest ORDER BY y.n), array_agg(y.tail ORDER BY y.n) INTO more_rests, more_tails
        FROM (
            SELECT c.rest, c.n, h.tail FROM unnest(part) WITH ORDINALITY AS c(rest, n)
            CROSS JOIN LATERAL (
                SELECT count(*) AS found, max(r.tail) FILTER (WHERE a.n = 1) | bit_or(r.tail & 1048576) AS tail
                FROM unnest(p_prefixes) WITH ORDINALITY AS a(prefix, n)
                CROSS JOIN LATERAL (SELECT tail FROM @.rows WHERE row = a.prefix || c.rest {also} LIMIT 1) r
            ) h WHERE h.found = cardinality(p_prefixes)
            ORDER BY c.n LIMIT p_limit - cardinality(rests)
        ) y;
        IF more_rests IS NOT NULL THEN
            rests := rests || more_rests;
            tails := tails || more_tails;
        END IF;
        worked := worked + cardinality(part) * cardinality(p_prefixes);
        place := part[cardinality(part)];
        IF cardinality(rests) >= p_limit THEN
            place := rests[cardinality(rests)];
        ELSIF cardinality(part) < size THEN
            RETURN;
        ELSIF worked < {_DECENT_WORK} THEN
            IF p_reverse THEN hi := place; ELSE lo := place || '\\x00'; END IF;
            size := least(2 * size, 1024);
            CONTINUE;
        END IF;
        resume := CASE WHEN p_reverse THEN place ELSE place || '\\x00' END;
        RETURN;
    END LOOP;
END $function$;
"""


def spanned(
    table: str, column: str, columns: str, lo: str, hi: str, limit: str, *, long: bool, reverse: bool = False
) -> str:
    """The first rows of a span, in any order, as a table expression."""
    order = "DESC" if reverse else "ASC"
    short = (
        f"(SELECT {columns} FROM @.{table} WHERE {column} >= {lo} AND {column} < {hi}"
        f" ORDER BY {column} {order} LIMIT {limit})"
    )
    if not long:
        return short
    head = f"substr({column}, 1, {SHORT})"
    # Told apart by their heads and, where those are the same, by the whole: the index gives the former's order.
    return f"""(SELECT * FROM ({short} UNION ALL (
            SELECT {columns} FROM @.long_{table} WHERE {column} >= {lo} AND {column} < {hi}
            AND {head} >= substr({lo}, 1, {SHORT}) AND {head} <= substr({hi}, 1, {SHORT})
            ORDER BY {head} {order}, {column} {order} LIMIT {limit}
        )) both_of ORDER BY {column} {order} LIMIT {limit})"""
