"""``import``, ``export``, ``copy`` and ``compare``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from aiodatastore.cli.app import FAILED, app, opened, run
from aiodatastore.cli.options import json_option
from aiodatastore.cli.output import note, print_json, print_lines, transfer_progress
from aiodatastore.cli.parsing import parse_names
from aiodatastore.transfer import (
    BATCH_ENTITIES,
    Comparison,
    Difference,
    Selection,
    TransferReport,
    compare,
    copy,
    export_entities,
    import_entities,
)

__all__ = ["compare_command", "copy_command", "export_command", "import_command"]

_selection_options = (
    click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind (may be repeated)."),
    click.option("--namespace", metavar="NAME", help="Only this namespace; '' is the default one."),
)


def _selection(command: Any) -> Any:
    for option in reversed(_selection_options):
        command = option(command)
    return command


@app.command(
    "import",
    short_help="Put the entities of a file of JSON lines.",
    epilog="""\
\b
A line is one entity, as `export` writes them:
  {"key": "/Person:ada", "properties": {"name": "Ada", "born": 1815}, "unindexed": ["name"]}
  {"key": "/Person:ada/Task", "properties": {"due": {"$datetime": "2024-01-01T00:00:00Z"}}}
A key that ends with a kind gets an id. 1 is an int, 1.0 a float; types that JSON has not are
  {"$datetime": "2024-01-01T00:00:00Z"}  {"$key": "/Person:ada"}  {"$point": [51.5, -0.12]}
  {"$bytes": "AAEC"}  {"$blob": "AAEC"}  {"$text": "..."}  {"$float": "nan"}
  {"$entity": {"key": "/E", "properties": {}}}  {"$dict": {"$": "a dict with such a name"}}

\b
Examples:
  aiodatastore import sqlite:///people.db people.jsonl
  aiodatastore import sqlite:///people.db people.jsonl --resume
  zcat people.jsonl.gz | aiodatastore import sqlite:///people.db -
""",
)
@click.argument("url")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--resume", is_flag=True, help="Go on where an interrupted import of this file stopped.")
@click.option("--progress-file", type=click.Path(dir_okay=False), help="By default FILE.progress.")
@click.option(
    "--batch",
    "batch_size",
    default=BATCH_ENTITIES,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Entities a commit.",
)
@click.option("--in-flight", default=4, show_default=True, type=click.IntRange(1, 64), help="Commits at a time.")
@json_option
def import_command(url: str, file: str, *, progress_file: str | None, as_json: bool, **options: Any) -> int:
    """Put the entities of a FILE of JSON lines (- is standard input), overwriting those of the same keys.

    Each batch is one atomic commit. Progress is recorded beside the file until the end, so that --resume can
    go on after an interruption.
    """
    if file == "-" and (options["resume"] or progress_file):
        raise click.UsageError("standard input can't be resumed")
    if file != "-":
        options["progress_file"] = progress_file or f"{file}.progress"
    report = run(_import, url, file, **options)
    _tell("imported", report, as_json)
    if report.truncated:
        note("warning: the file is an export without its last line; it was cut short")
    return 0


async def _import(url: str, file: str, **options: Any) -> TransferReport:
    source = sys.stdin.buffer if file == "-" else file
    async with opened(url, create=True) as store:
        with transfer_progress("import", bytes_known=file != "-") as show:
            return await import_entities(store, source, progress=show, **options)


@app.command(
    "export",
    short_help="Write entities to a file of JSON lines.",
    epilog="""\
\b
Examples:
  aiodatastore export sqlite:///people.db people.jsonl
  aiodatastore export sqlite:///people.db people.jsonl --resume
  aiodatastore export sqlite:///people.db - --kind Person | gzip > people.jsonl.gz
""",
)
@click.argument("url")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, writable=True))
@_selection
@click.option("--resume", is_flag=True, help="Append what an interrupted export lacks.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@json_option
def export_command(
    url: str,
    file: str,
    *,
    kinds: tuple[str, ...],
    namespace: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write entities to a FILE of JSON lines (- is standard output), in order of their keys.

    Every type is kept. The store may be in use meanwhile: entities that change are written in their old or
    their new state.
    """
    if file == "-" and (resume or as_json):
        raise click.UsageError("--resume and --json need a file, not standard output")
    if not resume and not overwrite and file != "-" and Path(file).exists() and Path(file).stat().st_size:
        raise click.UsageError(f"{file} exists: say --resume, or --overwrite")
    selection = Selection(parse_names(kinds), namespace)
    report = run(_export, url, file, selection=selection, resume=resume, overwrite=overwrite)
    _tell("exported", report, as_json)
    return 0


async def _export(url: str, file: str, **options: Any) -> TransferReport:
    target = sys.stdout.buffer if file == "-" else file
    async with opened(url) as store:
        with transfer_progress("export") as show:
            return await export_entities(store, target, progress=show, **options)


_resume = click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
_progress_file = click.option(
    "--progress-file",
    type=click.Path(dir_okay=False),
    help="Where the progress is recorded; by default a file in the current folder.",
)


