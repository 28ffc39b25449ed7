"""``query`` and ``get``."""

from __future__ import annotations

import sys
from typing import Any

import click

from aiodatastore.cli.app import NOT_FOUND, app, opened, run
from aiodatastore.cli.options import QueryOptions, json_option, namespace_option, query_options
from aiodatastore.cli.output import (
    note,
    print_entities,
    print_json,
    print_lines,
    print_table,
    write_entity,
)
from aiodatastore.cli.parsing import VALUES_HELP, parse_key
from aiodatastore.cursor import Cursor
from aiodatastore.key import Key

__all__ = ["get", "query"]

TABLE_LIMIT = 100


@app.command(
    short_help="Find entities of a kind, or of all kinds.",
    epilog=VALUES_HELP
    + """
\b
Examples:
  aiodatastore query sqlite:///shop.db Item
  aiodatastore query sqlite:///shop.db Item --filter 'price < 10' --filter 'tags = new' --order price
  aiodatastore query sqlite:///shop.db Item --filter 'sold >= datetime:2024-01-01' --limit 5
  aiodatastore query sqlite:///shop.db City --ancestor /Country:GB --order -population --keys-only
  aiodatastore query sqlite:///shop.db Item --project tags --distinct
  aiodatastore query sqlite:///shop.db Item --order price --explain
  aiodatastore query sqlite:///shop.db Item --json | jq .properties.price
""",
)
@click.argument("url")
@click.argument("kind", required=False)
@query_options
@click.option("--limit", "-n", type=click.IntRange(1), help=f"At most so many (tables: {TABLE_LIMIT}).")
@click.option("--offset", type=click.IntRange(0), default=0, help="Pass over so many first.")
@click.option("--all", "everything", is_flag=True, help="No limit for a table.")
@click.option("--cursor", metavar="TEXT", help="Go on where a former page ended.")
@click.option("--count", is_flag=True, help="Only how many there are.")
@click.option("--explain", is_flag=True, help="Show the plan instead of running the query.")
@click.option("--analyze", is_flag=True, help="Run the query, and show the plan with what each step read.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "jsonl"]),
    default="table",
    help="table (the default), or jsonl: JSON lines that `import` reads.",
)
@json_option
def query(url: str, kind: str | None, **options: Any) -> int:
    """Find entities of a KIND (or, without one, of all kinds).

    A table shows the first 100, and the cursor of the next page; JSON lines stream without a limit.
    """
    extra = {
        name: options.pop(name)
        for name in (
            "limit", "offset", "everything", "cursor", "count", "explain", "analyze", "form", "as_json",
        )
    }  # fmt: skip
    extra["form"] = "jsonl" if extra["as_json"] else extra["form"]
    return run(_query, url, kind, options["namespace"], QueryOptions.read(**options), extra)


async def _query(url: str, kind: str | None, namespace: str, options: QueryOptions, extra: dict[str, Any]) -> int:
    async with opened(url, namespace=namespace) as store:
        found = options.apply(store.query(kind))
        if extra["offset"]:
            found = found.offset(extra["offset"])
        if extra["cursor"]:
            found = found.start(Cursor.from_urlsafe(extra["cursor"]))
        limit = extra["limit"]
        if extra["explain"] or extra["analyze"]:
            await _explain(found if limit is None else found.limit(limit), extra)
        elif extra["count"]:
            number = await (found if limit is None else found.limit(limit)).count()
            print_json({"count": number}) if extra["as_json"] else print_lines([str(number)])
        elif extra["form"] == "jsonl":
            await _stream(found, limit)
        else:
            await _table(found, limit, everything=extra["everything"])
    return 0


async def _explain(found: Any, extra: dict[str, Any]) -> None:
    explanation = await found.explain(analyze=extra["analyze"])
    if extra["as_json"]:
        print_json(explanation.to_dict())
    else:
        print_lines(str(explanation).splitlines())


async def _stream(found: Any, limit: int | None) -> None:
    results = (found if limit is None else found.limit(limit)).run()
    count = 0
    async for result in results:
        write_entity(result)
        count += 1
    sys.stdout.flush()
    if limit is not None and count == limit:
        note(f"next page: --cursor {results.cursor.to_urlsafe()}")


async def _table(found: Any, limit: int | None, *, everything: bool) -> None:
    if everything and limit is None:
        print_entities(await found.fetch())
        return
    page = await found.page(TABLE_LIMIT if limit is None else limit)
    print_entities(page.entities)
    count = len(page.entities)
    note(f"{count} result{'' if count == 1 else 's'}" + (", and more:" if page.more else ""))
    if page.more:
        note(f"  --cursor {page.cursor.to_urlsafe()}" + ("" if limit is not None else "   (or --all)"))


@app.command(
    short_help="Show the entities of some keys.",
    epilog="""\
\b
Examples:
  aiodatastore get sqlite:///people.db /Person:ada
  aiodatastore get sqlite:///people.db /Person:ada /Person:bob --json
""",
)
@click.argument("url")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@namespace_option
@json_option
def get(url: str, keys: tuple[str, ...], namespace: str, as_json: bool) -> int:
    """Show the entities of some keys; exits with 3 if one does not exist."""
    return run(_get, url, [parse_key(text, namespace) for text in keys], as_json)


async def _get(url: str, keys: list[Key], as_json: bool) -> int:
    async with opened(url) as store:
        entities = await store.get(keys)
    missing = [key for key, entity in zip(keys, entities, strict=True) if entity is None]
    for entity in entities:
        if entity is None:
            continue
        if as_json:
            write_entity(entity)
        else:
            rows = [
                [name, value, type(value).__name__ + (", unindexed" if name in entity.unindexed else "")]
                for name, value in entity.items()
            ]
            title = f"{entity.key}  (version {entity.version})"
            if not sys.stdout.isatty():
                print_lines([title])
            print_table(["property", "value", "type"], rows, title=title)
    sys.stdout.flush()
    for key in missing:
        note(f"not found: {key}")
    return NOT_FOUND if missing else 0
