"""Which transaction is the current one."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

from aiodatastore.errors import TransactionStateError

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore
    from aiodatastore.txn.transaction import Transaction

__all__ = ["Frame", "current_frame", "find_datastore", "open_datastores", "transaction_of"]


class Frame:
    """What holds inside: the transaction (None: paused) of a datastore; ``outer`` says what of the others."""

    __slots__ = ("datastore", "outer", "transaction")

    def __init__(self, datastore: Datastore, transaction: Transaction | None, outer: Frame | None) -> None:
        self.datastore = datastore
        self.transaction = transaction
        self.outer = outer


current_frame: ContextVar[Frame | None] = ContextVar("aiodatastore_transaction", default=None)
open_datastores: weakref.WeakSet[Datastore] = weakref.WeakSet()


def transaction_of(datastore: Datastore) -> Transaction | None:
    """The current transaction of a datastore, ended or not; None outside and where it is paused."""
    frame = current_frame.get()
    while frame is not None:
        if frame.datastore is datastore:
            return frame.transaction
        frame = frame.outer
    return None


def find_datastore() -> Datastore:
    """The datastore of the current transaction, else the only open one of the process.

    :raises TransactionStateError: if there is none, or more than one
    """
    frame = current_frame.get()
    while frame is not None:
        if frame.transaction is not None:
            return frame.datastore
        frame = frame.outer
    found = list(open_datastores)
    if len(found) == 1:
        return found[0]
    there = "no datastore is open" if not found else f"{len(found)} datastores are open"
    raise TransactionStateError(
        f"{there}: name the one to use, @transactional(datastore=...), or open exactly one before the call"
    )