@app.command(
    "copy",
    short_help="Copy the entities of one store into another.",
    epilog="""\
\b
Examples:
  aiodatastore copy sqlite:///people.db sqlite:///backup.db --verify
  aiodatastore copy sqlite:///people.db postgresql://localhost/people --kind Person
""",
)
@click.argument("source", metavar="URL")
@click.argument("target", metavar="URL")
@_selection
@click.option("--indexes/--no-indexes", default=True, help="Create the composite indexes, too (the default).")
@click.option("--verify", is_flag=True, help="Read both sides again and compare; exits with 1 on a difference.")
@_resume
@_progress_file
@json_option
def copy_command(
    source: str,
    target: str,
    *,
    kinds: tuple[str, ...],
    namespace: str | None,
    progress_file: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Copy the entities of one store into another, overwriting those of the same keys.

    What the target has besides stays; --verify counts it, and does not call it a difference (`compare` does). Progress
    is recorded until the end, so that --resume can go on after an interruption.
    """
    _refuse_same(source, target)
    options["selection"] = Selection(parse_names(kinds), namespace)
    options["progress_file"] = progress_file or _progress_name("copy", source, target)
    report = run(_copy, source, target, **options)
    _tell("copied", report, as_json)
    if options["verify"] and not as_json:
        besides = f"; the target has {report.extra:,} besides" if report.extra else ""
        problems = f", {len(report.problems)} problems of indexes" if report.problems else ""
        took = f" in {report.verify_seconds:.1f} s"
        note(f"verified {report.verified:,}{took}, {report.different:,} differ{problems}{besides}")
    _list_differences(report.differences, report.different, report.problems)
    return FAILED if report.different or report.problems else 0


@app.command(
    "compare",
    short_help="Say where two stores differ.",
    epilog="""\
\b
A line for each difference, on standard output:
  missing /Person:ada      the second store lacks it
  extra /Person:bob        the first store lacks it
  different /Person:eve    a value, a type or what is unindexed

\b
Examples:
  aiodatastore compare sqlite:///people.db postgresql://localhost/people
  aiodatastore compare sqlite:///people.db redis://localhost --kind Person --no-indexes
""",
)
@click.argument("source", metavar="URL")
@click.argument("target", metavar="URL")
@_selection
@click.option(
    "--indexes/--no-indexes",
    default=True,
    help="Compare index definitions, and check both stores' indexes (the default).",
)
@_resume
@_progress_file
@json_option
def compare_command(
    source: str,
    target: str,
    *,
    kinds: tuple[str, ...],
    namespace: str | None,
    progress_file: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Read two stores side by side and say where they differ; exits with 1 if they do.

    Compares every entity, value by value and type by type, but not versions, which are each store's own. Compare while
    nobody writes.
    """
    _refuse_same(source, target)
    options["selection"] = Selection(parse_names(kinds), namespace)
    options["progress_file"] = progress_file or _progress_name("compare", source, target)
    found = run(_compare, source, target, **options)
    if as_json:
        print_json(
            {
                "same": found.is_same,
                "source_entities": found.source_entities,
                "target_entities": found.target_entities,
                "missing": found.missing,
                "different": found.different,
                "extra": found.extra,
                "differences": [[each.problem, str(each.key)] for each in found.differences],
                "problems": found.problems,
                "seconds": round(found.seconds, 3),
            }
        )
        return 0 if found.is_same else FAILED
    print_lines(f"{each.problem} {each.key}" for each in found.differences)
    _list_differences((), found.missing + found.different + found.extra - len(found.differences), found.problems)
    counts = f"{found.source_entities:,} and {found.target_entities:,} entities in {found.seconds:.1f} s"
    if found.is_same:
        note(f"the same: {counts}")
    else:
        note(
            f"not the same: {counts}; {found.missing:,} missing, {found.different:,} different, {found.extra:,} extra, "
            f"{len(found.problems)} problems of indexes"
        )
    return 0 if found.is_same else FAILED


def _refuse_same(source: str, target: str) -> None:
    if source == target and not source.startswith("memory:"):
        raise click.UsageError("source and target are the same store")


def _progress_name(what: str, source: str, target: str) -> str:
    which = hashlib.blake2b(f"{source} {target}".encode(), digest_size=4).hexdigest()
    return f"aiodatastore-{what}-{which}.progress"


async def _copy(source: str, target: str, **options: Any) -> TransferReport:
    async with opened(source) as origin, opened(target, create=True) as goal:
        with transfer_progress("copy") as show:
            return await copy(origin, goal, progress=show, **options)


async def _compare(source: str, target: str, **options: Any) -> Comparison:
    async with opened(source) as origin, opened(target) as goal:
        with transfer_progress("compare") as show:
            return await compare(origin, goal, progress=show, **options)


def _list_differences(differences: Sequence[Difference], total: int, problems: Sequence[str]) -> None:
    for difference in differences:
        note(f"{difference.problem}: {difference.key}")
    if total > len(differences):
        note(f"... and {total - len(differences):,} more")
    for problem in problems:
        note(problem)


def _tell(what: str, report: TransferReport, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "entities": report.entities,
                "resumed": report.resumed,
                "seconds": round(report.seconds, 3),
                "indexes": report.indexes,
                "verified": report.verified,
                "different": report.different,
                "extra": report.extra,
                "verify_seconds": round(report.verify_seconds, 3),
                "problems": report.problems,
                "truncated": report.truncated,
            }
        )
        return
    rate = f" ({report.entities / report.seconds:,.0f}/s)" if report.seconds >= 0.5 else ""
    before = f", after {report.resumed:,} before the interruption" if report.resumed else ""
    note(f"{what} {report.entities:,} entities in {report.seconds:.1f} s{rate}{before}")
