"""Kinds, or single entity groups, in stores of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from aiodatastore.adapters.base import Adapter
from aiodatastore.errors import BadArgumentError, BadKeyError, DatastoreError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.shims.sharded.routed import Routed

__all__ = ["Mounted"]

_DEFAULT = "*"


class Mounted(Routed):
    """Stores by the root of their entity groups: by its kind, or by the root key itself.

    >>> from aiodatastore import Datastore
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> ds = Datastore(Mounted({
    ...     "Session": adapter_from_url("memory://"),            # roots of this kind, and all below them
    ...     "/Country:GB": adapter_from_url("sqlite:///gb.db"),  # this one group, in every namespace
    ...     "*": adapter_from_url("sqlite:///rest.db"),          # everything else
    ... }))

    - *Where*: a root key that is mounted by itself (``/kind:name`` or ``/kind:id`` as ``str(key)`` writes it) goes
      before its kind, and that before ``*``. Entity groups are never divided. Without ``*`` a key of any other root is
      refused.
    - *Queries* with an ancestor go to its store. A query of a mounted kind goes to the stores where its roots are: so
      an entity of a mounted kind can't be put below a root of another store (``BadKeyError``). Queries of other kinds,
      which may be below any root, and of all kinds, go to every store and are merged in order.
    - *Transactions* in one store are as strong as the store; over several as in
      :class:`~aiodatastore.shims.sharded.Sharded`.
    - *Ids* of a kind come from the store where it is mounted, else from ``*``, else from the first: so they never
      collide, whatever the entities are below.

    What is mounted is not recorded: data does not move when it changes (export it and import it again).

    :raises BadArgumentError: if nothing is mounted, a place is no kind, root key or ``*``, or a store was given twice
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {}

    def __init__(self, mounts: Mapping[str, Adapter]) -> None:
        if not isinstance(mounts, Mapping):
            raise BadArgumentError(f"expected a mapping of kinds or root keys to stores, got {type(mounts).__name__}")
        super().__init__(list(mounts.values()), list(mounts))
        self._kinds: dict[str, int] = {}
        self._roots: dict[tuple[str, int | str | None], int] = {}
        self._rest: int | None = None
        for number, name in enumerate(self.names):
            if name == _DEFAULT:
                self._rest = number
            elif name[:1] == "/":
                self._roots[_root_pair(name)] = number
            else:
                self._kinds[Key(name).kind] = number

    @property
    def settings(self) -> Mapping[str, object]:
        """What is mounted."""
        return {"mounts": ", ".join(self.names)}

    @property
    def url(self) -> str:
        """The places and the stores' URLs."""
        mounts = [f"{name}={child.url}" for name, child in zip(self.names, self.children, strict=True)]
        return f"mounted:{{{' | '.join(mounts)}}}"

    def place(self, key: Key) -> int:
        """The store of a key's root.

        :raises BadKeyError: if none is mounted for it
        """
        root = key._pairs[0]
        number = self._roots.get(root) if self._roots else None
        if number is None:
            number = self._kinds.get(root[0], self._rest)
        if number is None:
            raise BadKeyError(f"{key!r}: no store is mounted for {key.root!r}; there are {', '.join(self.names)}")
        return number

    def places(self, query: Query) -> Sequence[int]:
        """The store of the ancestor, those of the kind, or all."""
        if query.ancestor is not None:
            return (self.place(query.ancestor),)
        return self._places_of_kind(query.kind)

    def _places_of_kind(self, kind: str | None) -> Sequence[int]:
        if kind is None or kind not in self._kinds:
            return range(len(self.names))
        return sorted({self._kinds[kind], *(number for root, number in self._roots.items() if root[0] == kind)})

    def refusal(self, key: Key) -> DatastoreError | None:
        """Why an entity can't be put: queries of its kind would not look where it is."""
        kind = key.kind
        if len(key._pairs) == 1 or kind not in self._kinds or self.place(key) in self._places_of_kind(kind):
            return None
        return BadKeyError(
            f"{key!r}: entities of kind {kind!r} are in the store mounted for it, and can't be below a root of another"
        )

    def sequence_place(self, key: Key) -> int:
        """The store of the kind."""
        return self._kinds.get(key.kind, self._rest or 0)

    def index_places(self, definition: IndexDefinition) -> Sequence[int]:
        """Where entities of the kind may be."""
        return self._places_of_kind(definition.kind)


def _root_pair(text: str) -> tuple[str, int | str | None]:
    key = Key.from_string(text)
    if len(key.pairs) != 1 or not key.is_complete:
        raise BadArgumentError(
            f"{text!r:.200}: expected a complete root key such as /Country:GB: what is below a root stays with it"
        )
    return key.pairs[0]
