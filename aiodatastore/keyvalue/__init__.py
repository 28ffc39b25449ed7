"""Plain values by path: ``KeyValue(ds)`` is a dictionary on any store.

*Paths.* ``/Comedy/MontyPython/Actor:JohnCleese`` has three elements; the last one has the type ``Actor`` and the name
``JohnCleese``, the others have no type. Each element is an element of the entity's key, its type the kind and its name
the name, so that "below a path" is an ancestor query. An element without type has the kind ``Path``. What the datastore
could not tell apart, or reserves, gets a tilde at its end: the type ``Path`` is the kind ``Path~``, ``Path~`` is
``Path~~``, and types and names like ``__x__`` are ``__x__~``. Different paths have different keys.

*Values.* A ``dict`` is an entity with its items as properties, so that filters and orders work on them; any other value
is an entity with the one property :data:`VALUE`. Values come back equal and of the same types, whatever JSON has: None,
bool, int (of any size), float, str (of up to a megabyte), list and dict, nested up to 100 deep; bytes and aware
datetimes (which come back in UTC) as well. What properties can't hold (lists in lists, integers beyond 64 bits, …) is
kept packed beside them, and so can't be searched; nor can strings of more than 1500 bytes and lists of more than 1000
elements. A name that begins with a tilde, is empty or is like ``__x__`` is stored with a tilde before it.
"""

from __future__ import annotations

from aiodatastore.keyvalue.paths import PathKey
from aiodatastore.keyvalue.store import MAX_SORTED, Item, KeyValue, ValuePage, ValueQuery
from aiodatastore.keyvalue.values import VALUE

__all__ = ["MAX_SORTED", "VALUE", "Item", "KeyValue", "PathKey", "ValuePage", "ValueQuery"]
