"""Transactions: optimistic, serializable, and task-safe.

A :class:`Transaction` notes the version of every entity it reads and every span it scans, and buffers its
writes. Its commit sends both; the store verifies and applies them at once, or not at all. No connection and no lock
of the store is held while the application's code runs.

*One moment.* All reads of a transaction are of one moment of the store. Each read narrows the interval in which all
that was seen held: an entity of version 5 found at version 9 held from 5 to 9; that something is absent, and
a scan, held at 9. If the interval would become empty, everything is verified again in one round trip: either all of
it holds now, or the attempt ends as a conflict there and then. A transaction that wrote nothing therefore has
nothing to verify at its end: it took place at that moment, whatever was written since.

*Tasks.* The current transaction is kept in a context variable: tasks started inside take part in it, side by side
if they like. When it ends, it is closed first: whatever of its operations is still under way, in a task that
outlives it, raises :class:`~aiodatastore.errors.TransactionClosedError`, and so does all that this task does
with the datastore later, unless it goes outside with ``non_transactional`` or ``Propagation.INDEPENDENT``.

*Cancellation* rolls back: nothing was sent yet. A commit that was sent is waited for, its ``on_commit`` callbacks
run if it succeeded, and then the cancellation goes on.
"""

from aiodatastore.txn.current import current_frame, open_datastores, transaction_of
from aiodatastore.txn.decorators import check_options, decorated, transactional
from aiodatastore.txn.running import NonTransactional, Propagation, TransactionContext, run_in_transaction
from aiodatastore.txn.transaction import Transaction, version_conflict, within

__all__ = [
    "NonTransactional",
    "Propagation",
    "Transaction",
    "TransactionContext",
    "check_options",
    "current_frame",
    "decorated",
    "open_datastores",
    "run_in_transaction",
    "transaction_of",
    "transactional",
    "version_conflict",
    "within",
]
