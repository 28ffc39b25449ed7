"""Every error this package raises, as one tree under :class:`DatastoreError`.

The names are App Engine's (``google.appengine.api.datastore_errors``) where App Engine has one. Messages say
what was given, what was expected and what to do; what a program needs is kept in attributes, so nobody has to
parse a text.

::

    DatastoreError
    ├── BadArgumentError                 a call's argument is of the wrong form
    ├── BadKeyError                      a key is malformed, incomplete where a complete one is needed, …
    ├── BadPropertyError                 a property's name
    ├── BadValueError                    a property's value
    │   └── IntegerOverflowError         (also OverflowError) outside 64 bits
    ├── BadFilterError                   a filter
    ├── BadQueryError                    a combination that no query can have
    ├── BadRequestError                  well formed, but refused (limits, reserved names, wrong place)
    │   ├── LimitExceededError           larger than a limit that was set (shims.Limited)
    │   ├── BadCursorError               a cursor that is damaged or of another query
    │   ├── CrossShardError              (also UnsupportedError) one transaction over stores that can't commit together
    │   ├── TransactionClosedError       used after its end, by a task that outlived it
    │   └── TransactionStateError        begin inside, mandatory outside, write in a read-only one, …
    ├── NeedIndexError                   a query needs a composite index; carries its definition
    ├── EntityNotFoundError              (also KeyError)
    ├── EntityExistsError                insert of what exists
    ├── ConflictError                    if_version did not hold
    ├── TransactionFailedError           retries or time used up
    ├── Rollback                         raised by the user inside a transaction; swallowed
    ├── UnsupportedError                 (also NotImplementedError) a capability this adapter lacks
    │   └── CrossShardError
    ├── DeadlineExceededError            (also TimeoutError)
    ├── UnavailableError                 the store can't be reached or used now
    │   ├── StoreBusyError               another process holds it
    │   ├── StoreFullError               no space
    │   ├── OverloadedError              too many calls wait for it (shims.Limited)
    │   ├── StoreReadOnlyError           writes are refused
    │   └── StoreClosedError             used before open or after close
    └── CorruptDataError                 stored bytes that can't be what this package wrote
        └── FormatVersionError           written by another version of the format
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BadArgumentError",
    "BadCursorError",
    "BadFilterError",
    "BadKeyError",
    "BadPropertyError",
    "BadQueryError",
    "BadRequestError",
    "BadValueError",
    "ConflictError",
    "CorruptDataError",
    "CrossShardError",
    "DatastoreError",
    "DeadlineExceededError",
    "EntityExistsError",
    "EntityNotFoundError",
    "FormatVersionError",
    "IntegerOverflowError",
    "LimitExceededError",
    "NeedIndexError",
    "OverloadedError",
    "Rollback",
    "StoreBusyError",
    "StoreClosedError",
    "StoreFullError",
    "StoreReadOnlyError",
    "TransactionClosedError",
    "TransactionFailedError",
    "TransactionStateError",
    "UnavailableError",
    "UnsupportedError",
]


class DatastoreError(Exception):
    """Root of every error of this package."""


class BadArgumentError(DatastoreError):
    """An argument of a call has the wrong type or form."""


class BadKeyError(DatastoreError):
    """A key is malformed, or incomplete where a complete one is needed."""


class BadPropertyError(DatastoreError):
    """A property name is not usable: not a string, empty, too long."""


class BadValueError(DatastoreError):
    """A property value is of a type, or in a range, that can't be stored or compared."""


class IntegerOverflowError(BadValueError, OverflowError):
    """An integer needs more than 64 bits."""


class BadFilterError(DatastoreError):
    """A filter is malformed or can't be combined with the others."""


class BadQueryError(DatastoreError):
    """A query's parts contradict each other."""


class BadRequestError(DatastoreError):
    """A request is well formed but refused: a limit, a reserved name, a wrong place."""


