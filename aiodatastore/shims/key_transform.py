"""Other keys inside than outside: what namespaces, nested paths and other renamings are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, NoReturn

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Delete,
    Lookup,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.cursor import Cursor
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadCursorError,
    BadKeyError,
    CorruptDataError,
    DatastoreError,
    NeedIndexError,
    UnsupportedError,
)
from aiodatastore.indexing.aggregates import RunningSum
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.indexing.encoding import decode_key, encode_key, invert, key_end
from aiodatastore.indexing.explain import Explanation
from aiodatastore.indexing.merging import CursorBounds
from aiodatastore.indexing.metadata import METADATA_KINDS
from aiodatastore.indexing.normal import NormalQuery, normalize
from aiodatastore.key import Key
from aiodatastore.query import KEY_PROPERTY, And, Filter, Op, Or, PropertyFilter, Query
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import DEFAULT, Shim

__all__ = ["KeyTransform"]

_REMEMBERED: Final = 32768
"""Keys that a shim remembers: some ten megabytes."""

Partition = tuple[str, str]
"""Project and namespace."""

_RANGES: Final = frozenset({Op.LT, Op.LE, Op.GT, Op.GE})


class KeyTransform(Shim):
    """Stores entities under other keys: ``encode(key)`` is the key inside, ``decode`` its inverse.

    >>> import asyncio
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     swapped = lambda key: Key(key.kind, key.name.swapcase())
    ...     memory = adapter_from_url("memory://")
    ...     async with Datastore(KeyTransform(memory, encode=swapped, decode=swapped)) as ds:
    ...         await ds.put(Entity(Key("Person", "Ada"), {"born": 1815}))
    ...         return await ds.query("Person").keys(), (await memory.lookup([Key("Person", "aDA")])).entities
    >>> asyncio.run(main())
    ([Key('Person', 'Ada')], [Entity(Key('Person', 'aDA'), {'born': 1815}, version=2)])

    All elements of a key may change; that queries still find what they should, three things must hold, which every
    write is checked for (``BadKeyError`` says which does not):

    - ``decode(encode(key)) == key``;
    - a key's kind inside depends on its kind alone, and its partition inside on its partition alone. ``kinds`` and
      ``partitions`` are the two pairs of functions, on a kind and on a tuple of project and namespace; without them
      both stay as they are. A partition that is not this shim's decodes to None: it is left out of what lists
      partitions;
    - what is below a key is, inside, below the key inside.

    A key that ``encode`` refuses with a ``BadKeyError`` can't be put, and is nowhere found. Keys that are values of
    properties, or of entities embedded in them, are kept as they were given: they are the application's own names,
    which it hands to this shim again when it follows them. So they come back exactly, and filters and orders on them
    are the child's; only who reads the child without the shim has to encode them himself.

    **Order.** With ``keeps_order=True`` (``a < b`` exactly if ``encode(a) < encode(b)``) nothing is lost. Without, the
    capability ``KEY_ORDER`` is: where properties do not decide, results come in the order of the keys inside. Pages,
    cursors, limits and offsets agree with that order; filters ``<`` to ``>=`` on ``__key__`` raise
    ``UnsupportedError``, and so does a query in a transaction that has already written what it might find.

    **Cost.** Each key is encoded once on its way in and decoded once on its way out; an entity that is put is copied,
    shallowly; the functions run for each write three times more, to check the above. Queries of the metadata kinds
    (``__kind__`` and the like) read the child's whole list, and choose here.

    :raises BadArgumentError: if something that should be a function, or a pair of them, is none
    """

    checked: ClassVar[bool] = True
    """Whether writes verify that the functions are what they should be."""

    def __init__(
        self,
        child: Adapter,
        *,
        encode: Callable[[Key], Key],
        decode: Callable[[Key], Key],
        kinds: tuple[Callable[[str], str], Callable[[str], str]] | None = None,
        partitions: tuple[Callable[[Partition], Partition], Callable[[Partition], Partition | None]] | None = None,
        keeps_order: bool = False,
    ) -> None:
        for name, function in (("encode", encode), ("decode", decode)):
            if not callable(function):
                raise BadArgumentError(f"{name}: expected a function of a key, got {function!r:.80}")
        for name, pair in (("kinds", kinds), ("partitions", partitions)):
            if not _is_pair(pair):
                raise BadArgumentError(f"{name}: expected a pair of functions (there and back), got {pair!r:.80}")
        if type(keeps_order) is not bool:
            raise BadArgumentError(f"keeps_order is True or False, not {keeps_order!r:.80}")
        super().__init__(child)
        remembered = _Remembered(self._encode_checked(encode) if self.checked else encode)
        self._inner = remembered.of
        self._known = remembered.known
        self._child_now = child.lookup_now
        self._plain_inner = encode
        self._outer = decode
        self._inner_kind: Callable[[str], str] = kinds[0] if kinds else _same
        self._outer_kind: Callable[[str], str] = kinds[1] if kinds else _same
        self._inner_partition: Callable[[Partition], Partition] = partitions[0] if partitions else _same
        self._outer_partition: Callable[[Partition], Partition | None] = partitions[1] if partitions else _same
        self._renames_kinds = kinds is not None
        self.keeps_order = keeps_order

    @property
    def settings(self) -> Mapping[str, object]:
        """The names of the functions."""
        names = {"encode": self._plain_inner, "decode": self._outer}
        return {name: getattr(function, "__qualname__", repr(function)) for name, function in names.items()}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's; without the order of keys, if that is not kept."""
        found = self.child.capabilities
        return found if self.keeps_order else found - {Capability.KEY_ORDER}

    # ----------------------------------------------------------------------------------------- keys

    def _encode_checked(self, encode: Callable[[Key], Key]) -> Callable[[Key], Key]:
        def checked(key: Key) -> Key:
            found = encode(key)
            if type(found) is not Key or not found.is_complete:
                raise BadKeyError(f"encode gave {found!r:.200} for {key!r}, expected a complete key")
            return found

        return checked

    def _verify(self, key: Key, inner: Key) -> None:
        """That what is about to be written will be found again.

        :raises BadKeyError: if it would not
        """
        if self._outer(inner) != key:
            raise BadKeyError(f"decode must undo encode, but of {key!r} it makes {inner!r}, and {self._outer(inner)!r}")
        if inner.kind != self._inner_kind(key.kind):
            raise BadKeyError(
                f"encode gives {key!r} the kind {inner.kind!r}, but kinds: {self._inner_kind(key.kind)!r}"
            )
        home = self._inner_partition((key.project, key.namespace))
        if (inner.project, inner.namespace) != home:
            raise BadKeyError(
                f"encode puts {key!r} into {(inner.project, inner.namespace)!r}, but partitions: {home!r}"
            )
        parent = key.parent
        if parent is not None and not self._inner(parent).is_ancestor_of(inner):
            raise BadKeyError(f"encode puts {key!r} not below its parent: {self._inner(parent)!r}, {inner!r}")

    def _incomplete(self, key: Key) -> Key:
        """What ids are allocated for: only partition and kind count."""
        project, namespace = self._inner_partition((key.project, key.namespace))
        return Key._make(project, namespace, ((self._inner_kind(key.kind), None),))

    def lane(self, keys: Sequence[Key]) -> int | None:
        """The child's, for the keys that it gets."""
        try:
            return self.child.lane([self._inner(key) for key in keys])
        except BadKeyError:
            return None

    # ---------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """The child's entities, under the keys that were asked for."""
        if len(keys) == 1:
            # The most common case, and of keys that are used again: every line here was measured.
            (key,) = keys
            name: Key | bytes | None = key._encoded
            if name is None:
                # Of a key that was hashed before, and so is at hand, bytes are made: to find it by those is faster.
                name = key if key._hash is None else encode_key(key)
            known = self._known.get(name)
            if known is not None:
                entities = self._child_now(known)
                if entities:
                    (entity,) = entities
                    if entity is not None:
                        entity.key = key
                return entities
        inner = self._inner
        try:
            wanted = [inner(key) for key in keys]
        except BadKeyError:
            return None
        entities = self.child.lookup_now(wanted)
        if entities is not None:
            for key, entity in zip(keys, entities, strict=True):
                if entity is not None:
                    entity.key = key
        return entities

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """The child's entities, under the keys that were asked for."""
        inner = self._inner
        try:
            wanted = [inner(key) for key in keys]
        except BadKeyError:
            return await self._lookup_some(keys, read_policy)
        found = await self.child.lookup(wanted, read_policy=read_policy)
        for key, entity in zip(keys, found.entities, strict=True):
            if entity is not None:
                entity.key = key
        return found

    async def _lookup_some(self, keys: Sequence[Key], read_policy: ReadPolicy) -> Lookup:
        """Where some keys can't be encoded: no entity has them."""
        places: list[int] = []
        for place, key in enumerate(keys):
            try:
                self._inner(key)
            except BadKeyError:
                continue
            places.append(place)
        found = await self.lookup([keys[place] for place in places], read_policy=read_policy)
        entities: list[Entity | None] = [None] * len(keys)
        for place, entity in zip(places, found.entities, strict=True):
            entities[place] = entity
        if found.moments is None:
            return Lookup(entities, found.version, found.clock)
        # What is never stored is absent at any moment: say the one of a neighbour.
        moments = dict(zip(places, found.moments, strict=True))
        some = found.moments[0] if found.moments else None
        every = [moments.get(place, some) for place in range(len(keys))]
        return Lookup(entities, found.version, found.clock, [moment for moment in every if moment is not None] or None)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """The child's, of its keys; what can't be a key there is not there."""
        lives: list[float | None] = [0.0] * len(keys)
        inner: dict[int, Key] = {}
        for place, key in enumerate(keys):
            try:
                inner[place] = self._inner(key)
            except BadKeyError:
                continue
        for place, life in zip(inner, await self.child.lifetimes(list(inner.values())), strict=True):
            lives[place] = life
        return lives

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """The child's results under their keys outside."""
        if query.kind in METADATA_KINDS:
            return self._run_metadata(query, options)
        return KeyStream(self, query, options)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """Of the child's results."""
        if query.kind in METADATA_KINDS:
            return await self._run_metadata(query, options).aggregate(aggregations)
        try:
            found = await self.child.aggregate(self.inner_query(query)[0], aggregations, options)
        except NeedIndexError as exc:
            self._raise_outer(exc)
        found.checks = {self._outer(key): version for key, version in found.checks.items()}
        return found

    def _run_metadata(self, query: Query, options: RunOptions) -> MetadataStream:
        home = (query.project_id, query.namespace)
        return MetadataStream(
            self.child, query, options, self._inner_partition(home), lambda entity: self.outer_metadata(entity, home)
        )

    # -------------------------------------------------------------------------------------- queries

    def inner_query(self, query: Query) -> tuple[Query, NormalQuery | None]:
        """The query as the child gets it; in normal form as well, if it has cursors.

        :raises UnsupportedError: if it compares keys that have another order inside
        """
        inner = query._changed(**self._parts(query))
        if query.subqueries:
            inner = inner._changed(subqueries=tuple(part._changed(**self._parts(part)) for part in query.subqueries))
        if query.start_cursor is None and query.end_cursor is None:
            return inner, None
        normal = normalize(inner)  # with the cursors as they are: of their positions it does not depend
        start, end = (
            self._inner_cursor(cursor, query, inner, normal) for cursor in (query.start_cursor, query.end_cursor)
        )
        return inner._changed(start_cursor=start, end_cursor=end), normal

    def _parts(self, query: Query) -> dict[str, Any]:
        project, namespace = self._inner_partition((query.project_id, query.namespace))
        return {
            "project_id": project,
            "namespace": namespace,
            "kind": None if query.kind is None else self._inner_kind(query.kind),
            "ancestor": None if query.ancestor is None else self._inner(query.ancestor),
            "filters": tuple(self._inner_filter(node) for node in query.filters),
        }

    def _inner_filter(self, node: Filter) -> Filter:
        if not isinstance(node, PropertyFilter):
            return type(node)(*(self._inner_filter(each) for each in _inside(node)))
        if node.name != KEY_PROPERTY:
            return node
        if node.op in _RANGES and not self.keeps_order:
            raise UnsupportedError(
                f"a filter {KEY_PROPERTY} {node.op} needs the order of keys, which {type(self).__name__} does not keep",
                capability=Capability.KEY_ORDER,
            )
        value = tuple(map(self._inner, node.value)) if type(node.value) is tuple else self._inner(node.value)
        return PropertyFilter(KEY_PROPERTY, node.op, value)

    def _inner_cursor(self, cursor: Cursor | None, query: Query, inner: Query, normal: NormalQuery) -> Cursor | None:
        if cursor is None or not cursor.position:
            return cursor
        if cursor.shape != query.shape:
            raise BadCursorError("this cursor was made by another query")
        turned = cursor.inverted != normal.key_descending
        position = invert(cursor.position) if turned else cursor.position
        try:
            start, end = _key_place(normal, position)
            part = position[start:end]
            key = decode_key((invert(part) if normal.key_descending else part)[:-1])
        except CorruptDataError as exc:
            raise BadCursorError("this cursor has no position of its query") from exc
        position = position[:start] + normal.key_part(encode_key(self._inner(key))) + position[end:]
        return replace(cursor, position=invert(position) if turned else position, shape=inner.shape)

    def _raise_outer(self, exc: NeedIndexError) -> NoReturn:
        """An error that names an index, which has a kind."""
        if not self._renames_kinds or exc.definition is None:
            raise exc
        definition = self._outer_definition(exc.definition)
        minimal = None if exc.minimal is None else self._outer_definition(exc.minimal)
        raise NeedIndexError(
            f"this query needs a composite index:\n{definition.to_yaml()}",
            definition=definition,
            yaml=definition.to_yaml(),
            xml=definition.to_xml(),
            minimal=minimal,
        ) from exc

    # --------------------------------------------------------------------------------------- writes

    def _inner_commit(self, commit: Commit) -> Commit:
        inner = self._inner
        writes: list[Put | Delete] = []
        for write in commit.writes:
            if isinstance(write, Put):
                entity = write.entity
                key = inner(entity.key)
                if self.checked:
                    self._verify(entity.key, key)
                # The values are shared: nobody changes them. The entity is not: its key is another one.
                writes.append(Put(Entity._make(key, entity, entity._unindexed, entity.version), write.ttl_s))
            else:
                writes.append(Delete(inner(write.key)))
        checks = {inner(key): version for key, version in commit.checks.items()}
        return Commit(checks, commit.spans, writes, commit.token, commit.atomic, commit.after_prepared)

    def encode(self, commit: Commit) -> None:
        """Encode the keys, and let the child encode the rest."""
        try:
            inner = self._inner_commit(commit)
        except DatastoreError:
            return  # commit() tells
        self.child.encode(inner)
        commit.encoded = self, inner

    def _ready(self, commit: Commit) -> Commit:
        ready = commit.encoded
        if type(ready) is tuple and ready[0] is self:
            inner: Commit = ready[1]
            return inner
        return self._inner_commit(commit)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child; a commit with a key that can't be encoded fails alone."""
        outcomes: list[Outcome] = []
        places: list[int] = []
        inner: list[Commit] = []
        for place, commit in enumerate(batch):
            try:
                inner.append(self._ready(commit))
            except DatastoreError as exc:
                outcomes.append(Outcome(None, error=exc))
            else:
                outcomes.append(Outcome(None))
                places.append(place)
        if inner:
            for place, outcome in zip(places, await self.child.commit(inner), strict=True):
                outcomes[place] = self._outer_outcome(batch[place], outcome)
        return outcomes

    def _outer_outcome(self, commit: Commit, outcome: Outcome) -> Outcome:
        if outcome.conflicts or outcome.versions:
            names = {self._inner(key): key for key in (*map(written_key, commit.writes), *commit.checks)}
            outcome.conflicts = {names[key]: version for key, version in outcome.conflicts.items()}
            if outcome.versions is not None:
                outcome.versions = {names[key]: each for key, each in outcome.versions.items() if key in names}
        return outcome

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Prepare in the child."""
        return self._outer_outcome(commit, await self.child.prepare(self._ready(commit), name))

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Resolve in the child."""
        outcome = await self.child.resolve(name, commit=commit)
        if outcome is not None:
            outcome.conflicts = {self._outer(key): version for key, version in outcome.conflicts.items()}
            if outcome.versions is not None:
                outcome.versions = {self._outer(key): version for key, version in outcome.versions.items()}
        return outcome

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """The child's, of the partition and kind inside."""
        return await self.child.allocate_ids(self._incomplete(key), size)

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """The child's, of the partition and kind inside."""
        return await self.child.reserve_ids(self._incomplete(key), up_to)

    # ------------------------------------------------------------------------------- administration

    def _inner_definition(self, definition: IndexDefinition) -> IndexDefinition:
        return replace(definition, kind=self._inner_kind(definition.kind))

    def _outer_definition(self, definition: IndexDefinition) -> IndexDefinition:
        return replace(definition, kind=self._outer_kind(definition.kind))

    def _outer_info(self, info: IndexInfo) -> IndexInfo:
        return replace(info, definition=self._outer_definition(info.definition))

    async def indexes(self) -> list[IndexInfo]:
        """The child's."""
        return [self._outer_info(info) for info in await self.child.indexes()]

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """In the child."""
        return self._outer_info(await self.child.create_index(self._inner_definition(definition)))

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """In the child."""
        return self._outer_info(await self.child.build_index(self._inner_definition(definition), progress=progress))

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """In the child."""
        await self.child.delete_index(self._inner_definition(definition), progress=progress, finish=finish)

    async def stats(self) -> dict[str, Any]:
        """The child's, of the partitions that are this shim's."""
        stats = await self.child.stats()
        rows = []
        for row in stats["kinds"]:
            home = self._outer_partition((row["project"], row["namespace"]))
            if home is not None:
                project, namespace = home
                rows.append({**row, "project": project, "namespace": namespace, "kind": self._outer_kind(row["kind"])})
        return {**stats, "kinds": rows}

    async def partitions(self) -> list[Partition]:
        """Those of the child's that are this shim's."""
        found = map(self._outer_partition, await self.child.partitions())
        return sorted(home for home in found if home is not None)

    def outer_metadata(self, entity: Entity, home: Partition) -> Entity | None:
        """An entity of a metadata kind as it is outside; None if it is none of this shim's."""
        (kind, name), *rest = entity.key.pairs
        if kind == "__namespace__":
            partition = self._outer_partition((entity.key.project, "" if type(name) is int else str(name)))
            if partition is None or partition[0] != home[0]:
                return None
            name = partition[1] or 1
        elif type(name) is str:
            name = self._outer_kind(name)
        return Entity._make(Key._make(*home, ((kind, name), *rest)), entity, entity._unindexed, entity.version)


