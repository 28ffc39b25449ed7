"""``indexes``: composite indexes, and which are missing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from aiodatastore.cli.app import FAILED, app, opened, run
from aiodatastore.cli.options import QueryOptions, json_option, query_options
from aiodatastore.cli.output import note, print_json, print_lines, print_table
from aiodatastore.errors import DatastoreError
from aiodatastore.indexing.definitions import (
    IndexDefinition,
    IndexInfo,
    IndexState,
    dump_index_yaml,
    parse_index_yaml,
)
from aiodatastore.indexing.suggest import missing_indexes
from aiodatastore.query import Query

__all__ = ["indexes"]


@app.group(
    epilog="""\
\b
Examples:
  aiodatastore indexes list sqlite:///shop.db
  aiodatastore indexes suggest Item --filter 'tags = new' --order -price >> index.yaml
  aiodatastore indexes build sqlite:///shop.db index.yaml
  aiodatastore indexes build sqlite:///shop.db --index 'Item tags -price'
  aiodatastore indexes delete sqlite:///shop.db --number 3
"""
)
def indexes() -> None:
    """Composite indexes: list, build, suggest, delete.

    Every property has an index by itself; a query that filters and sorts by several is fast with a composite
    one. They are declared in index.yaml, in App Engine's format.
    """


@indexes.command("list")
@click.argument("url")
@click.option("--yaml", "as_yaml", is_flag=True, help="As an index.yaml.")
@json_option
def list_indexes(url: str, as_yaml: bool, as_json: bool) -> int:
    """The composite indexes of a store, with their state."""
    infos = run(_list, url)
    if as_yaml:
        print_lines([dump_index_yaml(info.definition for info in infos).rstrip("\n")])
    elif as_json:
        print_json([_plain(info) for info in infos])
    else:
        print_table(
            ["number", "index", "state", "seen", "message"],
            [[info.number, str(info.definition), info.state, info.seen, info.message] for info in infos],
            right=["number", "seen"],
        )
        if not infos:
            note("no composite indexes")
    return 0


async def _list(url: str) -> list[IndexInfo]:
    async with opened(url) as store:
        return await store.indexes()


def _plain(info: IndexInfo) -> dict[str, Any]:
    return {
        "number": info.number,
        "kind": info.definition.kind,
        "ancestor": info.definition.ancestor,
        "properties": [list(part) for part in info.definition.properties],
        "state": str(info.state),
        "message": info.message,
        "seen": info.seen,
    }


_index_options = (
    click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)),
    click.option(
        "--index",
        "given",
        multiple=True,
        metavar="'KIND NAME...'",
        help="An index: its kind and properties, descending with a minus: 'Item tags -price'.",
    ),
    click.option("--ancestor", is_flag=True, help="With --index: for queries under an ancestor."),
)


def _definition_options(command: Any) -> Any:
    for option in reversed(_index_options):
        command = option(command)
    return command


def _definitions(file: str | None, given: tuple[str, ...], ancestor: bool) -> list[IndexDefinition]:
    found: list[IndexDefinition] = []
    if file is not None:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found += parse_index_yaml(text, source="standard input" if file == "-" else file)
    for text in given:
        kind, *names = text.replace(",", " ").split()
        if not names:
            raise click.BadParameter(f"{text!r}: expected a kind and its properties, like 'Item tags -price'")
        properties = tuple((name.removeprefix("-"), "desc" if name.startswith("-") else "asc") for name in names)
        found.append(IndexDefinition(kind, properties, ancestor))
    return found


@indexes.command("build")
@click.argument("url")
@_definition_options
def build(url: str, file: str | None, given: tuple[str, ...], ancestor: bool) -> int:
    """Create and build the indexes of an index.yaml (- is standard input).

    Those that exist already are left alone; without a file, builds that were interrupted are finished. The
    store may be used meanwhile, and an interrupted build goes on where it stopped.
    """
    return run(_build, url, _definitions(file, given, ancestor))


async def _build(url: str, definitions: list[IndexDefinition]) -> int:
    async with opened(url, create=True) as store:
        adapter = store.adapter
        wanted = definitions or [
            info.definition for info in await adapter.indexes() if info.state in (IndexState.BUILDING, IndexState.ERROR)
        ]
        if not wanted:
            note("nothing to build")
        failed = False
        for definition in wanted:
            info = await adapter.create_index(definition)
            if info.state is not IndexState.SERVING:
                with _counter(f"building {definition}") as show:
                    info = await adapter.build_index(definition, progress=show)
            failed = failed or info.state is not IndexState.SERVING
            note(f"{info.state} {definition}" + (f": {info.message}" if info.message else ""))
    return FAILED if failed else 0


class _counter:  # noqa: N801  # used like a function
    """A line on a terminal's standard error that counts; gone at the end."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.shown = False

    def __enter__(self) -> Any:
        return self._show if sys.stderr.isatty() else None

    def _show(self, seen: int) -> None:
        self.shown = True
        click.echo(f"\r{self.what}: {seen:,} entities", nl=False, err=True)

    def __exit__(self, *exc_info: object) -> None:
        if self.shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@indexes.command("delete")