class LimitExceededError(BadRequestError):
    """An entity, commit or lookup is larger than a limit that was set. Nothing of it was written.

    ``limit`` names it, ``allowed`` is what it allows, ``given`` what came.
    """

    def __init__(self, message: str, *, limit: str = "", allowed: int = 0, given: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed
        self.given = given


class BadCursorError(BadRequestError, BadValueError, BadArgumentError):
    """A cursor is damaged, or was made by a query of another shape."""


class TransactionClosedError(BadRequestError):
    """A transaction was used after its end, usually by a task that outlived it."""


class TransactionStateError(BadRequestError):
    """An operation is not allowed in (or needs) a transaction of this state."""


class NeedIndexError(DatastoreError):
    """A query needs a composite index that is not defined.

    ``definition`` is the index that would serve it (an ``IndexDefinition``), ``yaml`` and ``xml`` the same in
    App Engine's two notations, ready to paste into ``index.yaml`` / ``datastore-indexes.xml``. ``minimal`` is
    an index that would do in addition to those defined: sometimes smaller.
    """

    def __init__(
        self, message: str, *, definition: Any = None, yaml: str = "", xml: str = "", minimal: Any = None
    ) -> None:
        super().__init__(message)
        self.definition = definition
        self.minimal = minimal
        self.yaml = yaml
        self.xml = xml


class EntityNotFoundError(DatastoreError, KeyError):
    """No entity with this key. ``key`` is the (first) missing one."""

    def __init__(self, message: str, *, key: Any = None) -> None:
        super().__init__(message)
        self.key = key

    __str__ = Exception.__str__  # KeyError would show the message's repr


class EntityExistsError(DatastoreError):
    """``insert`` met an existing entity. ``key`` is the (first) existing one."""

    def __init__(self, message: str, *, key: Any = None) -> None:
        super().__init__(message)
        self.key = key


class ConflictError(DatastoreError):
    """A version given with ``if_version`` is not the stored one. Nothing was written.

    ``key`` is the entity's, ``expected`` the version given, ``actual`` the stored one (0: absent).
    """

    def __init__(
        self, message: str, *, key: Any = None, expected: int | None = None, actual: int | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.expected = expected
        self.actual = actual


class TransactionFailedError(DatastoreError):
    """A transaction conflicted on every attempt, or its time was used up. Nothing was written."""

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class Rollback(DatastoreError):  # noqa: N818  (App Engine's name)
    """Raise it inside a transaction to roll back; it is swallowed and the call returns None."""


class UnsupportedError(DatastoreError, NotImplementedError):
    """The adapter lacks a capability. ``capability`` names it."""

    def __init__(self, message: str, *, capability: str = "") -> None:
        super().__init__(message)
        self.capability = capability


class CrossShardError(BadRequestError, UnsupportedError):
    """A transaction touches several stores that can't commit together. Nothing was written."""


class DeadlineExceededError(DatastoreError, TimeoutError):
    """A call's ``timeout`` passed. A write may have taken effect unless the message says otherwise."""


class UnavailableError(DatastoreError):
    """The store can't be reached or used at the moment; trying again later may work.

    ``nothing_written``: whether it is certain that the commit that met it wrote nothing; else it may have taken effect.
    """

    nothing_written: bool = False


class StoreBusyError(UnavailableError):
    """Another process held the store's lock for longer than the busy timeout. Nothing was written."""

    nothing_written = True


class StoreFullError(UnavailableError):
    """The disk, or the store's own size limit, is full. Nothing of the batch was written."""

    nothing_written = True


class OverloadedError(UnavailableError):
    """More calls are waiting for the store than it was given room for. Nothing was written."""

    nothing_written = True


class StoreReadOnlyError(UnavailableError):
    """The store, its file or its folder can't be written."""


class StoreClosedError(UnavailableError):
    """The datastore was used before ``async with`` / ``open()`` or after ``aclose()``."""


class CorruptDataError(DatastoreError):
    """Stored bytes are not what this package writes: damage, or another program's file."""


class FormatVersionError(CorruptDataError):
    """The store was written in a version of the format that this version can't read."""
