"""Was it serializable? Workloads that record what they saw, and a checker that shares nothing with the store.

The checker builds Adya's graph of a history (A. Adya, *Weak Consistency*, 1999; as Elle does, Kingsbury and
Alvaro, VLDB 2020): transactions are nodes; who wrote what another read (``wr``), who overwrote whom (``ww``),
whose read was made obsolete by whom (``rw``; a phantom is one from a query), and who had ended before whom began
(``rt``). No serial order explains a history whose graph has a cycle.

Every write has a value that no other write has, so that a read says whom it read from. The order of an entity's
versions comes from what is recorded of it: list-append reads show it, read-modify-writes imply it, version
numbers state it, and these must agree.

::

    history = History()
    ...                                      # workloads record into it
    for anomaly in check(history):
        print(anomaly)
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
import anyio.lowlevel

from aiodatastore.entity import Entity
from aiodatastore.errors import TransactionFailedError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore

__all__ = [
    "Anomaly",
    "Append",
    "Find",
    "History",
    "Op",
    "Read",
    "ReadList",
    "Recorded",
    "Workload",
    "Write",
    "check",
    "list_append",
    "mixed",
    "phantom",
    "read_modify_write",
    "run_workload",
    "verify_workload",
    "write_skew",
]

Value = Hashable


# ---------------------------------------------------------------------------------------- histories


@dataclass(frozen=True, slots=True)
class Read:
    """Read a register: the unique value of the write seen, None where nothing was there."""

    item: str
    value: Value
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write a register. ``tags`` is what predicates look at; None: the write deletes the item."""

    item: str
    value: Value
    tags: frozenset[str] | None = frozenset()


@dataclass(frozen=True, slots=True)
class ReadList:
    """Read a list: the unique elements in order."""

    item: str
    elements: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Append:
    """Append a unique element to a list."""

    item: str
    element: Value


@dataclass(frozen=True, slots=True)
class Find:
    """Find all items with a tag: the value seen of each. ``counted``: only their number was seen."""

    tag: str
    seen: Mapping[str, Value]
    counted: int | None = None


Op = Read | Write | ReadList | Append | Find
Status = Literal["committed", "aborted", "unknown"]


@dataclass(slots=True)
class Recorded:
    """One transaction (one attempt of it) as its client saw it."""

    name: str
    ops: list[Op] = field(default_factory=list)
    status: Status = "committed"
    start: float = 0.0
    end: float = 0.0
    version: int | None = None
    """The store's version its commit made, where known: the order of commits the store claims."""
    versions: dict[str, int] = field(default_factory=dict)
    """Where a store has several counters of versions: that of each item written, and no ``version``."""

    def to_json(self) -> str:
        """One line."""
        ops = [[type(op).__name__, *_op_fields(op)] for op in self.ops]
        return json.dumps([self.name, ops, self.status, self.start, self.end, self.version, self.versions])

    @classmethod
    def from_json(cls, line: str) -> Recorded:
        """The inverse of :meth:`to_json`."""
        name, ops, status, start, end, version, versions = json.loads(line)
        return cls(name, [_op_from(*op) for op in ops], status, start, end, version, versions)


def _op_fields(op: Op) -> list[Any]:
    fields = [getattr(op, each.name) for each in dataclasses.fields(op)]
    return [
        sorted(each) if isinstance(each, frozenset) else dict(each) if isinstance(each, Mapping) else each
        for each in fields
    ]


def _op_from(kind: str, *fields: Any) -> Op:
    if kind == "Read":
        return Read(*fields)
    if kind == "Write":
        item, value, tags = fields
        return Write(item, value, None if tags is None else frozenset(tags))
    if kind == "ReadList":
        item, elements = fields
        return ReadList(item, tuple(elements))
    if kind == "Append":
        return Append(*fields)
    return Find(*fields)


class History:
    """Transactions recorded by any number of clients."""

    def __init__(self, transactions: Iterable[Recorded] = ()) -> None:
        self.transactions: list[Recorded] = list(transactions)

    def __len__(self) -> int:
        return len(self.transactions)

    def add(self, transaction: Recorded) -> None:
        """Append one."""
        self.transactions.append(transaction)

    def count(self, status: Status) -> int:
        """How many ended so."""
        return sum(each.status == status for each in self.transactions)


# ----------------------------------------------------------------------------------------- anomalies


@dataclass(frozen=True, slots=True)
class Edge:
    """``before`` must come before ``after`` in any serial order; ``why`` in words."""

    before: str
    after: str
    kind: Literal["ww", "wr", "rw", "rt"]
    why: str
    predicate: bool = False


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What no serial execution could have shown. ``kind`` is Adya's name; ``str()`` tells it step by step."""

    kind: str
    title: str
    steps: tuple[str, ...]
    transactions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.kind}: {self.title}", *(f"  - {step}" for step in self.steps)])


