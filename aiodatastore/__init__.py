"""An asyncio entity datastore: one small model over memory, SQLite and more.

>>> from aiodatastore import Datastore, Entity, Key

Names are loaded when they are first used, so that importing the package costs next to nothing and loads no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Aggregation",
    "And",
    "BadArgumentError",
    "BadCursorError",
    "BadFilterError",
    "BadKeyError",
    "BadPropertyError",
    "BadQueryError",
    "BadRequestError",
    "BadValueError",
    "Blob",
    "BoundQuery",
    "Capability",
    "ConflictError",
    "CorruptDataError",
    "CrossShardError",
    "Cursor",
    "Datastore",
    "DatastoreError",
    "DeadlineExceededError",
    "Entity",
    "EntityExistsError",
    "EntityNotFoundError",
    "FormatVersionError",
    "GeoPoint",
    "IndexDefinition",
    "IndexInfo",
    "IndexState",
    "IntegerOverflowError",
    "Key",
    "KeyValue",
    "LimitExceededError",
    "NeedIndexError",
    "Op",
    "Or",
    "Order",
    "OverloadedError",
    "Propagation",
    "PathKey",
    "PerProcess",
    "PropertyFilter",
    "Query",
    "QueryPage",
    "QueryResults",
    "ReadPolicy",
    "Rollback",
    "Storage",
    "StoreBusyError",
    "StoreClosedError",
    "StoreFullError",
    "StoreReadOnlyError",
    "Text",
    "Transaction",
    "TransactionClosedError",
    "TransactionFailedError",
    "TransactionStateError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "transactional",
]

_HOMES = {
    "adapters.base": ("Adapter", "Aggregation", "Capability", "ReadPolicy"),
    "bound_query": ("BoundQuery", "QueryPage", "QueryResults"),
    "cursor": ("Cursor",),
    "datastore": ("Datastore",),
    "entity": ("Entity",),
    "indexing.definitions": ("IndexDefinition", "IndexInfo", "IndexState"),
    "key": ("Key",),
    "keyvalue": ("KeyValue", "PathKey"),
    "query": ("And", "Op", "Or", "Order", "PropertyFilter", "Query"),
    "storage": ("PerProcess", "Storage"),
    "txn": ("Propagation", "Transaction", "transactional"),
    "values": ("Blob", "GeoPoint", "Text"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter, Aggregation, ReadPolicy
    from aiodatastore.bound_query import BoundQuery, QueryPage, QueryResults
    from aiodatastore.cursor import Cursor
    from aiodatastore.datastore import Datastore
    from aiodatastore.entity import Entity
    from aiodatastore.errors import (
        BadArgumentError,
        BadCursorError,
        BadFilterError,
        BadKeyError,
        BadPropertyError,
        BadQueryError,
        BadRequestError,
        BadValueError,
        ConflictError,
        CorruptDataError,
        CrossShardError,
        DatastoreError,
        DeadlineExceededError,
        EntityExistsError,
        EntityNotFoundError,
        FormatVersionError,
        IntegerOverflowError,
        LimitExceededError,
        NeedIndexError,
        OverloadedError,
        Rollback,
        StoreBusyError,
        StoreClosedError,
        StoreFullError,
        StoreReadOnlyError,
        TransactionClosedError,
        TransactionFailedError,
        TransactionStateError,
        UnavailableError,
        UnsupportedError,
    )
    from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo, IndexState
    from aiodatastore.key import Key
    from aiodatastore.keyvalue import KeyValue, PathKey
    from aiodatastore.query import And, Op, Or, Order, PropertyFilter, Query
    from aiodatastore.rowstore import Capability
    from aiodatastore.storage import PerProcess, Storage
    from aiodatastore.txn import Propagation, Transaction, transactional
    from aiodatastore.values import Blob, GeoPoint, Text


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