@click.argument("url")
@_definition_options
@click.option("--number", "numbers", multiple=True, type=int, help="By its number in `indexes list`.")
def delete(url: str, file: str | None, given: tuple[str, ...], ancestor: bool, numbers: tuple[int, ...]) -> int:
    """Delete composite indexes: those of a file, of --index, or by --number. Entities stay."""
    definitions = _definitions(file, given, ancestor)
    if not definitions and not numbers:
        raise click.UsageError("say which: a file, --index or --number")
    return run(_delete, url, definitions, numbers)


async def _delete(url: str, definitions: list[IndexDefinition], numbers: tuple[int, ...]) -> int:
    async with opened(url) as store:
        infos = await store.indexes()
        existing = {info.definition for info in infos}
        chosen = [*definitions, *(info.definition for info in infos if info.number in numbers)]
        unknown = [str(d) for d in definitions if d not in existing]
        unknown += [f"number {n}" for n in numbers if n not in {info.number for info in infos}]
        if unknown:
            raise click.ClickException(f"no such index: {', '.join(unknown)}")
        for definition in dict.fromkeys(chosen):
            with _counter(f"deleting {definition}") as show:
                await store.adapter.delete_index(definition, progress=show)
            note(f"deleted {definition}")
    return 0


@indexes.command(
    "suggest",
    short_help="Which indexes a query, or a log, needs.",
    epilog="""\
\b
Examples:
  aiodatastore indexes suggest Item --filter 'tags = new' --order -price
  aiodatastore indexes suggest sqlite:///shop.db Item --filter 'tags = new' --order -price
  aiodatastore indexes suggest sqlite:///shop.db --log server.log
""",
)
@click.argument("where", nargs=-1, metavar="[URL] [KIND]")
@query_options
@click.option(
    "--log",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="A log that names missing indexes (- is standard input).",
)
@click.option("--minimal", is_flag=True, help="The smallest that helps together with those defined.")
@json_option
def suggest(where: tuple[str, ...], log: Any, minimal: bool, as_json: bool, **options: Any) -> int:
    """Which indexes a query needs: entries of an index.yaml, or nothing.

    The query is given as for `query`; with a URL, the indexes of that store are taken into account. Or --log
    takes all that NeedIndexErrors and warnings in a log name.
    """
    urls = [text for text in where if "://" in text]
    kinds = [text for text in where if "://" not in text]
    if len(urls) > 1 or len(kinds) != (log is None):
        raise click.UsageError("give either a KIND and its query, or --log; and at most one URL before")
    defined: list[IndexDefinition] = []
    if urls:
        defined = [info.definition for info in run(_list, urls[0]) if info.state is IndexState.SERVING]
    if log is not None:
        found = [d for d in _from_log(log.read()) if d not in defined]
    else:
        query: Query = QueryOptions.read(**options).apply(Query(kinds[0]))
        found = [small if minimal else whole for whole, small in missing_indexes(query, defined)]
    if as_json:
        print_json([{"kind": d.kind, "ancestor": d.ancestor, "properties": d.properties} for d in found])
    elif found:
        print_lines(["\n\n".join(definition.to_yaml() for definition in found)])
    else:
        note("no index is missing")
    return 0


_ENTRY = re.compile(
    r"""^(?P<indent>[ ]*)-\ kind:\ .+\n
        (?:(?P=indent)[ ]+ancestor:\ .+\n)?
        (?P=indent)[ ]+properties:[ ]*\n
        (?:(?P=indent)[ ]+-\ name:\ .+(?:\n|\Z)
           (?:(?P=indent)[ ]+direction:\ .+(?:\n|\Z))?)+""",
    re.VERBOSE | re.MULTILINE,
)


def _from_log(text: str) -> Iterable[IndexDefinition]:
    """Every definition that a log shows, each once."""
    found: dict[IndexDefinition, None] = {}
    for entry in _ENTRY.finditer(text.replace("\r\n", "\n")):
        try:
            found.update(dict.fromkeys(parse_index_yaml(entry[0], source="log")))
        except DatastoreError:
            continue  # something else that looks like one
    return found