class _Remembered:
    """The keys inside of those that were used of late: their bytes and hashes, once made, are kept with them.

    Found by the key, and by its bytes if it has them. Each is in a tuple, as a lookup wants it.
    """

    __slots__ = ("_encode", "known")

    def __init__(self, encode: Callable[[Key], Key]) -> None:
        self._encode = encode
        self.known: dict[Key | bytes, tuple[Key]] = {}

    def of(self, key: Key) -> Key:
        """The key inside.

        :raises BadKeyError: if there is none
        """
        known = self.known
        found = known.get(key)
        if found is None:
            found = (self._encode(key),)
            if len(known) >= 2 * _REMEMBERED:
                known.clear()  # what is in use is soon there again
            known[key] = found
        if key._encoded is not None:
            known[key._encoded] = found
        return found[0]


class KeyStream(ResultStream):
    """A running query of a :class:`KeyTransform`: the child's pages with the keys, positions and checks outside."""

    def __init__(self, shim: KeyTransform, query: Query, options: RunOptions) -> None:
        inner, normal = shim.inner_query(query)
        self._shim = shim
        self._query = inner
        self._normal = normal
        try:
            self._child = shim.child.run(inner, options)
        except NeedIndexError as exc:
            shim._raise_outer(exc)

    async def next_page(self) -> Page:
        """The child's."""
        try:
            page = await self._child.next_page()
        except NeedIndexError as exc:
            self._shim._raise_outer(exc)
        outer = self._shim._outer
        results = page.results
        for place, result in enumerate(results):
            if type(result) is Key:
                results[place] = outer(result)
            else:
                result.key = outer(result.key)
        if page.positions is not None:
            page.positions = list(map(self._position, page.positions, results))
        if page.end:
            page.end = self._end(page.end)
        if page.checks:
            page.checks = {outer(key): version for key, version in page.checks.items()}
        return page

    def _position(self, position: bytes, result: Key | Entity) -> bytes:
        """A result's position, with its key outside."""
        normal = self._normal or self._normalized()
        start, end = _key_place(normal, position)
        key = result if type(result) is Key else result.key  # type: ignore[union-attr]  # keys or entities
        return position[:start] + normal.key_part(key._encoded or encode_key(key)) + position[end:]

    def _end(self, position: bytes) -> bytes:
        normal = self._normal or self._normalized()
        start, end = _key_place(normal, position)
        part = position[start:end]
        key = self._shim._outer(decode_key((invert(part) if normal.key_descending else part)[:-1]))
        return position[:start] + normal.key_part(encode_key(key)) + position[end:]

    def _normalized(self) -> NormalQuery:
        normal = self._normal = _normalized(self._query)
        return normal

    def explain(self) -> Explanation:
        """The child's."""
        found = self._child.explain()
        if found.index is None:
            return found
        return Explanation(found.root, self._shim._outer_definition(found.index))


