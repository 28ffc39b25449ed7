"""One judge for each file of a corpus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiodatastore.testing.conformance.judges import (
    allocate_ids,
    cursors,
    entities,
    indexes,
    keys,
    multiquery,
    queries,
    transactions,
    values,
)
from aiodatastore.testing.conformance.session import Record, Session

__all__ = ["JUDGES", "Judge"]

Judge = Callable[[Session, Sequence[Record]], Awaitable[None]]

JUDGES: dict[str, Judge] = {
    "values": values.judge,
    "keys": keys.judge,
    "entities": entities.judge,
    "queries": queries.judge,
    "cursors": cursors.judge,
    "multiquery": multiquery.judge,
    "indexes": indexes.judge,
    "transactions": transactions.judge,
    "allocate_ids": allocate_ids.judge,
}
"""By the file's name without ``.jsonl``."""
