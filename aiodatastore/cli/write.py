"""``put`` and ``delete``."""

from __future__ import annotations

import sys
from typing import Any

import click

from aiodatastore.cli.app import app, opened, run
from aiodatastore.cli.options import QueryOptions, filter_options, json_option, namespace_option
from aiodatastore.cli.output import note, print_json, print_lines
from aiodatastore.cli.parsing import VALUES_HELP, parse_assignment, parse_key, parse_names
from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError
from aiodatastore.jsonl import load_line
from aiodatastore.key import Key

__all__ = ["delete", "put"]

BATCH = 500


@app.command(
    short_help="Put one entity, or JSON lines from standard input.",
    epilog=VALUES_HELP
    + """
\b
Examples:
  aiodatastore put sqlite:///people.db /Person:ada name=Ada born=1815 tags='["math", "poetry"]'
  aiodatastore put sqlite:///people.db /Person:ada/Task title='Note G'     (gets an id)
  aiodatastore put sqlite:///people.db /Person:ada died=1852 --merge
  echo '{"key": "/Person:bob", "properties": {"name": "Bob"}}' | aiodatastore put sqlite:///people.db
""",
)
@click.argument("url")
@click.argument("key", required=False)
@click.argument("properties", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--unindexed", multiple=True, metavar="NAME", help="Keep these properties out of indexes.")
@click.option("--insert", "mode", flag_value="insert", help="Fail if the entity exists.")
@click.option("--update", "mode", flag_value="update", help="Fail if the entity does not exist.")
@click.option("--merge", "mode", flag_value="merge", help="Keep the properties that are not named.")
@namespace_option
@json_option
def put(
    url: str,
    key: str | None,
    properties: tuple[str, ...],
    *,
    unindexed: tuple[str, ...],
    mode: str | None,
    namespace: str,
    as_json: bool,
) -> int:
    """Put one entity, KEY with its properties, or JSON lines from standard input. Prints the keys.

    Lines are as `export` writes them, and are put all together or not at all; for many, use `import`, which
    works in batches, shows its progress and can be resumed.
    """
    if key is None or key == "-":
        if properties or unindexed or mode == "merge":
            raise click.UsageError("properties, --unindexed and --merge go with a KEY")
        entities = _read_lines()
    else:
        values = dict(parse_assignment(text) for text in properties)
        entities = [Entity(parse_key(key, namespace), values, unindexed=parse_names(unindexed))]
    keys = run(_put, url, entities, mode)
    if as_json:
        print_json({"keys": [str(written) for written in keys]})
    else:
        print_lines(map(str, keys))
    return 0


def _read_lines() -> list[Entity]:
    if sys.stdin.isatty():
        note("reading entities as JSON lines, to the end of input (Ctrl-D):")
    entities: list[Entity] = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            found = load_line(line)
        except BadValueError as exc:
            raise BadValueError(f"line {number}: {exc}") from exc
        if isinstance(found, Entity):
            entities.append(found)
    return entities


async def _put(url: str, entities: list[Entity], mode: str | None) -> list[Key]:
    async with opened(url, create=True) as store:
        if mode == "merge":
            return [await store.run_in_transaction(_merge, store, entities[0])]
        write = {"insert": store.insert, "update": store.update}.get(mode or "", store.put)
        keys: list[Key] = await store.run_in_transaction(write, entities)
        return keys


async def _merge(store: Any, given: Entity) -> Key:
    stored = await store.get(given.key) if given.key.is_complete else None
    if stored is None:
        stored = Entity(given.key)
    stored.update(given)
    stored.unindexed = (stored.unindexed - given.keys()) | given.unindexed
    key: Key = await store.put(stored)
    return key


@app.command(
    short_help="Delete entities: those of some keys, or all of a kind.",
    epilog="""\
\b
Examples:
  aiodatastore delete sqlite:///people.db /Person:ada /Person:bob
  aiodatastore delete sqlite:///people.db --kind Task --filter 'done = true'
  aiodatastore delete sqlite:///people.db --kind Session --yes
""",
)
@click.argument("url")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--kind", help="Delete all entities of this kind (that fulfil the conditions).")
@filter_options
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@json_option
def delete(url: str, keys: tuple[str, ...], kind: str | None, yes: bool, as_json: bool, **options: Any) -> int:
    """Delete entities: those of some keys, or all of a kind. What does not exist is no error.

    Keys are deleted all together or not at all; a kind in batches of 500.
    """
    namespace = options["namespace"]
    if bool(keys) == bool(kind):
        raise click.UsageError("give either keys, or --kind")
    if keys and any(value for name, value in options.items() if name != "namespace"):
        raise click.UsageError("conditions go with --kind")
    if keys:
        count = run(_delete_keys, url, [parse_key(text, namespace) for text in keys])
    else:
        count = run(_delete_kind, url, kind, namespace, QueryOptions.read(**options), yes)
    if as_json:
        print_json({"deleted": count})
    else:
        note(f"deleted {count:,}")
    return 0


async def _delete_keys(url: str, keys: list[Key]) -> int:
    async with opened(url) as store:
        await store.run_in_transaction(store.delete, keys)
    return len(keys)


async def _delete_kind(url: str, kind: str, namespace: str, options: QueryOptions, yes: bool) -> int:
    async with opened(url, namespace=namespace) as store:
        found = options.apply(store.query(kind)).keys_only()
        if not yes:
            _confirm(await found.count(), kind, url)
        deleted = 0
        while batch := await found.fetch(BATCH):
            await store.delete(batch)
            deleted += len(batch)
        return deleted


def _confirm(count: int, kind: str, url: str) -> None:
    question = f"delete {count:,} {'entity' if count == 1 else 'entities'} of {kind} in {url}?"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes where nobody can be asked.")
    click.confirm(question, abort=True, err=True)