KINDS = ("ww", "wr", "rw", "rt")
STARTS = 20
"""From how many nodes of a component cycles are looked for; the shortest is shown."""


class _Graph:
    def __init__(self) -> None:
        self.edges: dict[str, dict[str, list[Edge]]] = defaultdict(lambda: defaultdict(list))

    def add(self, edge: Edge) -> None:
        if edge.before != edge.after:
            known = self.edges[edge.before][edge.after]
            if all((each.kind, each.predicate) != (edge.kind, edge.predicate) for each in known):
                known.append(edge)

    def _successors(self, node: str, kinds: Collection[str], inside: Collection[str] | None) -> list[str]:
        return [
            successor
            for successor, edges in self.edges.get(node, {}).items()
            if (inside is None or successor in inside) and any(edge.kind in kinds for edge in edges)
        ]

    def components(self, kinds: Collection[str] = KINDS, inside: Collection[str] | None = None) -> list[list[str]]:
        """Strongly connected components of more than one node (Tarjan), by edges of these kinds."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: dict[str, None] = {}  # ordered, and quick to ask
        found: list[list[str]] = []
        for root in list(self.edges) if inside is None else inside:
            if root in index:
                continue
            work = [(root, iter(self._successors(root, kinds, inside)))]
            index[root] = low[root] = len(index)
            stack[root] = None
            while work:
                node, successors = work[-1]
                for successor in successors:
                    if successor not in index:
                        index[successor] = low[successor] = len(index)
                        stack[successor] = None
                        work.append((successor, iter(self._successors(successor, kinds, inside))))
                        break
                    if successor in stack:
                        low[node] = min(low[node], index[successor])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == index[node]:
                        component: list[str] = []
                        while not component or component[-1] != node:
                            component.append(stack.popitem()[0])
                        if len(component) > 1:
                            found.append(component)
        return found

    def cycle(self, members: Collection[str]) -> list[Edge]:
        """A short cycle inside a component, of the most telling kind: with as few kinds of edges as one has."""
        for kinds in (("ww",), ("ww", "wr"), ("ww", "wr", "rw"), KINDS):
            for component in self.components(kinds, set(members)):
                inside = set(component)
                paths = [self._shortest(start, inside, kinds) for start in component[:STARTS]]
                return min(paths, key=_weight)
        raise AssertionError("a strongly connected component has a cycle")

    def _shortest(self, start: str, inside: set[str], kinds: Sequence[str]) -> list[Edge]:
        queue: deque[tuple[str, list[Edge]]] = deque([(start, [])])
        visited = {start}
        while queue:
            node, path = queue.popleft()
            for successor in self._successors(node, kinds, inside):
                usable = (edge for edge in self.edges[node][successor] if edge.kind in kinds)
                step = min(usable, key=lambda edge: kinds.index(edge.kind))
                if successor == start:
                    return [*path, step]
                if successor not in visited:
                    visited.add(successor)
                    queue.append((successor, [*path, step]))
        raise AssertionError("every node of a strongly connected component is on a cycle")


def _weight(path: Sequence[Edge]) -> tuple[int, int]:
    return sum(edge.kind == "rw" for edge in path), len(path)


@dataclass(slots=True)
class _State:
    values: dict[str, tuple[Value, frozenset[str]]] = field(default_factory=dict)
    lists: dict[str, tuple[Value, ...]] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(dict(self.values), dict(self.lists))

    def apply(self, op: Write | Append) -> None:
        if isinstance(op, Append):
            self.lists[op.item] = (*self.lists.get(op.item, ()), op.element)
        elif op.tags is None:
            self.values.pop(op.item, None)
        else:
            self.values[op.item] = (op.value, op.tags)

    def apply_all(self, transaction: Recorded) -> None:
        for op in transaction.ops:
            if isinstance(op, (Write, Append)):
                self.apply(op)

    def shows(self, op: Read | ReadList | Find) -> Any:
        if isinstance(op, Read):
            return self.values.get(op.item, (None,))[0]
        if isinstance(op, ReadList):
            return self.lists.get(op.item, ())
        found = {item: value for item, (value, tags) in self.values.items() if op.tag in tags}
        return len(found) if op.counted is not None else found

    def disagrees(self, ops: Sequence[Op]) -> str | None:
        """What a transaction with these operations would have seen differently."""
        writes = any(isinstance(op, (Write, Append)) for op in ops)
        own = self.copy() if writes else self
        for op in ops:
            if isinstance(op, (Write, Append)):
                own.apply(op)
                continue
            expected = own.shows(op)
            if isinstance(op, Find):
                seen: Any = dict(op.seen) if op.counted is None else op.counted
                what = f"query {op.tag!r}"
            else:
                seen = op.value if isinstance(op, Read) else op.elements
                what = op.item
            if seen != expected:
                return f"{what}: saw {seen!r}, the serial order has {expected!r}"
        return None


# ------------------------------------------------------------------------------------------- checker


class _Item:
    """All that is known of one register or list: who wrote which value, and their order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writers: dict[Value, str] = {}  # final value of a transaction → transaction
        self.intermediate: dict[Value, str] = {}
        self.tags: dict[Value, frozenset[str]] = {}
        self.order: list[Value] = []  # of the values whose order is known, oldest first
        self.place: dict[Value, int] = {}

    def set_order(self, order: list[Value]) -> None:
        self.order = order
        self.place = {value: place for place, value in enumerate(order)}


