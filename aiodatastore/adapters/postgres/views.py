"""For people with SQL: functions that read keys and payloads, and views that show entities as JSON.

They work when somebody looks; writing costs nothing for them. A ``jsonb`` column would be written with every entity.
Values look as in exports (:mod:`aiodatastore.jsonl`), but for characters that PostgreSQL's text has not: U+0000 in a
string is shown as U+2400. Payloads of another serializer than the default show no properties.
"""

from __future__ import annotations

from typing import Final

__all__ = ["VIEWS"]

VIEWS: Final = r"""
-- An int of some bytes, big-endian.
CREATE FUNCTION @.read_int(data bytea, at int, size int, signed boolean) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    number numeric := ('x' || lpad(encode(substr(data, at + 1, size), 'hex'), 16, '0'))::bit(64)::bigint;
BEGIN
    IF number < 0 AND NOT signed THEN
        RETURN number + 18446744073709551616;
    ELSIF signed AND size < 8 AND get_byte(data, at) > 127 THEN
        RETURN number - (1::bigint << (8 * size));
    END IF;
    RETURN number;
END $function$;

-- A float of 4 or 8 bytes.
CREATE FUNCTION @.read_float(data bytea, at int, size int) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    bits bigint := ('x' || lpad(encode(substr(data, at + 1, size), 'hex'), 16, '0'))::bit(64)::bigint;
    negative boolean := get_byte(data, at) > 127;
    shift int := CASE size WHEN 8 THEN 52 ELSE 23 END;
    top int := CASE size WHEN 8 THEN 2047 ELSE 255 END;
    exponent int;
    fraction bigint;
    number float8;
BEGIN
    bits := bits & ((top::bigint << shift) | ((1::bigint << shift) - 1));
    exponent := bits >> shift;
    fraction := bits & ((1::bigint << shift) - 1);
    IF exponent = top THEN
        RETURN jsonb_build_object('$float',
            CASE WHEN fraction <> 0 THEN 'nan' WHEN negative THEN '-inf' ELSE 'inf' END);
    END IF;
    IF bits = 0 THEN
        RETURN '0'::jsonb;
    END IF;
    IF exponent = 0 THEN
        exponent := 1;
    ELSE
        fraction := fraction | (1::bigint << shift);
    END IF;
    number := fraction::float8 * power(2::float8, exponent - top / 2 - shift);
    RETURN to_jsonb(CASE WHEN negative THEN -number ELSE number END);
END $function$;

-- UTF-8 as text; PostgreSQL has no U+0000.
CREATE FUNCTION @.read_text(raw bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    place int := position('\x00'::bytea IN raw);
BEGIN
    WHILE place > 0 LOOP
        raw := overlay(raw PLACING '\xe29080'::bytea FROM place FOR 1);
        place := position('\x00'::bytea IN raw);
    END LOOP;
    RETURN convert_from(raw, 'UTF8');
END $function$;

-- A text as it stands in keys: escaped, and ended by 00. And back, of one without its end.
CREATE FUNCTION @.key_text(value text) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    raw bytea := convert_to(value, 'UTF8');
    escaped bytea := ''::bytea;
    place int := position('\x01'::bytea IN raw);
BEGIN
    WHILE place > 0 LOOP
        escaped := escaped || substr(raw, 1, place) || '\x02'::bytea;
        raw := substr(raw, place + 1);
        place := position('\x01'::bytea IN raw);
    END LOOP;
    RETURN escaped || raw || '\x00'::bytea;
END $function$;

CREATE FUNCTION @.plain(escaped bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    raw bytea := ''::bytea;
    place int := position('\x01'::bytea IN escaped);
BEGIN
    WHILE place > 0 LOOP
        raw := raw || substr(escaped, 1, place - 1)
            || CASE get_byte(escaped, place) WHEN 1 THEN '\x00'::bytea ELSE '\x01'::bytea END;
        escaped := substr(escaped, place + 2);
        place := position('\x01'::bytea IN escaped);
    END LOOP;
    RETURN raw || escaped;
END $function$;

-- A kind or name in the readable form of a key.
CREATE FUNCTION @.readable(raw bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    escaped bytea := ''::bytea;
    byte int;
    shown text;
BEGIN
    IF encode(raw, 'escape') ~ '^[A-Za-z0-9_. -]*$' THEN
        RETURN convert_from(raw, 'UTF8');
    END IF;
    FOR i IN 0 .. length(raw) - 1 LOOP
        byte := get_byte(raw, i);
        escaped := escaped || CASE WHEN byte < 32 OR byte IN (34, 37, 47, 58, 127)
            THEN convert_to('%' || upper(lpad(to_hex(byte), 2, '0')), 'UTF8') ELSE substr(raw, i + 1, 1) END;
    END LOOP;
    shown := convert_from(escaped, 'UTF8');
    FOR code IN 128 .. 159 LOOP
        shown := replace(shown, chr(code), '%C2%' || upper(to_hex(code)));
    END LOOP;
    RETURN replace(replace(shown, chr(8232), '%E2%80%A8'), chr(8233), '%E2%80%A9');
END $function$;

-- An encoded key, taken apart.
CREATE FUNCTION @.read_key(
    data bytea, OUT project text, OUT namespace text, OUT kind text, OUT id bigint, OUT name text, OUT path jsonb,
    OUT key text
) LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    place int;
    raw bytea;
    tag int;
BEGIN
    place := position('\x00'::bytea IN data);
    project := @.read_text(@.plain(substr(data, 1, place - 1)));
    data := substr(data, place + 1);
    place := position('\x00'::bytea IN data);
    namespace := @.read_text(@.plain(substr(data, 1, place - 1)));
    data := substr(data, place + 1);
    key := CASE WHEN project <> '' THEN project || '!' ELSE '' END || namespace;
    path := '[]';
    WHILE length(data) > 0 LOOP
        place := position('\x00'::bytea IN data);
        raw := @.plain(substr(data, 1, place - 1));
        kind := @.read_text(raw);
        key := key || '/' || @.readable(raw);
        tag := get_byte(data, place);
        data := substr(data, place + 2);
        IF tag = 16 THEN
            place := position('\x00'::bytea IN data);
            raw := @.plain(substr(data, 1, place - 1));
            id := NULL;
            name := @.read_text(raw);
            key := key || ':' || CASE WHEN name ~ '^[0-9]+$' THEN '"' || name || '"' ELSE @.readable(raw) END;
            path := path || jsonb_build_array(kind, name);
            data := substr(data, place + 1);
        ELSE
            id := @.read_int(data, 0, tag, false);
            name := NULL;
            key := key || ':' || id;
            path := path || jsonb_build_array(kind, id);
            data := substr(data, tag + 1);
        END IF;
    END LOOP;
END $function$;

CREATE FUNCTION @.in_base64(raw bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
$function$ SELECT translate(encode(raw, 'base64'), E'\n', '') $function$;

-- One msgpack value from a position on, and where the next one begins. The wire format:
-- https://github.com/msgpack/msgpack/blob/master/spec.md
CREATE FUNCTION @.read_value(data bytea, INOUT at int, OUT value jsonb)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    tag int := get_byte(data, at);
    size int;
    code int;
    raw bytea;
    item jsonb;
    name text;
    seconds numeric;
    micros bigint;
    moment timestamp;
    dollar boolean := false;
BEGIN
    at := at + 1;
    CASE
    WHEN tag < 128 THEN value := to_jsonb(tag); RETURN;
    WHEN tag >= 224 THEN value := to_jsonb(tag - 256); RETURN;
    WHEN tag = 192 THEN value := 'null'; RETURN;
    WHEN tag = 194 THEN value := 'false'; RETURN;
    WHEN tag = 195 THEN value := 'true'; RETURN;
    WHEN tag IN (202, 203) THEN
        size := CASE tag WHEN 202 THEN 4 ELSE 8 END;
        value := @.read_float(data, at, size); at := at + size; RETURN;
    WHEN tag BETWEEN 204 AND 211 THEN
        size := 1 << (tag & 3);
        value := to_jsonb(@.read_int(data, at, size, tag >= 208)); at := at + size; RETURN;
    WHEN tag BETWEEN 160 AND 191 THEN code := 1; size := tag & 31;
    WHEN tag BETWEEN 217 AND 219 THEN
        code := 1; size := @.read_int(data, at, 1 << (tag - 217), false); at := at + (1 << (tag - 217));
    WHEN tag BETWEEN 196 AND 198 THEN
        code := 2; size := @.read_int(data, at, 1 << (tag - 196), false); at := at + (1 << (tag - 196));
    WHEN tag BETWEEN 144 AND 159 THEN code := 3; size := tag & 15;
    WHEN tag IN (220, 221) THEN
        code := 3; size := @.read_int(data, at, 2 << (tag - 220), false); at := at + (2 << (tag - 220));
    WHEN tag BETWEEN 128 AND 143 THEN code := 4; size := tag & 15;
    WHEN tag IN (222, 223) THEN
        code := 4; size := @.read_int(data, at, 2 << (tag - 222), false); at := at + (2 << (tag - 222));
    WHEN tag BETWEEN 212 AND 216 THEN code := 5; size := 1 << (tag - 212);
    WHEN tag BETWEEN 199 AND 201 THEN
        code := 5; size := @.read_int(data, at, 1 << (tag - 199), false); at := at + (1 << (tag - 199));
    ELSE RAISE data_exception USING MESSAGE = 'not msgpack';
    END CASE;
    IF code = 1 THEN
        value := to_jsonb(@.read_text(substr(data, at + 1, size))); at := at + size;
    ELSIF code = 2 THEN
        value := jsonb_build_object('$bytes', @.in_base64(substr(data, at + 1, size))); at := at + size;
    ELSIF code = 3 THEN
        value := '[]';
        FOR i IN 1 .. size LOOP
            SELECT v.at, v.value INTO at, item FROM @.read_value(data, at) v;
            value := value || jsonb_build_array(item);
        END LOOP;
    ELSIF code = 4 THEN
        value := '{}';
        FOR i IN 1 .. size LOOP
            SELECT v.at, v.value #>> '{}' INTO at, name FROM @.read_value(data, at) v;
            SELECT v.at, v.value INTO at, item FROM @.read_value(data, at) v;
            value := value || jsonb_build_object(name, item);
            dollar := dollar OR name LIKE '$%';
        END LOOP;
        IF dollar THEN
            value := jsonb_build_object('$dict', value);
        END IF;
    ELSE
        code := get_byte(data, at);
        raw := substr(data, at + 2, size);
        at := at + 1 + size;
        CASE code
        WHEN 1 THEN value := jsonb_build_object('$key', (@.read_key(raw)).key);
        WHEN 2 THEN value := jsonb_build_object('$point', (@.read_value(raw, 0)).value);
        WHEN 3 THEN value := jsonb_build_object('$entity', @.read_embedded((@.read_value(raw, 0)).value));
        WHEN 4 THEN value := jsonb_build_object('$text', @.read_text(raw));
        WHEN 5 THEN value := jsonb_build_object('$blob', @.in_base64(raw));
        WHEN 255 THEN
            IF size = 4 THEN
                seconds := @.read_int(raw, 0, 4, false); micros := 0;
            ELSIF size = 8 THEN
                seconds := @.read_int(raw, 0, 8, false);
                micros := trunc(seconds / 17179869184) / 1000;
                seconds := seconds % 17179869184;
            ELSE
                micros := @.read_int(raw, 0, 4, false) / 1000; seconds := @.read_int(raw, 4, 8, true);
            END IF;
            moment := date '1970-01-01' + floor(seconds / 86400)::int
                + (seconds - floor(seconds / 86400) * 86400)::int * interval '1 second'
                + micros * interval '1 microsecond';
            value := jsonb_build_object('$datetime', to_char(moment, 'YYYY-MM-DD"T"HH24:MI:SS')
                || CASE WHEN micros <> 0 THEN to_char(moment, '.US') ELSE '' END || 'Z');
        ELSE RAISE data_exception USING MESSAGE = 'unknown extension';
        END CASE;
    END IF;
END $function$;

-- An embedded entity: its key as a list, its properties, and which are unindexed.
CREATE FUNCTION @.read_embedded(parts jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    flat jsonb := parts -> 0;
    key text := CASE WHEN flat ->> 0 <> '' THEN (flat ->> 0) || '!' ELSE '' END || (flat ->> 1);
    shown jsonb;
    ident jsonb;
BEGIN
    FOR i IN 1 .. (jsonb_array_length(flat) - 2) / 2 LOOP
        ident := flat -> (2 * i + 1);
        key := key || '/' || @.readable(convert_to(flat ->> (2 * i), 'UTF8')) || CASE
            WHEN ident = 'null' THEN ''
            WHEN jsonb_typeof(ident) = 'string' AND ident #>> '{}' ~ '^[0-9]+$' THEN ':"' || (ident #>> '{}') || '"'
            WHEN jsonb_typeof(ident) = 'string' THEN ':' || @.readable(convert_to(ident #>> '{}', 'UTF8'))
            ELSE ':' || (ident #>> '{}') END;
    END LOOP;
    shown := jsonb_build_object('key', key, 'properties', coalesce(parts -> 1 -> '$dict', parts -> 1));
    IF parts -> 2 <> '[]' THEN
        shown := shown || jsonb_build_object('unindexed', parts -> 2);
    END IF;
    RETURN shown;
END $function$;

-- A payload: the properties, and the names of those that are unindexed.
CREATE FUNCTION @.read_payload(payload bytea, OUT properties jsonb, OUT unindexed jsonb)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    body jsonb;
BEGIN
    IF length(payload) = 0 OR get_byte(payload, 0) <> 1 THEN
        RETURN;
    END IF;
    SELECT v.value INTO body FROM @.read_value(payload, 1) v;
    properties := coalesce(body -> 0 -> '$dict', body -> 0);
    unindexed := coalesce(body -> 1, '[]');
END $function$;

CREATE VIEW @.entities_json AS
SELECT k.project, k.namespace, k.kind, k.id, k.name, k.key, k.path, e.version, p.properties, p.unindexed
FROM (SELECT key, version, payload FROM @.entities UNION ALL SELECT key, version, payload FROM @.long_entities) e
CROSS JOIN LATERAL @.read_key(e.key) k
CROSS JOIN LATERAL @.read_payload(e.payload) p
WHERE e.key < '\xff'::bytea;
COMMENT ON VIEW @.entities_json IS 'every entity, its properties as JSON; those of a kind: entities_of(kind)';

-- Entities of a kind, found by the kind's index.
CREATE FUNCTION @.entities_of(of_kind text, in_namespace text DEFAULT '', of_project text DEFAULT '')
RETURNS TABLE (id bigint, name text, key text, path jsonb, version bigint, properties jsonb, unindexed jsonb)
LANGUAGE sql STABLE STRICT AS $function$
    SELECT k.id, k.name, k.key, k.path, e.version, p.properties, p.unindexed
    FROM (
        SELECT row, tail FROM @.rows UNION ALL SELECT row, tail FROM @.long_rows
    ) r
    CROSS JOIN LATERAL (
        SELECT e.key, e.version, e.payload FROM @.entities e
        WHERE e.key = substr(r.row, (octet_length(r.row) - (r.tail & 1048575) + 1)::int)
        UNION ALL SELECT l.key, l.version, l.payload FROM @.long_entities l
        WHERE l.key = substr(r.row, (octet_length(r.row) - (r.tail & 1048575) + 1)::int)
    ) e
    CROSS JOIN LATERAL @.read_key(e.key) k
    CROSS JOIN LATERAL @.read_payload(e.payload) p
    WHERE r.row >= '\x01'::bytea || @.key_text(of_project) || @.key_text(in_namespace) || @.key_text(of_kind)
    AND r.row < '\x01'::bytea || @.key_text(of_project) || @.key_text(in_namespace) || @.key_text(of_kind)
        || '\xff'::bytea
$function$;
"""
