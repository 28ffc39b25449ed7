"""``explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import click

from aiodatastore.adapters.base import Adapter
from aiodatastore.cli.app import app, run
from aiodatastore.cli.options import json_option
from aiodatastore.cli.output import print_json, print_lines

if TYPE_CHECKING:
    from aiodatastore.composing import Description

__all__ = ["explain"]


@app.command(
    short_help="Show what a URL is made of, and what it promises.",
    epilog="""\
\b
Examples:
  aiodatastore explain sqlite:///shop.db
  aiodatastore explain 'namespaced{namespace=shop}:postgresql://localhost/shop'
  aiodatastore explain 'sharded:{sqlite:///0.db | sqlite:///1.db}' --json
  aiodatastore explain toml:///shop.toml
""",
)
@click.argument("url")
@click.option("--open", "opening", is_flag=True, help="Open the stores: some know only then what they promise.")
@json_option
def explain(url: str, opening: bool, as_json: bool) -> int:
    """Show the tree of stores, shims and collections that a URL names, with their settings, and whether the whole has
    each capability: if not, which part lost it.

    Nothing is opened without --open. What can't be combined is refused, with the reason and the place.
    """
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.composing import describe

    adapter = adapter_from_url(url)
    found = run(_opened, adapter) if opening else describe(adapter)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(str(found).splitlines())
    return 0


async def _opened(adapter: Adapter) -> Description:
    from aiodatastore.composing import describe

    await adapter.open()
    try:
        return describe(adapter)
    finally:
        with anyio.CancelScope(shield=True):
            await adapter.aclose()