class _Checker:
    def __init__(self, history: History, real_time: bool) -> None:
        self.transactions = {each.name: each for each in history.transactions}
        if len(self.transactions) != len(history):
            raise ValueError("two transactions of the history have the same name")
        self.real_time = real_time
        self.graph = _Graph()
        self.anomalies: list[Anomaly] = []
        self.items: dict[str, _Item] = {}
        self.lists: set[str] = set()
        self.aborted: dict[tuple[str, Value], str] = {}
        self.visible = self._find_visible()
        self.moments: dict[str, int] | None = None

    def run(self) -> list[Anomaly]:
        self._collect_writes()
        for name in self.lists:
            self._order_list(self._item(name))  # of one to which all appends failed, nothing is known yet
        for name, item in self.items.items():
            if name not in self.lists:
                self._order_register(item)
        for item in self.items.values():
            self._ww_edges(item)
        for transaction in self.visible:
            self._read_edges(transaction)
        if self.real_time:
            self._real_time_edges()
        for component in self.graph.components():
            self._report_cycle(self.graph.cycle(component))
        return self.anomalies

    def _find_visible(self) -> list[Recorded]:
        """What took effect: committed, or of unknown outcome and seen by what took effect itself."""
        visible = {each.name for each in self.transactions.values() if each.status == "committed"}
        unknown = [each for each in self.transactions.values() if each.status == "unknown"]
        news = visible
        while news:
            observed = {pair for name in news for pair in _observed(self.transactions[name])}
            news = {
                each.name
                for each in unknown
                if each.name not in visible
                and any((op.item, _written(op)) in observed for op in each.ops if isinstance(op, (Write, Append)))
            }
            visible = visible | news
        return [each for each in self.transactions.values() if each.name in visible]

    def _item(self, name: str) -> _Item:
        return self.items.setdefault(name, _Item(name))

    def _collect_writes(self) -> None:
        visible = {each.name for each in self.visible}
        for transaction in self.transactions.values():
            last: dict[str, Write] = {}
            for op in transaction.ops:
                if isinstance(op, Append):
                    self.lists.add(op.item)
                    if transaction.name in visible:
                        self._item(op.item).writers[op.element] = transaction.name
                    else:
                        self.aborted[op.item, op.element] = transaction.name
                elif isinstance(op, Write):
                    if transaction.name not in visible:
                        self.aborted[op.item, op.value] = transaction.name
                        continue
                    item = self._item(op.item)
                    if op.item in last:
                        item.intermediate[last[op.item].value] = transaction.name
                    last[op.item] = op
                elif isinstance(op, ReadList):
                    self.lists.add(op.item)
                    self._item(op.item)
            for op in last.values():
                item = self._item(op.item)
                item.writers[op.value] = transaction.name
                if op.tags is not None:
                    item.tags[op.value] = op.tags

    # ------------------------------------------------------------------------ order of versions

    def _order_list(self, item: _Item) -> None:
        reads = [
            (op.elements, transaction.name)
            for transaction in self.visible
            for op in transaction.ops
            if isinstance(op, ReadList) and op.item == item.name
        ]
        longest: tuple[Value, ...] = ()
        witness = ""
        for elements, reader in sorted(reads, key=lambda read: len(read[0])):
            own = {
                op.element for op in self.transactions[reader].ops if isinstance(op, Append) and op.item == item.name
            }
            shared = tuple(element for element in elements if element not in own)
            if len(set(elements)) != len(elements):
                repeated = sorted({str(each) for each in elements if elements.count(each) > 1})
                self._report(
                    "duplicate",
                    f"an element is in list {item.name} twice",
                    [f"{reader} read {list(elements)!r}: {', '.join(repeated)} repeated"],
                    reader,
                )
                continue
            both = min(len(shared), len(longest))
            if shared[:both] != longest[:both]:
                self._report(
                    "incompatible order",
                    f"two reads of list {item.name} cannot both be true",
                    [f"{witness} read {list(longest)!r}", f"{reader} read {list(elements)!r}"],
                    witness,
                    reader,
                )
            elif elements[: len(longest)] == longest:
                longest, witness = elements, reader
        item.set_order(list(longest))

    def _order_register(self, item: _Item) -> None:
        """From version numbers where all writers have one; else from who read what before overwriting it."""
        names = item.writers.items()
        writers = {value: self.transactions[name] for value, name in names}
        versions = {value: each.versions.get(item.name, each.version) for value, each in writers.items()}
        known = [(version, value) for value, version in versions.items() if version is not None]
        if len(known) == len(versions):
            item.set_order([value for _, value in sorted(known, key=lambda pair: pair[0])])
            return
        if len(names) == 1:
            item.set_order(list(item.writers))
            return
        successors: dict[Value, list[Value]] = defaultdict(list)
        blind: list[Value] = []
        for value, name in names:
            reads = (op for op in self.transactions[name].ops if isinstance(op, Read) and op.item == item.name)
            first = next(reads, None)
            if first is None:
                blind.append(value)
            else:
                successors[first.value].append(value)
        if len(blind) == 1 and None not in successors:
            successors[None] = blind
        for read, written in list(successors.items()):
            for one, other in itertools.permutations(written, 2):
                why = f"{item.writers[one]} and {item.writers[other]} both read {item.name} = {read!r} and wrote it"
                self._edge(item.writers[one], item.writers[other], "rw", why)
        order: list[Value] = []
        current: Value = None
        while len(successors[current]) == 1 and successors[current][0] not in order:
            current = successors[current][0]
            order.append(current)
        item.set_order(order)

    # --------------------------------------------------------------------------------------- edges

    def _edge(
        self,
        before: str,
        after: str,
        kind: Literal["ww", "wr", "rw", "rt"],
        why: str,
        *,
        predicate: bool = False,
    ) -> None:
        self.graph.add(Edge(before, after, kind, why, predicate))

    def _ww_edges(self, item: _Item) -> None:
        for older, newer in zip(item.order, item.order[1:], strict=False):
            first, second = item.writers.get(older), item.writers.get(newer)
            if first is not None and second is not None:
                verb = "appended to" if item.name in self.lists else "overwrote"
                self._edge(first, second, "ww", f"{second} {verb} {item.name} after {first} had written {older!r}")
        if item.name in self.lists and item.order:
            last = item.writers.get(item.order[-1])
            for element, name in item.writers.items():
                if element not in item.place and last is not None:
                    self._edge(
                        last,
                        name,
                        "ww",
                        f"{name} appended {element!r} to {item.name}, which no read showed yet",
                    )

    def _read_edges(self, transaction: Recorded) -> None:
        own: set[tuple[str, Value]] = set()
        for op in transaction.ops:
            if isinstance(op, (Write, Append)):
                own.add((op.item, _written(op)))
            elif isinstance(op, Read):
                if (op.item, op.value) not in own:
                    self._check_own(transaction, op, own)
                    self._value_edges(transaction, op.item, op.value)
            elif isinstance(op, ReadList):
                elements = [each for each in op.elements if (op.item, each) not in own]
                missing = [each for item, each in own if item == op.item and each not in op.elements]
                if missing:
                    self._report(
                        "internal",
                        f"{transaction.name} did not see its own appends",
                        [f"{transaction.name} appended {missing!r} to {op.item}, then read {list(op.elements)!r}"],
                        transaction.name,
                    )
                for element in elements:
                    self._check_source(transaction, op.item, element)
                self._value_edges(transaction, op.item, elements[-1] if elements else None)
            else:
                self._query_edges(transaction, op, own)

    def _check_own(self, transaction: Recorded, op: Read, own: set[tuple[str, Value]]) -> None:
        written = [value for item, value in own if item == op.item]
        if written:
            self._report(
                "internal",
                f"{transaction.name} did not see its own write",
                [f"{transaction.name} wrote {op.item} = {written!r}, then read {op.value!r}"],
                transaction.name,
            )

    def _check_source(self, reader: Recorded, item: str, value: Value) -> bool:
        """Whether a value read was ever written to stay; reports what is wrong otherwise."""
        known = self._item(item)
        if value is None or value in known.writers:
            return True
        if (item, value) in self.aborted:
            writer = self.aborted[item, value]
            self._report(
                "G1a",
                "aborted read",
                [f"{writer} wrote {item} = {value!r} and aborted", f"{reader.name} read it"],
                writer,
                reader.name,
            )
        elif value in known.intermediate:
            writer = known.intermediate[value]
            self._report(
                "G1b",
                "intermediate read",
                [f"{writer} wrote {item} = {value!r} and overwrote it itself", f"{reader.name} read it"],
                writer,
                reader.name,
            )
        else:
            self._report(
                "garbage read",
                "a value nobody wrote",
                [f"{reader.name} read {item} = {value!r}"],
                reader.name,
            )
        return False

    def _next(self, item: _Item, value: Value) -> Value | None:
        place = -1 if value is None else item.place.get(value)
        if place is None or place + 1 >= len(item.order):
            return None
        return item.order[place + 1]

    def _value_edges(self, reader: Recorded, name: str, value: Value) -> None:
        """``wr`` from whom was read, ``rw`` to who overwrote it."""
        if not self._check_source(reader, name, value):
            return
        item = self._item(name)
        if value is not None:
            writer = item.writers[value]
            self._edge(writer, reader.name, "wr", f"{reader.name} read {name} = {value!r}, written by {writer}")
        newer = self._next(item, value)
        if newer is not None and newer in item.writers:
            self._overwritten(reader, item, value, newer)
        elif name in self.lists:
            for element, writer in item.writers.items():
                if element not in item.place and (not item.order or item.order[-1] == value):
                    self._edge(
                        reader.name, writer, "rw",
                        f"{reader.name} read {name} without {element!r}, which {writer} appended",
                    )  # fmt: skip

    def _overwritten(self, reader: Recorded, item: _Item, value: Value, newer: Value) -> None:
        writer = item.writers[newer]
        was = "absent" if value is None else repr(value)
        self._edge(
            reader.name,
            writer,
            "rw",
            f"{reader.name} read {item.name} = {was}, before {writer} wrote {newer!r}",
        )

    def _query_edges(self, reader: Recorded, op: Find, own: set[tuple[str, Value]]) -> None:
        if op.counted is not None:
            return  # a number tells no versions; verify_workload's replay looks at it
        for name, value in op.seen.items():
            if (name, value) not in own:
                self._value_edges(reader, name, value)
                tags = self._item(name).tags.get(value)
                if tags is not None and op.tag not in tags:
                    self._report(
                        "wrong result",
                        f"a query for {op.tag!r} returned what has not that tag",
                        [f"{reader.name} found {name} = {value!r}, whose tags are {sorted(tags)}"],
                        reader.name,
                    )
        touched = {item for item, _ in own}
        for name, item in self.items.items():
            if name not in op.seen and name not in touched and name not in self.lists:
                self._absence_edges(reader, op, item)

    def _absence_edges(self, reader: Recorded, op: Find, item: _Item) -> None:
        """An item was not found: in which of its versions could that be?"""
        states: list[Value] = [None, *item.order]
        found = [value is not None and op.tag in item.tags.get(value, ()) for value in states]
        runs: list[tuple[int, int]] = []  # first and last state of each stretch that the query does not find
        for place, is_found in enumerate(found):
            if not is_found:
                if runs and runs[-1][1] == place - 1:
                    runs[-1] = runs[-1][0], place
                else:
                    runs.append((place, place))
        if not runs or (len(runs) == 1 and runs[0] == (0, len(states) - 1)):
            return
        seen = self._run_seen(reader, item, states, runs)
        if seen is None:
            return
        first, last = seen
        if first > 0:
            writer = item.writers.get(states[first])
            if writer is not None:
                why = f"{reader.name} did not find {item.name} in {op.tag!r}: {writer} had taken it out"
                self._edge(writer, reader.name, "wr", why, predicate=True)
        if last + 1 < len(states):
            writer = item.writers.get(states[last + 1])
            if writer is not None:
                why = f"{reader.name} did not find {item.name} in {op.tag!r}, before {writer} put it there"
                self._edge(reader.name, writer, "rw", why, predicate=True)

    def _moment(self, reader: Recorded) -> int | None:
        """A version at which everything a transaction saw was so, and that its times allow; None: there is none.

        Where items went in and out of a query several times, this tells which time was seen.
        """
        if reader.version is not None:
            return reader.version - 1
        if self.moments is None:
            self.moments = self._find_moments()
        return self.moments.get(reader.name)

    def _find_moments(self) -> dict[str, int]:
        """The earliest moment of each transaction that has no version, none before what had ended before it."""
        writers = [each for each in self.visible if any(isinstance(op, (Write, Append)) for op in each.ops)]
        if any(each.version is None for each in writers):
            return {}
        timeline = [(0, _State())]
        for writer in sorted(writers, key=lambda each: each.version or 0):
            state = timeline[-1][1].copy()
            state.apply_all(writer)
            timeline.append((writer.version or 0, state))
        versions = [version for version, _ in timeline]
        moments: dict[str, int] = {}
        ended: list[tuple[float, int]] = [(0.0, 0)]  # by the end of a transaction, the newest version seen until then
        for each in sorted(self.visible, key=lambda each: each.end):
            allowed = ended[bisect.bisect_left(ended, (each.start, 0)) - 1][1] if each.start else 0
            if each.version is None:
                for version, state in timeline[bisect.bisect_left(versions, allowed) :]:
                    if state.disagrees(each.ops) is None:
                        moments[each.name] = version
                        break
            seen = max(ended[-1][1], self._newest_seen(each), moments.get(each.name, 0))
            ended.append((each.end, seen))
        return moments

    def _newest_seen(self, transaction: Recorded) -> int:
        """The newest version that a transaction wrote or read: its successors must not see less."""
        names = {transaction.name}
        seen = _observed(transaction)
        names.update(self.items[item].writers.get(value, "") for item, value in seen if item in self.items)
        return max((self.transactions[name].version or 0 for name in names if name), default=0)

    def _run_seen(
        self, reader: Recorded, item: _Item, states: list[Value], runs: list[tuple[int, int]]
    ) -> tuple[int, int] | None:
        """Of several stretches the one in force at the reader's moment; None if that is not known."""
        if len(runs) == 1:
            return runs[0]
        moment = self._moment(reader)
        if moment is None:
            return None
        possible = runs[0]
        for run in runs:
            writer = self.transactions.get(item.writers.get(states[run[0]], ""))
            if writer is not None and writer.version is not None and writer.version <= moment:
                possible = run
        return possible

    def _real_time_edges(self) -> None:
        """``rt`` edges, those that follow from others left out."""
        events: list[tuple[float, int, Recorded]] = []
        for transaction in self.visible:
            if transaction.status == "committed" and transaction.end > transaction.start:
                events.append((transaction.start, 1, transaction))
                events.append((transaction.end, 0, transaction))
        frontier: list[Recorded] = []
        for _, starts, transaction in sorted(events, key=lambda event: event[:2]):
            if starts:
                for ended in frontier:
                    why = f"{ended.name} had ended before {transaction.name} began"
                    self._edge(ended.name, transaction.name, "rt", why)
            else:
                frontier = [each for each in frontier if each.end >= transaction.start]
                frontier.append(transaction)

    # ------------------------------------------------------------------------------------- reports

    def _report(self, kind: str, title: str, steps: Sequence[str], *transactions: str) -> None:
        self.anomalies.append(Anomaly(kind, title, tuple(steps), transactions))

    def _report_cycle(self, cycle: Sequence[Edge]) -> None:
        kinds = [edge.kind for edge in cycle]
        reads = kinds.count("rw")
        names = [edge.before for edge in cycle]
        if "rt" in kinds:
            kind, title = "real time", "serializable, but not in the order in which things happened"
        elif set(kinds) == {"ww"}:
            kind, title = "G0", "write cycle"
        elif not reads:
            kind, title = "G1c", "circular information flow"
        elif reads == 1:
            kind, title = "G-single", self._single_title(cycle)
        elif any(edge.predicate for edge in cycle):
            kind, title = "G2", "phantom: a query's result was changed by whom it precedes"
        else:
            kind, title = "G2-item", self._skew_title(cycle)
        steps = [edge.why for edge in cycle]
        steps.append("so " + " < ".join([*names, names[0]]) + ", which no serial order can have")
        self._report(kind, title, steps, *names)

    def _both_wrote(self, cycle: Sequence[Edge]) -> set[str]:
        """Items that every transaction of the cycle read in the same version and wrote."""
        shared: set[tuple[str, Value]] | None = None
        for edge in cycle:
            ops = self.transactions[edge.before].ops
            written = {op.item for op in ops if isinstance(op, Write)}
            read = {(op.item, op.value) for op in ops if isinstance(op, Read) and op.item in written}
            shared = read if shared is None else shared & read
        return {item for item, _ in shared or ()}

    def _single_title(self, cycle: Sequence[Edge]) -> str:
        lost = self._both_wrote(cycle)
        if lost:
            return f"lost update of {', '.join(sorted(lost))}"
        if any(edge.predicate for edge in cycle):
            return "phantom: a query saw part of what another transaction did"
        return "read skew: one part was read before a change, another after it"

    def _skew_title(self, cycle: Sequence[Edge]) -> str:
        lost = self._both_wrote(cycle)
        if lost:
            return f"lost update of {', '.join(sorted(lost))}"
        return "write skew: each read what another then overwrote"


