"""What users see: tables on a terminal, plain text in a pipe, JSON where asked for."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aiodatastore.entity import Entity
from aiodatastore.jsonl import dump_entity
from aiodatastore.key import Key
from aiodatastore.values import GeoPoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodatastore.transfer.common import ProgressCallback, TransferProgress

__all__ = [
    "display",
    "note",
    "print_entities",
    "print_json",
    "print_lines",
    "print_table",
    "transfer_progress",
    "write_entity",
]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def display(value: Any) -> str:
    """A value for people, on one line: strings bare, keys readable, no control characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _CONTROL.sub(lambda m: _SHORT.get(m[0], f"\\u{ord(m[0]):04x}"), value)
    if isinstance(value, bytes):
        return f"bytes:{base64.b64encode(value).decode()}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, GeoPoint):
        return f"{value.latitude},{value.longitude}"
    if isinstance(value, list):
        return f"[{', '.join(map(display, value))}]"
    if isinstance(value, Mapping):
        key = f"{value.key} " if isinstance(value, Entity) else ""
        return f"{key}{{{', '.join(f'{name}: {display(item)}' for name, item in value.items())}}}"
    return str(value) if not isinstance(value, float) else repr(value)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", right: Iterable[str] = ()
) -> None:
    """A table on a terminal (none without rows); in a pipe tab-separated values, the first line with the names."""
    if not sys.stdout.isatty():
        print_lines(["\t".join(map(display, columns))])
        print_lines("\t".join("" if cell is _MISSING else display(cell) for cell in row) for row in rows)
        return
    rows = list(rows)
    if not rows:
        return  # a remark says so
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    numeric = set(right)
    for column in columns:
        table.add_column(Text(display(column)), justify="right" if column in numeric else "left", overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text("") if cell is _MISSING else Text(display(cell), _style(cell)) for cell in row))
    Console().print(table)


class _Missing:
    """A cell of an entity that has no such property."""


_MISSING = _Missing()


def _style(cell: Any) -> str:
    if cell is None or isinstance(cell, bool):
        return "magenta"
    if isinstance(cell, int | float):
        return "cyan"
    if isinstance(cell, Key):
        return "green"
    return ""


def print_entities(entities: Sequence[Entity | Key]) -> None:
    """A table with a column for each property."""
    names: dict[str, None] = {}
    for entity in entities:
        if isinstance(entity, Entity):
            names.update(dict.fromkeys(entity))
    rows: list[list[Any]] = []
    for entity in entities:
        if isinstance(entity, Entity):
            rows.append([entity.key, *(entity.get(name, _MISSING) for name in names)])
        else:
            rows.append([entity])
    numeric = [
        name
        for name in names
        if all(type(e.get(name, 0)) in (int, float, type(None)) for e in entities if isinstance(e, Entity))
    ]
    print_table(["key", *names], rows, right=numeric)


def write_entity(entity: Entity | Key) -> None:
    """An entity, or a key alone, as a line of JSON."""
    line = dump_entity(entity) if isinstance(entity, Entity) else msgspec.json.encode({"key": str(entity)})
    sys.stdout.buffer.write(line + b"\n")


def print_json(value: Any) -> None:
    """A value as JSON: indented on a terminal, one line in a pipe."""
    line = msgspec.json.encode(value)
    if sys.stdout.isatty():
        line = msgspec.json.format(line, indent=2)
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


def print_lines(lines: Iterable[str]) -> None:
    """Lines on standard output, as UTF-8 whatever the locale says."""
    for line in lines:
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark on standard error: never part of the output."""
    click.echo(text, err=True)


@contextmanager
def transfer_progress(what: str, *, bytes_known: bool = False) -> Iterator[ProgressCallback | None]:
    """A progress bar on standard error while a transfer runs; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    counted = (
        TextColumn("{task.fields[entities]:,} entities") if bytes_known else MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *counted,
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, entities=0, rate="")

        def show(progress: TransferProgress) -> None:
            if bytes_known:
                completed, total = progress.done_bytes, progress.total_bytes
            else:
                completed, total = progress.entities, progress.total_entities
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = (progress.entities - progress.resumed) / elapsed if elapsed > 0.5 else 0.0
            bar.update(
                task,
                description=progress.phase,
                completed=completed,
                total=max(total, completed) if total is not None else None,
                entities=progress.entities,
                rate=f"{rate:,.0f}/s" if rate else "",
            )

        yield show
