"""``check``, ``stats`` and ``bench``."""

from __future__ import annotations

from typing import Any

import click

from aiodatastore.cli.app import FAILED, app, opened, run
from aiodatastore.cli.options import json_option
from aiodatastore.cli.output import note, print_json, print_lines, print_table

__all__ = ["bench", "check", "stats"]


@app.command(short_help="Compare all indexes with the entities.")
@click.argument("url")
@json_option
def check(url: str, as_json: bool) -> int:
    """Compare all indexes with the entities; exits with 1 if something disagrees. Reads everything."""
    problems = run(_check, url)
    if as_json:
        print_json({"problems": problems})
    else:
        print_lines(problems)
        note(f"{len(problems)} problems" if problems else "indexes and entities agree")
    return FAILED if problems else 0


async def _check(url: str) -> list[str]:
    async with opened(url) as store:
        return await store.check()


@app.command(short_help="Entities, bytes and index rows of each kind.")
@click.argument("url")
@json_option
def stats(url: str, as_json: bool) -> int:
    """How many entities each kind has, their bytes, and their index rows."""
    found = run(_stats, url)
    if as_json:
        print_json(found)
        return 0
    rows = found["kinds"]
    columns = ["kind", "entities", "bytes", "index_rows"]
    if any(row["project"] or row["namespace"] for row in rows):
        columns = ["project", "namespace", *columns]
    print_table(columns, [[row[name] for name in columns] for row in rows], right=columns[-3:])
    total = {name: sum(row[name] for row in rows) for name in columns[-3:]}
    note(f"{total['entities']:,} entities, {total['bytes']:,} bytes, {total['index_rows']:,} index rows")
    return 0


async def _stats(url: str) -> dict[str, Any]:
    async with opened(url) as store:
        return await store.stats()


@app.command(
    short_help="Measure a store: gets, puts, queries, transactions.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("url")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(url: str, arguments: tuple[str, ...]) -> int:
    """Measure a store; ``bench --help`` is answered by the benchmarks themselves."""
    from aiodatastore.bench.cli import run_url  # only who measures pays for loading it

    return run_url(url, *arguments)