def _written(op: Write | Append) -> Value:
    return op.value if isinstance(op, Write) else op.element


def _observed(transaction: Recorded) -> Iterator[tuple[str, Value]]:
    """What a transaction saw: the items, and of each the values."""
    for op in transaction.ops:
        if isinstance(op, Read):
            yield op.item, op.value
        elif isinstance(op, ReadList):
            yield from ((op.item, element) for element in op.elements)
        elif isinstance(op, Find):
            yield from op.seen.items()


def check(history: History, *, real_time: bool = True) -> list[Anomaly]:
    """Everything in a history that no serial execution explains; empty if all is well.

    With ``real_time`` the serial order must also agree with the clock: what had ended before another began
    comes first (strict serializability).
    """
    return _Checker(history, real_time).run()


# ------------------------------------------------------------------------------------------ workloads

KIND = "History"
LISTS = "HistoryList"
TAGS = ("red", "green", "blue")


class Client:
    """One task's view of a transaction: reads and writes entities, and records it."""

    def __init__(self, ds: Datastore, rng: random.Random, recorded: Recorded, items: int, yielding: bool) -> None:
        self.ds = ds
        self.yielding = yielding
        self.rng = rng
        self.recorded = recorded
        self.items = items
        self.written: list[Entity] = []
        self._writes = 0

    def unique(self) -> str:
        """A value that nobody else writes."""
        self._writes += 1
        return f"{self.recorded.name}.{self._writes}"

    async def pause(self) -> None:
        """Let others run, now and then."""
        if self.yielding and self.rng.random() < 0.5:
            await anyio.lowlevel.checkpoint()

    def pick(self, size: int) -> list[int]:
        """Some of the items."""
        return self.rng.sample(range(1, self.items + 1), min(size, self.items))

    async def read(self, *numbers: int) -> list[Entity | None]:
        """Registers, by one get."""
        await self.pause()
        entities: list[Entity | None] = await self.ds.get([Key(KIND, number) for number in numbers])
        for number, entity in zip(numbers, entities, strict=True):
            value = None if entity is None else entity["value"]
            version = None if entity is None else entity.version
            self.recorded.ops.append(Read(f"r{number}", value, version))
        return entities

    async def write(self, number: int, tags: Iterable[str] | None = None) -> None:
        """A register; ``tags`` at random if not given."""
        if tags is None:
            tags = self.rng.sample(TAGS, self.rng.randint(0, 2))
        value, tags = self.unique(), list(tags)
        entity = Entity(Key(KIND, number), {"value": value, "tags": tags, "pad": "x" * 20})
        self.written.append(entity)
        self.recorded.ops.append(Write(f"r{number}", value, frozenset(tags)))
        await self.pause()
        await self.ds.put(entity)

    async def find(self, tag: str) -> dict[str, Value]:
        """All registers with a tag, by a query."""
        await self.pause()
        found = await self.ds.query(KIND).filter("tags", "=", tag).fetch()
        seen = {f"r{entity.key.id}": entity["value"] for entity in found}
        self.recorded.ops.append(Find(tag, seen))
        return seen

    async def count(self, tag: str) -> int:
        """How many registers have a tag, by an aggregate."""
        await self.pause()
        number: int = await self.ds.query(KIND).filter("tags", "=", tag).count()
        self.recorded.ops.append(Find(tag, {}, number))
        return number

    async def elements(self, number: int) -> list[Any]:
        """A list."""
        await self.pause()
        entity = await self.ds.get(Key(LISTS, number))
        elements = [] if entity is None else list(entity["elements"])
        self.recorded.ops.append(ReadList(f"l{number}", tuple(elements)))
        return elements

    async def append(self, number: int) -> None:
        """To a list; what is already there is read unrecorded, as a blind append would."""
        await self.pause()
        entity = await self.ds.get(Key(LISTS, number))
        elements = [] if entity is None else list(entity["elements"])
        element = self.unique()
        changed = Entity(Key(LISTS, number), {"elements": [*elements, element]}, unindexed=["elements"])
        self.written.append(changed)
        self.recorded.ops.append(Append(f"l{number}", element))
        await self.pause()
        await self.ds.put(changed)


