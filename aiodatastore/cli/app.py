"""The command group, and what is common to all commands: opening stores, errors, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import anyio
import click

from aiodatastore.errors import DatastoreError

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore

__all__ = ["NOT_FOUND", "app", "opened", "run", "run_app"]

FAILED = 1
NOT_FOUND = 3
INTERRUPTED = 130

Result = TypeVar("Result")


def _version() -> str:
    try:
        return version("aiodatastore-engine")
    except PackageNotFoundError:
        return "unknown (not installed)"


class _App(click.Group):
    """Ends quietly where click would print an empty line, or exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _complain("interrupted", first="\n" if sys.stderr.isatty() else "")
            return INTERRUPTED
        except BrokenPipeError:
            # The reader of a pipe went away, as `head` does. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return result


@click.group(
    cls=_App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\
\b
A first session:
  echo '{"key": "/Person:ada", "properties": {"name": "Ada", "born": 1815}}' |
      aiodatastore import sqlite:///people.db -
  aiodatastore query sqlite:///people.db Person --filter 'born < 1900' --order -born
  aiodatastore get sqlite:///people.db /Person:ada
  aiodatastore export sqlite:///people.db people.jsonl
  aiodatastore copy sqlite:///people.db sqlite:///backup.db --verify

\b
Exit codes: 0 done, 1 refused or failed (or a check found something), 2 wrong usage,
3 not found, 130 interrupted.
""",
)
@click.version_option(_version(), prog_name="aiodatastore")
def app() -> None:
    """Look into a datastore, change it, move it.

    Every command takes the URL of a store first: memory://, sqlite:///relative.db, sqlite:////absolute.db, or
    that of any installed adapter; shims and collections are written around it (read_only:sqlite:///relative.db), or in
    a file (toml:///store.toml).

    Keys are written as they are shown: /Country:GB/City:2643743 (a kind, then an id or a name; a name of
    digits is quoted), with a namespace before the first slash (shop/Item:1), or in their URL-safe form.

    On a terminal results are tables; in a pipe they are plain: lines of tab-separated values, or JSON lines
    with --json. Remarks and progress go to standard error.
    """


def run(function: Callable[..., Awaitable[Result]], *args: Any, **options: Any) -> Result:
    """Run a coroutine function to its end."""
    return anyio.run(partial(function, *args, **options))


@asynccontextmanager
async def opened(url: str, *, create: bool = False, **options: Any) -> AsyncIterator[Datastore]:
    """An open datastore. Only commands that write (``create``) may make a store that does not exist yet."""
    from aiodatastore.datastore import Datastore

    if not create:
        _refuse_missing(url)
    async with Datastore(url, **options) as store:
        yield store


def _refuse_missing(composed: str) -> None:
    from aiodatastore.composing import store_urls

    for url in store_urls(composed):
        scheme, _, rest = url.partition("://")
        place = rest.partition("?")[0]
        path = unquote(place.removeprefix("/"))
        well_formed = place.startswith("/") and path  # else the adapter says what is wrong
        if scheme in ("sqlite", "file") and well_formed and not os.path.exists(path):
            raise click.ClickException(f"there is no store at {url} (commands that write would create it)")


def run_app(argv: Sequence[str] | None) -> int:
    """Run the commands; errors become one message on standard error and an exit code."""
    try:
        result = app.main(
            args=list(argv) if argv is not None else None, prog_name="aiodatastore", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        _complain("aborted")
        return FAILED
    except (DatastoreError, OSError, ImportError) as exc:
        _complain(str(exc) or type(exc).__name__, *getattr(exc, "__notes__", ()))
        return FAILED


def _complain(message: str, *remarks: str, first: str = "") -> None:
    label = click.style("error:", fg="red") if sys.stderr.isatty() else "error:"
    click.echo(f"{first}{label} {message}", err=True)
    for remark in remarks:
        click.echo(f"  ({remark})", err=True)


# Commands register themselves with the group.
from aiodatastore.cli import admin, explain, indexes, move, query, rebalance, write  # noqa: E402, F401