class MetadataStream(ResultStream):
    """A query of a metadata kind: the child's whole list of a partition, chosen from and put in order here.

    ``outer`` gives the entity that stands for one of the child's, or None if there is none.
    """

    def __init__(
        self,
        child: Adapter,
        query: Query,
        options: RunOptions,
        partition: Partition,
        outer: Callable[[Entity], Entity | None],
    ) -> None:
        self._query = query
        self._normal = normalize(query)
        project, namespace = partition
        base = Query(query.kind, project=project, namespace=namespace)
        self._child = child.run(base, replace(options, positions=False, page_size=None))
        self._outer = outer
        self._options = options
        self._done = False
        self._end: bytes | None = None
        self._version = 0
        self._clock: object = None

    async def next_page(self) -> Page:
        """All of it at once."""
        if self._done:
            return Page([], self._end, False, self._version, [] if self._options.positions else None, clock=self._clock)
        whole = page = await self._child.next_page()
        found = list(page.results)
        while page.more:
            page = await self._child.next_page()
            found += page.results
            whole.checks.update(page.checks)
            whole.spans += page.spans
            whole.newest = max(whole.newest, page.newest)
        entities = [self._outer(entity) for entity in found]
        hits = sorted(
            (match for entity in entities if entity is not None for match in self._normal.matches(entity)),
            key=lambda match: match[0],
        )
        bounds = CursorBounds(self._query, self._normal)
        hits = [hit for hit in hits if bounds.inside(hit[0])]
        skipped = min(self._query.skip, len(hits))
        stop = None if self._query.max_results is None else skipped + self._query.max_results
        reached = hits[:stop]
        self._end = reached[-1][0] if reached else bounds.start or None
        self._done = True
        whole.results = [result for _, result in reached[skipped:]]
        whole.positions = [position for position, _ in reached[skipped:]] if self._options.positions else None
        whole.end, whole.more, whole.skipped = self._end, False, skipped
        self._version, self._clock = max(whole.version, whole.newest), whole.clock
        whole.checks = {}  # metadata entities are nowhere stored
        return whole

    async def aggregate(self, aggregations: Sequence[Aggregation]) -> AggregateResult:
        """Of all of it; there are no numbers to add up."""
        page = await self.next_page()
        values: dict[str, Any] = {"count": len(page.results), "sum": 0, "avg": None, "total": RunningSum()}
        return AggregateResult(
            [values[function] for function, _ in aggregations],
            page.version,
            page.checks,
            page.spans,
            page.newest,
            page.clock,
        )

    def explain(self) -> Explanation:
        """The child's."""
        return self._child.explain()


def _same(value: Any) -> Any:
    return value


def _is_pair(given: Any) -> bool:
    return given is None or (type(given) is tuple and len(given) == 2 and all(map(callable, given)))


def _inside(node: And | Or) -> Iterable[Filter]:
    return node.filters


def _normalized(query: Query) -> NormalQuery:
    """A query in normal form, as far as positions need it."""
    if not (query.orders or query.projection or query.subqueries) and all(
        type(node) is PropertyFilter and node.op is Op.EQ for node in query.filters
    ):
        return NormalQuery(query, (), (), (), False, 0, merged=False, mirrored=False)  # the key is all there is
    return normalize(query)


def _key_place(normal: NormalQuery, position: bytes) -> tuple[int, int]:
    """Where in a position the key is, with its terminator.

    :raises CorruptDataError: if it is none of this query's
    """
    start = normal.prefix_end(position, len(normal.orders)) if normal.orders else 0
    return start, key_end(position, start, inverted=normal.key_descending)