class Workload(Protocol):
    """One random transaction's body."""

    __name__: str

    async def __call__(self, client: Client) -> None: ...


async def read_modify_write(client: Client) -> None:
    """Reads a few registers, writes some of them."""
    numbers = client.pick(client.rng.randint(1, 3))
    await client.read(*numbers)
    for number in numbers[: client.rng.randint(0, len(numbers))]:
        await client.write(number)


async def write_skew(client: Client) -> None:
    """Reads two registers one after the other and writes one of them."""
    first, second = client.pick(2)
    await client.read(first)
    await client.read(second)
    await client.write(client.rng.choice((first, second)))


async def phantom(client: Client) -> None:
    """Looks for a tag, by query or count, and puts an item into it or takes one out."""
    tag = client.rng.choice(TAGS)
    if client.rng.random() < 0.3:
        await client.count(tag)
    else:
        await client.find(tag)
    (number,) = client.pick(1)
    if client.rng.random() < 0.8:
        others = [other for other in TAGS if other != tag and client.rng.random() < 0.3]
        await client.write(number, [tag, *others] if client.rng.random() < 0.6 else others)


async def list_append(client: Client) -> None:
    """Reads some lists, appends to others, reads again."""
    for number in client.pick(2):
        if client.rng.random() < 0.5:
            await client.append(number)
        else:
            await client.elements(number)
    for number in client.pick(1):
        await client.elements(number)


