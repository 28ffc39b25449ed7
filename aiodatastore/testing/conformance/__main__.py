"""``python -m aiodatastore.testing.conformance CORPUS_DIR --url URL [--only queries]``."""

from __future__ import annotations

import logging
import sys

import anyio
import click

from aiodatastore.datastore import Datastore
from aiodatastore.errors import DatastoreError
from aiodatastore.testing.conformance.report import FileReport
from aiodatastore.testing.conformance.runner import FILES, run_corpus


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("corpus_dir")
@click.option("--url", required=True, help="The store to run against, e.g. memory:// or sqlite:///new.db; empty.")
@click.option("--only", "only", multiple=True, type=click.Choice(FILES), help="Run only this file; may be repeated.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True)
def main(corpus_dir: str, url: str, only: tuple[str, ...], backend: str) -> None:
    """Run every golden case in CORPUS_DIR against a store.

    Prints a line for each file, then the ids of the cases that failed and what was wrong. The exit status is 0
    if all passed, 1 if one failed, 2 if the run could not start (the store is not empty, no such folder).

    The store must be empty and is emptied again; use one that nobody needs, for ids stay allocated.
    """

    async def run() -> bool:
        report = await run_corpus(
            corpus_dir,
            lambda **options: Datastore(url, **options),
            only=only or None,
            on_file=_print_line,
        )
        for line in list(report.lines())[len(report.files) :]:
            click.echo(line)
        return report.ok

    # Suggestions of indexes: hundreds of queries here run without theirs.
    logging.getLogger("aiodatastore").setLevel(logging.ERROR)
    try:
        passed = anyio.run(run, backend=backend)
    except DatastoreError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    sys.exit(0 if passed else 1)


def _print_line(file: FileReport) -> None:
    click.echo(file.line())


if __name__ == "__main__":
    main(prog_name="python -m aiodatastore.testing.conformance")
