"""``rebalance``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from aiodatastore.adapters.base import Adapter
from aiodatastore.cli.app import app, run
from aiodatastore.cli.options import json_option
from aiodatastore.cli.output import note, print_json

if TYPE_CHECKING:
    from aiodatastore.shims.sharded import Sharded

__all__ = ["rebalance"]

_SHOW_S = 0.2


@app.command(
    short_help="Spread entities over shards that were added.",
    epilog="""\
\b
Examples:
  aiodatastore rebalance 'sharded:{sqlite:///0.db | sqlite:///1.db | sqlite:///2.db}'
""",
)
@click.argument("url")
@json_option
def rebalance(url: str, as_json: bool) -> int:
    """Spread what is in some of the shards of URL over all of them, while they are in use.

    New shards are empty, and given after the old ones (or with names). Nothing is lost if it is interrupted: the same
    command goes on. Processes that were started with the old shards go on until groups are read in their new place;
    start those that know all shards while this copies. Near the end writes to groups that move wait for a few seconds.
    """
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.shims.sharded.rebalance import rebalance as run_rebalance

    sharded = _sharded_in(adapter_from_url(url))
    report = run(run_rebalance, sharded, progress=_Progress())
    if as_json:
        print_json({"copied": report.copied, "removed": report.removed})
    else:
        note(f"{report.copied:,} entities copied and compared, {report.removed:,} removed where they were")
    return 0


def _sharded_in(adapter: Adapter) -> Sharded:
    from aiodatastore.shims.sharded import Sharded

    below = adapter
    while not isinstance(below, Sharded):
        if len(below.children) != 1:
            raise click.UsageError(f"{adapter.url} has no shards: expected sharded:{{URL | URL | …}}")
        below = below.children[0]
    return below


class _Progress:
    """The phase and what it has seen, on a terminal as it goes on, else once a phase."""

    def __init__(self) -> None:
        self._phase = ""
        self._shown = 0.0

    def __call__(self, phase: str, count: int) -> None:
        if phase != self._phase:
            self._phase = phase
            note(f"{phase} …")
        elif sys.stderr.isatty() and time.monotonic() - self._shown > _SHOW_S:
            self._shown = time.monotonic()
            click.echo(f"\r{phase}: {count:,} entities\r", err=True, nl=False)