async def mixed(client: Client) -> None:
    """Any of the others."""
    await client.rng.choice((read_modify_write, write_skew, phantom, list_append))(client)


WORKLOADS: Mapping[str, Workload] = {
    each.__name__: each for each in (read_modify_write, write_skew, phantom, list_append, mixed)
}


async def run_workload(
    ds: Datastore,
    workload: Workload,
    *,
    tasks: int = 16,
    transactions: int = 50,
    items: int = 6,
    seed: int = 0,
    client: str = "p0",
    read_only: float = 0.2,
    yielding: bool = True,
    record: Callable[[Recorded], object] | None = None,
) -> History:
    """Run ``transactions`` in each of ``tasks`` side by side and return what they saw.

    Every attempt of a transaction is recorded under a name of its own. ``client`` tells processes apart,
    ``read_only`` is the share of transactions that only read. With ``yielding`` others may run between any two
    steps of a transaction, also where the store answers without waiting. ``record`` is called with each.
    """
    history = History()

    def remember(recorded: Recorded) -> None:
        history.add(recorded)
        if record is not None:
            record(recorded)

    async def attempt(name: str, rng: random.Random) -> bool:
        recorded = Recorded(name, start=time.monotonic())
        acting = Client(ds, rng, recorded, items, yielding)
        try:
            if rng.random() < read_only:
                async with ds.transaction(read_only=True):
                    await _look(acting)
            else:
                async with ds.transaction():
                    await workload(acting)
        except TransactionFailedError:
            recorded.status = "aborted"
        except BaseException:
            recorded.status = "unknown"
            recorded.end = time.monotonic()
            remember(recorded)
            raise
        recorded.end = time.monotonic()
        versions = {entity.version for entity in acting.written}
        if recorded.status == "committed" and versions:
            if Capability.ONE_CLOCK in ds.capabilities:
                recorded.version = max(versions) or None
            else:
                recorded.versions = {
                    f"{'r' if entity.key.kind == KIND else 'l'}{entity.key.id}": entity.version
                    for entity in acting.written
                }
        remember(recorded)
        return recorded.status == "committed"

    async def task(number: int) -> None:
        rng = random.Random(f"{seed}/{client}/{number}")
        for index in range(transactions):
            for tried in range(100):
                if await attempt(f"{client}-t{number}-{index}.{tried}", rng):
                    break
                await anyio.sleep(rng.random() * 0.001 * min(tried, 10))

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(task, number)
    return history


