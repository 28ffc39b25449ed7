"""Shims and collections in one URL or one TOML file.

>>> from aiodatastore.adapters.registry import adapter_from_url
>>> print(describe(adapter_from_url("read_only:memory://")))
read_only
└── memory://
...

The grammar of URLs is in :mod:`aiodatastore.composing.grammar`, that of files in
:mod:`aiodatastore.composing.toml`; the names in :mod:`aiodatastore.composing.names`.
"""

from __future__ import annotations

from aiodatastore.composing.build import build, from_text
from aiodatastore.composing.describing import Description, Part, describe
from aiodatastore.composing.grammar import Leaf, Node, Setting, is_composed, leaves, parse
from aiodatastore.composing.names import known_names

__all__ = [
    "Description",
    "Leaf",
    "Node",
    "Part",
    "Setting",
    "build",
    "describe",
    "from_text",
    "is_composed",
    "known_names",
    "leaves",
    "parse",
    "store_urls",
]


def store_urls(url: str) -> list[str]:
    """The URLs of the stores that a URL is made of, in order: itself, if it is no composition and no file.

    >>> store_urls("logged:tiered:{memory:// | sqlite:///p.db}")
    ['memory://', 'sqlite:///p.db']

    :raises BadArgumentError: if a composition is malformed, or a file can't be read
    """
    if is_composed(url):
        return [found for leaf in leaves(parse(url)) for found in store_urls(leaf.url)]
    if url.lower().startswith("toml://"):
        from aiodatastore.composing.toml import read

        return [found for leaf in leaves(read(url)) for found in store_urls(leaf.url)]
    return [url]