async def _look(client: Client) -> None:
    """Only reads: registers one by one, a list, a query."""
    for number in client.pick(2):
        await client.read(number)
    for number in client.pick(1):
        await client.elements(number)
    await client.find(client.rng.choice(TAGS))


def verify_workload(history: History, *, real_time: bool = True) -> list[Anomaly]:
    """:func:`check`, and the order of commits that the store claims replayed: every read must be as it says.

    The replay is a second proof, independent of the graph: transactions that wrote, in the order of their
    versions, against a dictionary; each must have read what the dictionary holds at its turn. Those that only
    read must agree with the state after one of the commits.
    """
    return [*check(history, real_time=real_time), *_replay(history)]


def _replay(history: History) -> list[Anomaly]:
    committed = [each for each in history.transactions if each.status == "committed"]
    if any(each.status == "unknown" or each.versions for each in history.transactions):
        return []
    writers = [each for each in committed if each.version is not None]
    writers.sort(key=lambda each: each.version or 0)
    anomalies = []
    state = _State()
    pending: dict[str, tuple[Recorded, str]] = {}
    readers = [each for each in committed if each.version is None]
    for reader in readers:
        wrong = state.disagrees(reader.ops)
        if wrong is not None:
            pending[reader.name] = reader, wrong
    for writer in writers:
        wrong = state.disagrees(writer.ops)
        if wrong is not None:
            anomalies.append(
                Anomaly(
                    "replay",
                    f"{writer.name} (version {writer.version}) saw what was not there before it",
                    (wrong,),
                    (writer.name,),
                )
            )
        state.apply_all(writer)
        for name, (reader, _) in list(pending.items()):
            wrong = state.disagrees(reader.ops)
            if wrong is None:
                del pending[name]
            else:
                pending[name] = reader, wrong
    anomalies += [
        Anomaly("replay", f"{name} saw a state that never was", (f"at the end, {wrong}",), (name,))
        for name, (_, wrong) in pending.items()
    ]
    return anomalies
