"""Queries: immutable descriptions of what to find, in which order, and how much of it."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeAlias, overload

from aiodatastore.cursor import Cursor
from aiodatastore.errors import (
    BadArgumentError,
    BadCursorError,
    BadFilterError,
    BadKeyError,
    BadPropertyError,
    BadQueryError,
    BadRequestError,
    BadValueError,
    IntegerOverflowError,
)
from aiodatastore.key import Key, check_kind, check_namespace, check_project, utf8_length
from aiodatastore.values import INT64_MAX, INT64_MIN, Blob, GeoPoint, Text, check_name_form

__all__ = [
    "KEY_PROPERTY",
    "MAX_COMPONENTS",
    "MAX_SUBQUERIES",
    "And",
    "Filter",
    "Op",
    "Or",
    "Order",
    "PropertyFilter",
    "Query",
    "parse_filter_string",
]

KEY_PROPERTY: Final = "__key__"
"""What names an entity's key in filters and orders."""
MAX_COMPONENTS: Final = 100
"""How many filters, orders and ancestors a query may have together."""
MAX_SUBQUERIES: Final = 30
"""How many queries :meth:`Query.union` merges."""
_MAX_DEPTH: Final = 50
"""How deep And and Or may be nested."""


class Op(enum.StrEnum):
    """What a filter compares with."""

    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    IN = "in"
    NOT_IN = "not in"


_OPS: dict[str, Op] = {op.value: op for op in Op} | {"==": Op.EQ}
_RANGES: Final = frozenset({Op.NE, Op.LT, Op.LE, Op.GT, Op.GE, Op.NOT_IN})
"""Operators that order a query's results by their property; App Engine's "inequality filters"."""


# ----------------------------------------------------------------------------------------------- filters


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PropertyFilter:
    """A condition on one property; ``__key__`` names the entity's key.

    For ``in`` and ``not in``, ``value`` is a list or tuple of alternatives (kept as a tuple). A list property
    meets a condition with any of its elements.

    >>> PropertyFilter("age", ">=", 21)
    PropertyFilter('age', '>=', 21)

    :raises BadFilterError: an unknown operator, an unusable name, a ``__key__`` that is compared with no key
    :raises BadValueError: a value that no indexed property can hold
    """

    name: str
    op: Op
    value: Any

    def __init__(self, name: str, op: Op | str, value: Any) -> None:
        operator = op if type(op) is Op else _operator(op)
        _check_filter_name(name)
        if operator is Op.IN or operator is Op.NOT_IN:
            if type(value) is not list and type(value) is not tuple:
                raise BadValueError(f"filter on {name!r}: {operator} takes a list, got {value!r:.80}")
            value = tuple(_filter_value(name, element) for element in value)
        else:
            value = _filter_value(name, value)
        _set(self, "name", name)
        _set(self, "op", operator)
        _set(self, "value", value)

    def __eq__(self, other: object) -> bool:
        # 1, True and 1.0 are different to the datastore, nan is itself, and alternatives have no order.
        return _description(self) == _description(other) if isinstance(other, PropertyFilter) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.op))

    def __repr__(self) -> str:
        return f"PropertyFilter({self.name!r}, {self.op.value!r}, {self.value!r})"


@dataclass(frozen=True, slots=True, repr=False)
class And:
    """All of several conditions. Without any, it holds for everything.

    >>> And(PropertyFilter("a", "=", 1), Or(PropertyFilter("b", "<", 2), PropertyFilter("c", "=", None)))
    And(PropertyFilter('a', '=', 1), Or(PropertyFilter('b', '<', 2), PropertyFilter('c', '=', None)))

    :raises BadFilterError: if an argument is no filter, or they are nested too deep
    """

    filters: tuple[Filter, ...]
    _depth: int = field(compare=False)

    def __init__(self, *filters: Filter) -> None:
        _set(self, "filters", _checked(filters))
        _set(self, "_depth", _depth(filters))

    def __repr__(self) -> str:
        return f"And({', '.join(map(repr, self.filters))})"


@dataclass(frozen=True, slots=True, repr=False)
class Or:
    """At least one of several conditions. Without any, it holds for nothing.

    :raises BadFilterError: if an argument is no filter, or they are nested too deep
    """

    filters: tuple[Filter, ...]
    _depth: int = field(compare=False)

    def __init__(self, *filters: Filter) -> None:
        _set(self, "filters", _checked(filters))
        _set(self, "_depth", _depth(filters))

    def __repr__(self) -> str:
        return f"Or({', '.join(map(repr, self.filters))})"


Filter: TypeAlias = PropertyFilter | And | Or
"""What a query can be filtered by."""

_set = object.__setattr__


def _checked(filters: Sequence[Any]) -> tuple[Filter, ...]:
    for each in filters:
        if not isinstance(each, PropertyFilter | And | Or):
            raise BadFilterError(f"expected a PropertyFilter, And or Or, got {each!r:.80}")
    return tuple(filters)


def _depth(filters: Sequence[Filter]) -> int:
    depth = 1 + max((0 if isinstance(each, PropertyFilter) else each._depth for each in filters), default=0)
    if depth > _MAX_DEPTH:
        raise BadFilterError(f"And and Or can be nested {_MAX_DEPTH} deep, no deeper; one And takes many filters")
    return depth


def _operator(op: Any) -> Op:
    found = (_OPS.get(op) or _OPS.get(" ".join(op.split()).lower())) if isinstance(op, str) else None
    if found is None:
        raise BadFilterError(f"expected one of {', '.join(_OPS)}; got {op!r:.80}")
    return found


def _check_filter_name(name: Any) -> None:
    try:
        check_name_form(name)
    except BadPropertyError as exc:
        raise BadFilterError(f"a filter can't have this name: {exc}") from exc


def _filter_value(name: str, value: Any) -> Any:
    """A value as a filter keeps it."""
    check = _FILTER_VALUES.get(type(value))
    if check is None:
        _refuse_value(name, value)
    value = check(name, value)
    if name == KEY_PROPERTY and type(value) is not Key:
        raise BadFilterError(f"{KEY_PROPERTY} is compared with keys, not with {value!r:.80}")
    return value


def _refuse_value(name: str, value: Any) -> NoReturn:
    hint = ""
    if isinstance(value, Text | Blob):
        hint = "; Text and Blob are never indexed, so nothing could be found"
    elif isinstance(value, Mapping):
        hint = "; filter on a property inside it with a dotted name"
    elif isinstance(value, list | tuple):
        hint = "; a list can't directly hold a list"
    raise BadValueError(
        f"filter on {name!r}: expected None, bool, int, float, str, bytes, an aware datetime, Key or"
        f" GeoPoint, got {type(value).__name__} {value!r:.80}{hint}"
    )


def _same(name: str, value: Any) -> Any:
    return value


def _int_value(name: str, value: int) -> int:
    if not INT64_MIN <= value <= INT64_MAX:
        raise IntegerOverflowError(f"filter on {name!r}: an int has 64 bits, got {value}")
    return value


def _str_value(name: str, value: str) -> str:
    if utf8_length(value) is None:
        raise BadValueError(f"filter on {name!r}: a str with a lone surrogate is nowhere stored")
    return value


def _datetime_value(name: str, value: datetime) -> datetime:
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None or value.utcoffset() is None:
        raise BadValueError(
            f"filter on {name!r}: expected an aware datetime, got the naive {value!r};"
            " if it is UTC, use value.replace(tzinfo=datetime.UTC)"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise BadValueError(f"filter on {name!r}: {value!r} is outside the years 1 to 9999 in UTC") from exc


def _key_value(name: str, value: Key) -> Key:
    if not value.is_complete:
        raise BadValueError(f"filter on {name!r}: expected a complete key, got {value!r}")
    return value


_FILTER_VALUES: dict[type, Callable[[str, Any], Any]] = {
    type(None): _same,
    bool: _same,
    int: _int_value,
    float: _same,
    str: _str_value,
    bytes: _same,
    datetime: _datetime_value,
    Key: _key_value,
    GeoPoint: _same,
}

_STRICT_FILTER = re.compile(r"\s*(\S+)(?:\s+(<=?|>=?|==?)\s*)?")
_FILTER = re.compile(r"\s*(\S+)(?:\s+(<=?|>=?|==?|!=|not\s+in|in)\s*)?", re.IGNORECASE)


def parse_filter_string(text: Any, *, strict: bool = False) -> tuple[str, Op]:
    """Property and operator of ``"age >="``; without an operator it is ``=``.

    The operator is set off by white space: ``"x="`` names a property ``x=``. With ``strict``, as in App
    Engine, ``!=``, ``in`` and ``not in`` are refused.

    >>> parse_filter_string("age >=")
    ('age', <Op.GE: '>='>)

    :raises BadFilterError: if the text is no name and operator
    """
    form = _STRICT_FILTER if strict else _FILTER
    if not isinstance(text, str) or (match := form.fullmatch(text)) is None:
        raise BadFilterError(f"expected a property and an operator like 'age >=', got {text!r:.80}")
    name, op = match.groups()
    return name, Op.EQ if op is None else _operator(op)


def _filters_of(condition: Sequence[Any], strict: bool) -> Iterator[Filter]:
    """Filters of what :meth:`Query.filter` takes."""
    match condition:
        case (str() as name, op, value):
            yield from _spread(name, _operator(op), value)
        case (str() as text, value):
            yield from _spread(*parse_filter_string(text, strict=strict), value)
        case (Mapping() as conditions,):
            for text, value in conditions.items():
                yield from _spread(*parse_filter_string(text, strict=strict), value)
        case (PropertyFilter() | And() | Or(), *_):
            yield from _checked(condition)
        case _:
            raise BadFilterError("expected a name, operator and value, a filter object or a mapping")


def _spread(name: str, op: Op, value: Any) -> Iterator[PropertyFilter]:
    """One filter, or one for each element of a list, all of which must hold."""
    if (type(value) is list or type(value) is tuple) and op is not Op.IN and op is not Op.NOT_IN:
        if not value:
            raise BadValueError(f"filter on {name!r}: an empty list asks for nothing; leave the filter out")
        for element in value:
            yield PropertyFilter(name, op, element)
    else:
        yield PropertyFilter(name, op, value)


def _leaves(filters: Iterable[Filter]) -> Iterator[PropertyFilter]:
    for each in filters:
        if type(each) is PropertyFilter:
            yield each
        else:
            yield from _leaves(_inner(each))


def _inner(node: Filter) -> tuple[Filter, ...]:
    return () if isinstance(node, PropertyFilter) else node.filters


def _ranged(filters: Iterable[Filter]) -> list[tuple[str, ...]]:
    """Of each branch of the disjunctive normal form, the properties (or the key) in a range; alike ones once.

    Stops at :data:`MAX_COMPONENTS` branches: no engine runs a query of more.
    """
    branches: dict[tuple[str, ...], None] = {(): None}
    for each in filters:
        if type(each) is PropertyFilter:
            options: list[tuple[str, ...]] = [(each.name,)] if each.op in _RANGES else [()]
        elif type(each) is And:
            options = _ranged(_inner(each))
        else:
            options = [option for part in _inner(each) for option in _ranged((part,))]
        product = [before + option for before in branches for option in options]
        branches = dict.fromkeys(product[:MAX_COMPONENTS])
    return list(branches)


# ------------------------------------------------------------------------------------------------ orders


@dataclass(frozen=True, slots=True, repr=False)
class Order:
    """An order of results: by a property (or ``__key__``), ascending unless said otherwise.

    >>> Order("born", descending=True)
    Order('born', descending=True)

    :raises BadArgumentError: if the name is unusable
    """

    name: str
    descending: bool = False

    def __post_init__(self) -> None:
        try:
            check_name_form(self.name)
        except BadPropertyError as exc:
            raise BadArgumentError(f"an order can't have this name: {exc}") from exc
        if type(self.descending) is not bool:
            raise BadArgumentError(f"descending is True or False, not {self.descending!r:.80}")

    @classmethod
    def parse(cls, argument: Any, *, strict: bool = False) -> Order:
        """An order of ``"born"``, ``"-born"``, an Order, or a tuple of name and direction.

        A direction is ``"asc"`` or 1, ``"desc"`` or 2. With ``strict``, as in App Engine, a tuple may have
        something ignored in the middle, 2 is descending, and a direction that is unknown is ascending.

        >>> Order.parse("-born") == Order.parse(("born", "desc")) == Order("born", descending=True)
        True

        :raises BadArgumentError: if the argument is nothing of these
        """
        if type(argument) is cls:
            return argument
        if isinstance(argument, str):
            return _order_of(argument)
        match argument:
            case (str() as name, str() | int() as direction) if not strict and direction in _DIRECTIONS:
                return cls(name, _DIRECTIONS[direction])
            case (str() as name, direction) if strict:
                return cls(name, direction == 2)
            case (str() as name, _, 1 | 2 as direction) if strict:
                return cls(name, direction == 2)
        raise BadArgumentError(f"expected an order like 'born', '-born' or an Order, got {argument!r:.80}")

    def flipped(self) -> Order:
        """The other direction."""
        return Order(self.name, not self.descending)

    def __repr__(self) -> str:
        return f"Order({self.name!r}{', descending=True' if self.descending else ''})"


@lru_cache(maxsize=1000)
def _order_of(text: str) -> Order:
    """Programs ask for few orders, again and again."""
    return Order(text[1:], True) if text[:1] == "-" else Order(text)


_DIRECTIONS: dict[Any, bool] = {"asc": False, 1: False, "desc": True, 2: True}


# ------------------------------------------------------------------------------------------------ queries


class Query:
    """What to find: entities of a kind (or of all kinds), with filters, orders and limits.

    Queries never change: each method gives a new one.

    >>> adults = Query("Person").filter("age >=", 21).order("-age", "name").limit(10)
    >>> adults.filters
    (PropertyFilter('age', '>=', 21),)
    >>> Query("Person").filter({"age >=": 21, "tag =": ("a", "b")}).filters[1:]
    (PropertyFilter('tag', '=', 'a'), PropertyFilter('tag', '=', 'b'))

    Without orders, results come in order of the property that is compared with ``<``, ``>`` or the like, if
    there is one, then of what is projected, then of keys. Ties are always broken by key, ascending unless
    ``__key__`` is among the orders. An entity without an indexed value for a property that is filtered,
    ordered or projected is no result.

    ``namespace`` and ``project`` are the ancestor's if not given. ``strict`` applies App Engine's rules:
    inequalities on one property only, which must be ordered first, no descending keys without a kind.

    :raises BadArgumentError: a bad kind, namespace, order, limit, offset, ancestor, projection or cursor
    :raises BadFilterError: a filter that is malformed, or can't be combined with the others
    :raises BadValueError: a value that no filter can compare with
    :raises BadKeyError: an incomplete ancestor
    """

    kind: str | None
    """The kind of the results; None for all kinds."""
    namespace: str
    project_id: str
    ancestor: Key | None
    """Results are this key's entity and what is below it."""
    filters: tuple[Filter, ...]
    """Conditions that must all hold."""
    orders: tuple[Order, ...]
    """The orders asked for; :attr:`full_orders` has those that follow from the rest, too."""
    projection: tuple[str, ...]
    """The properties results are reduced to; empty for whole entities."""
    distinct_names: tuple[str, ...]
    """Of each combination of these properties' values, only the first result."""
    only_keys: bool
    max_results: int | None
    skip: int
    start_cursor: Cursor | None
    end_cursor: Cursor | None
    strict: bool
    subqueries: tuple[Query, ...]
    """The queries that :meth:`union` merged; empty for a plain query."""
    _partition_given: bool
    _shape: bytes | None
    _prepared: Any

    def __init__(
        self,
        kind: str | None = None,
        *,
        ancestor: Any = None,
        namespace: str | None = None,
        project: str | None = None,
        filters: Any = (),
        orders: Any = (),
        projection: Iterable[str] = (),
        distinct_on: Iterable[str] = (),
        keys_only: bool = False,
        limit: int | None = None,
        offset: int = 0,
        start: Cursor | None = None,
        end: Cursor | None = None,
        strict: bool = False,
    ) -> None:
        above = None if ancestor is None else _ancestor(ancestor)
        given = namespace is not None or project is not None
        if above is not None and not given:
            namespace, project = above.namespace, above.project
        self.__dict__.update(
            {
                "kind": None if kind is None else check_kind(kind),
                "namespace": check_namespace(namespace),
                "project_id": check_project(project),
                "ancestor": above,
                "filters": _given_filters(filters, strict),
                "orders": _given_orders(orders, strict),
                # An empty tuple is the default and means none; any other empty collection was somebody's mistake.
                "projection": () if projection == () else _property_names("projection", projection),
                "distinct_names": () if distinct_on == () else _property_names("distinct_on", distinct_on),
                "only_keys": bool(keys_only),
                "max_results": _limit(limit),
                "skip": _offset(offset),
                "start_cursor": _cursor("start", start),
                "end_cursor": _cursor("end", end),
                "strict": bool(strict),
                "subqueries": (),
                "_partition_given": given,
                "_shape": None,
                "_prepared": None,
            }
        )
        if self.distinct_names and not self.projection:
            raise BadQueryError("a query is distinct on what it projects; give it a projection")
        self._check_filters()
        self._check_orders()
        self._check_first_order(BadArgumentError)

    def _changed(self, **changes: Any) -> Query:
        """This query with some attributes changed."""
        new = object.__new__(Query)
        values = new.__dict__  # not through __setattr__, which refuses
        values.update(self.__dict__)
        values["_shape"] = values["_prepared"] = None
        values.update(changes)
        return new

    def _each(self, change: Callable[[Query], Query]) -> Query:
        """This union with a change made to each of its queries."""
        return self._changed(subqueries=tuple(change(part) for part in self.subqueries))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"queries never change: use a method like .filter() or .limit(), not .{name} =")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("queries never change")

    # ------------------------------------------------------------------------------- what it looks for

    @overload
    def filter(self, name: str, op: Op | str, value: Any, /) -> Query: ...
    @overload
    def filter(self, text: str, value: Any, /) -> Query: ...
    @overload
    def filter(self, /, *conditions: Filter) -> Query: ...
    @overload
    def filter(self, conditions: Mapping[str, Any], /) -> Query: ...
    def filter(self, /, *condition: Any) -> Query:
        """With more conditions, all of which must hold.

        Takes a name, operator and value; ``"age >="`` and a value; filter objects; or App Engine's mapping
        ``{"age >=": 21}``. A list as value means one condition for each element (but for ``in`` and
        ``not in``, whose alternatives it gives).

        :raises BadFilterError: if the condition is malformed, or can't be combined with the others
        :raises BadValueError: if a value can't be compared with
        """
        if self.subqueries:
            return self._each(lambda part: part.filter(*condition))
        new = self._changed(filters=self.filters + tuple(_filters_of(condition, self.strict)))
        new._check_filters()
        new._check_first_order(BadFilterError)
        return new

    def under(self, ancestor: Any) -> Query:
        """Only the entity of this key (or entity) and what is below it.

        :raises BadKeyError: if the key is incomplete
        """
        if self.subqueries:
            return self._each(lambda part: part.under(ancestor))
        above = _ancestor(ancestor)
        if self._partition_given:
            return self._changed(ancestor=above)
        return self._changed(ancestor=above, namespace=above.namespace, project_id=above.project)

    # -------------------------------------------------------------------------------- in which order

    def order(self, *orders: str | Order | tuple[str, str | int]) -> Query:
        """With more orders: ``"name"``, ``"-name"``, an :class:`Order`, or a name and a direction.

        :raises BadArgumentError: if an order is malformed, or can't be combined with the filters
        """
        new = self._changed(orders=self.orders + _given_orders(orders, self.strict))
        new._check_orders()
        new._check_first_order(BadArgumentError)
        return new._each(lambda part: part.order(*orders)) if self.subqueries else new

    @property
    def full_orders(self) -> tuple[Order, ...]:
        """The orders spelled out, down to the key's: those asked for, and those that follow from the rest.

        >>> Query("Person").filter("age >", 21).full_orders
        (Order('age'), Order('__key__'))
        """
        full: dict[str, Order] = {}
        for order in self.orders:
            full.setdefault(order.name, order)
            if order.name == KEY_PROPERTY:
                return tuple(full.values())
        branches = self._branches() if self.projection or not self.orders else []
        shared = [name for name in branches[0] if all(name in branch for branch in branches)] if branches else []
        ranged = [name for name in shared if name != KEY_PROPERTY]
        implied: list[str] = []
        if not self.orders and ranged:
            implied = ranged[:1]
        elif not self.orders and shared:
            return (Order(KEY_PROPERTY),)
        if self.projection:
            implied += [*ranged, *sorted(self.distinct_names), *sorted(self.projection)]
        for name in (*implied, KEY_PROPERTY):
            full.setdefault(name, Order(name))
        return tuple(full.values())

    def _branches(self) -> list[tuple[str, ...]]:
        return [branch for part in self.subqueries or (self,) for branch in _ranged(part.filters)]

    def reversed(self) -> Query:
        """The same results the other way round: every order flipped, keys included.

        Takes the cursors of this query: from there on it finds what came before.

        >>> Query("Person").order("-age").reversed().orders
        (Order('age'), Order('__key__', descending=True))
        """
        orders = tuple(order.flipped() for order in self.full_orders)
        parts = tuple(part._changed(orders=orders) for part in self.subqueries)
        return self._changed(orders=orders, subqueries=parts)

    # -------------------------------------------------------------------------------- what of it, how much

    def project(self, *names: str) -> Query:
        """Only these properties of each result, read from an index; entities so reduced can't be put.

        :raises BadArgumentError: if there is no name, or one is unusable
        """
        if self.subqueries:
            return self._each(lambda part: part.project(*names))._changed(projection=_property_names("project", names))
        return self._changed(projection=_property_names("project", names))

    def distinct_on(self, *names: str) -> Query:
        """Only the first result of each combination of these values; without names, of all projected.

        :raises BadQueryError: if the query has no projection
        """
        if not self.projection:
            raise BadQueryError("a query is distinct on what it projects; call .project() first")
        distinct = _property_names("distinct_on", names) if names else self.projection
        parts = tuple(part._changed(distinct_names=distinct) for part in self.subqueries)
        return self._changed(distinct_names=distinct, subqueries=parts)

    def distinct(self) -> Query:
        """Only the first result of each combination of projected values.

        :raises BadQueryError: if the query has no projection
        """
        return self.distinct_on()

    def keys_only(self) -> Query:
        """Keys instead of entities."""
        parts = tuple(part.keys_only() for part in self.subqueries)
        return self._changed(only_keys=True, _shape=self._shape, subqueries=parts)

    def limit(self, count: int | None) -> Query:
        """At most this many results; None for all.

        :raises BadArgumentError: if it is no int of 0 or more
        """
        return self._changed(max_results=_limit(count), _shape=self._shape)

    def offset(self, count: int) -> Query:
        """Without the first results. They are still read: cursors are cheaper.

        :raises BadArgumentError: if it is no int of 0 or more
        """
        return self._changed(skip=_offset(count), _shape=self._shape)

    def start(self, cursor: Cursor | None) -> Query:
        """From a cursor on; None for the first result."""
        return self._changed(start_cursor=_cursor("start", cursor), _shape=self._shape)

    def end(self, cursor: Cursor | None) -> Query:
        """Up to a cursor; None for the last result."""
        return self._changed(end_cursor=_cursor("end", cursor), _shape=self._shape)

    # ------------------------------------------------------------------------------------------ unions

    @classmethod
    def union(
        cls,
        queries: Iterable[Query],
        orders: Iterable[str | Order | tuple[str, str | int]] = (),
    ) -> Query:
        """The results of several queries, merged in order, each entity once (App Engine's ``MultiQuery``).

        ``orders`` hold for all; by default they are those of the queries, which must then agree. The union is
        strict if one of the queries is; no query finds nothing.

        :raises BadArgumentError: if there are more than 30 queries
        :raises BadQueryError: if they differ in partition, projection or orders, only some are keys-only, or
            one has a limit, an offset or a cursor of its own
        """
        given = list(queries)
        if not all(isinstance(part, Query) for part in given):
            raise BadArgumentError("expected queries to unite")
        parts = [part for query in given for part in query.subqueries or (query,)]
        if len(parts) > MAX_SUBQUERIES:
            raise BadArgumentError(f"a union has at most {MAX_SUBQUERIES} queries, this one has {len(parts)}")
        strict = any(part.strict for part in parts)
        if not parts:
            return cls(filters=Or())._changed(orders=_given_orders(orders, False))
        if strict and any(part.only_keys for part in parts):
            raise BadQueryError("App Engine's rules allow no keys-only queries in a union")
        first = parts[0]
        common = _given_orders(orders, strict) or first.orders
        for query in given:
            if (query.max_results, query.skip, query.start_cursor, query.end_cursor) != (None, 0, None, None):
                raise BadQueryError("limit, offset and cursors belong to the union, not to its queries")
        for part in parts:
            if part.orders and part.orders != common:
                raise BadQueryError(f"the queries of a union have one order: {part.orders} is not {common}")
            for what in ("namespace", "project_id", "projection", "distinct_names", "only_keys"):
                if getattr(part, what) != getattr(first, what):
                    raise BadQueryError(
                        f"the queries of a union have the same {what}:"
                        f" {getattr(part, what)!r} is not {getattr(first, what)!r}"
                    )
        kinds = {part.kind for part in parts}
        return first._changed(
            kind=first.kind if len(kinds) == 1 else None,
            ancestor=None,
            filters=(),
            orders=common,
            strict=strict,
            subqueries=tuple(part._changed(orders=common) for part in parts),
        )

    # ------------------------------------------------------------------------------------------ checks

    def _check_filters(self) -> None:
        if self.kind is None:
            for leaf in _leaves(self.filters):
                if leaf.name != KEY_PROPERTY:
                    raise BadFilterError(
                        f"a query without a kind is filtered by {KEY_PROPERTY} alone, not by {leaf.name!r}"
                    )
        if self.strict:
            ranged = {leaf.name for leaf in _leaves(self.filters) if leaf.op in _RANGES}
            if len(ranged) > 1:
                raise BadFilterError(
                    f"App Engine's rules allow inequalities on one property, not on {', '.join(sorted(ranged))}"
                )

    def _check_orders(self) -> None:
        if self.kind is None and not self.subqueries:
            for order in self.orders:
                if order.name != KEY_PROPERTY:
                    raise BadArgumentError(
                        f"a query without a kind is ordered by {KEY_PROPERTY} alone, not by {order.name!r}"
                    )
                if order.descending and self.strict:
                    raise BadArgumentError("App Engine's rules allow no descending keys without a kind")

    def _check_first_order(self, error: type[BadArgumentError | BadFilterError]) -> None:
        if self.strict and self.orders:
            for leaf in _leaves(self.filters):
                if leaf.op in _RANGES and leaf.name != self.orders[0].name:
                    raise error(
                        f"App Engine's rules want {leaf.name!r}, which has an inequality, as the first order,"
                        f" not {self.orders[0].name!r}"
                    )

    def check(self) -> None:
        """Check what can only be told of the finished query; the datastore calls it before running one.

        :raises BadRequestError: if there are too many components, or what is projected, distinct or compared
            with can't be
        :raises BadQueryError: if it is distinct on what it does not project
        :raises BadArgumentError: if the ancestor is of another namespace or project
        :raises BadCursorError: if a cursor was made by a query of another shape
        """
        for part in self.subqueries or (self,):
            part._check_parts()
        if self.subqueries and self.strict and self.only_keys:
            raise BadRequestError("App Engine's rules allow no keys-only union")
        for cursor in (self.start_cursor, self.end_cursor):
            if cursor is not None and cursor.shape and cursor.shape != self.shape:
                raise BadCursorError(
                    "this cursor was made by another query; kind, namespace, ancestor, filters, orders and"
                    " projection must be the same (or all orders reversed)"
                )

    def _check_parts(self) -> None:
        leaves = list(_leaves(self.filters))
        components = len(leaves) + len(self.orders) + (self.ancestor is not None)
        if components > MAX_COMPONENTS:
            raise BadRequestError(
                f"a query has at most {MAX_COMPONENTS} filters, orders and ancestor, not {components}"
            )
        above = self.ancestor
        if above is not None and not self._is_home(above):
            raise BadArgumentError(f"ancestor {above!r} is not in {self._home}")
        for leaf in leaves:
            if leaf.name == KEY_PROPERTY:
                for key in leaf.value if type(leaf.value) is tuple else (leaf.value,):
                    if not self._is_home(key):
                        raise BadRequestError(f"{KEY_PROPERTY} is compared with {key!r}, not in {self._home}")
        if self.projection:
            self._check_projection()
        if self.distinct_names:
            self._check_distinct(leaves)

    def _is_home(self, key: Key) -> bool:
        return key.namespace == self.namespace and key.project == self.project_id

    @property
    def _home(self) -> str:
        return f"the query's namespace {self.namespace!r} and project {self.project_id!r}"

    def _check_projection(self) -> None:
        if self.only_keys:
            raise BadRequestError("a query gives keys only or a projection, not both")
        if self.kind is None:
            raise BadRequestError("a query without a kind can't be projected")
        if len(set(self.projection)) < len(self.projection):
            raise BadRequestError(f"a property is projected twice: {', '.join(self.projection)}")
        for name in self.projection:
            if len(name) >= 4 and name[:2] == "__" == name[-2:]:
                raise BadRequestError(f"{name!r} is no property that can be projected")
        for leaf in self.filters:
            if isinstance(leaf, PropertyFilter) and leaf.op is Op.EQ and leaf.name in self.projection:
                raise BadRequestError(f"{leaf.name!r} is given by its filter and can't be projected")

    def _check_distinct(self, leaves: list[PropertyFilter]) -> None:
        wanted = set(self.distinct_names)
        for name in self.distinct_names:
            if name not in self.projection:
                raise BadQueryError(f"a query is distinct on what it projects, which {name!r} is not")
        for leaf in leaves:
            if leaf.op in _RANGES and leaf.name not in wanted:
                raise BadRequestError(f"{leaf.name!r} has an inequality, so distinct must be on it, too")
        for name in dict.fromkeys(order.name for order in self.orders):
            if not wanted:
                break
            if name not in wanted:
                raise BadRequestError(f"orders must begin with what the query is distinct on, before {name!r}")
            wanted.remove(name)

    # -------------------------------------------------------------------------------------- comparisons

    @property
    def shape(self) -> bytes:
        """16 bytes that stand for what is found in which order: what a cursor is bound to.

        The same for a query and its :meth:`reversed`, whatever ``keys_only``, limit and cursors are.
        """
        shape = self._shape
        if shape is None:
            orders = self.full_orders
            if orders[-1].descending:
                orders = tuple(order.flipped() for order in orders)
            parts = [
                ("order", *(f"{order.name}\0{order.descending}" for order in orders)),
                ("projection", *sorted(self.projection)),
                ("distinct", *sorted(self.distinct_names)),
                *sorted(part._described() for part in self.subqueries or (self,)),
            ]
            shape = hashlib.blake2b(repr(parts).encode(), digest_size=16, person=b"query shape").digest()
            self.__dict__["_shape"] = shape
        return shape

    def _described(self) -> tuple[str, ...]:
        return (
            repr(self.kind),
            self.namespace,
            self.project_id,
            repr(self.ancestor),
            *sorted(map(_description, self.filters)),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Query):
            return NotImplemented
        mine, theirs = self.__dict__, other.__dict__
        return all(value == theirs[name] for name, value in mine.items() if name[0] != "_")

    def __hash__(self) -> int:
        return hash(self.shape)

    def __repr__(self) -> str:
        if self.subqueries:
            parts = [f"[{', '.join(map(repr, self.subqueries))}]"]
            text = f"Query.union({parts[0]}, {list(self.orders)!r})"
        else:
            parts = [] if self.kind is None else [repr(self.kind)]
            shown = {
                "ancestor": self.ancestor,
                "namespace": self.namespace,
                "project": self.project_id,
                "filters": self.filters,
                "orders": self.orders,
                "projection": self.projection,
                "distinct_on": self.distinct_names,
                "keys_only": self.only_keys,
                "strict": self.strict,
            }
            parts += [f"{name}={value!r}" for name, value in shown.items() if value]
            text = f"Query({', '.join(parts)})"
        if self.max_results is not None:
            text += f".limit({self.max_results})"
        if self.skip:
            text += f".offset({self.skip})"
        for name, cursor in (("start", self.start_cursor), ("end", self.end_cursor)):
            if cursor is not None:
                text += f".{name}({cursor!r})"
        return text


def _description(node: Filter) -> str:
    """A filter as text, the same for filters that mean the same but for the order of their parts."""
    if type(node) is PropertyFilter:
        if type(node.value) is tuple:
            value = f"[{', '.join(sorted({_value_description(each) for each in node.value}))}]"
        else:
            value = _value_description(node.value)
        return f"{node.name!r} {node.op.value} {value}"
    parts = ", ".join(sorted(map(_description, _inner(node))))
    return f"{type(node).__name__}({parts})"


def _value_description(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


# ---------------------------------------------------------------------------------------------- arguments


def _ancestor(ancestor: Any) -> Key:
    key = ancestor if isinstance(ancestor, Key) else getattr(ancestor, "key", None)
    if not isinstance(key, Key):
        raise BadArgumentError(f"expected an ancestor that is a Key or an Entity, got {ancestor!r:.80}")
    if not key.is_complete:
        raise BadKeyError(f"ancestor {key!r} is incomplete; put its entity first, or give it an id or name")
    return key


def _given_filters(filters: Any, strict: bool) -> tuple[Filter, ...]:
    if filters == ():
        return ()
    if isinstance(filters, PropertyFilter | And | Or | Mapping):
        return tuple(_filters_of((filters,), strict))
    if isinstance(filters, str) or not isinstance(filters, Iterable):
        raise BadFilterError(f"expected filters: a mapping or an iterable of filters, got {filters!r:.80}")
    found: list[Filter] = []
    for each in filters:
        found += _filters_of(each if isinstance(each, tuple | list) else (each,), strict)
    return tuple(found)


def _given_orders(orders: Any, strict: bool) -> tuple[Order, ...]:
    if orders == ():
        return ()
    if isinstance(orders, str | Order):
        orders = (orders,)
    if not isinstance(orders, Iterable):
        raise BadArgumentError(f"expected an iterable of orders, got {orders!r:.80}")
    return tuple([Order.parse(order, strict=strict) for order in orders])


def _property_names(what: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise BadArgumentError(f"{what} takes a list of property names, not {names!r:.80}")
    found = tuple(names)
    if not found:
        raise BadArgumentError(f"{what} needs the name of a property at least")
    for name in found:
        try:
            check_name_form(name)
        except BadPropertyError as exc:
            raise BadArgumentError(f"{what} can't have this name: {exc}") from exc
    return found


def _limit(count: Any) -> int | None:
    if count is None or (type(count) is int and count >= 0):
        return count
    raise BadArgumentError(f"a limit is an int of 0 or more, or None for all; not {count!r:.80}")


def _offset(count: Any) -> int:
    if type(count) is int and count >= 0:
        return count
    raise BadArgumentError(f"an offset is an int of 0 or more, not {count!r:.80}")


def _cursor(what: str, cursor: Any) -> Cursor | None:
    if cursor is None or isinstance(cursor, Cursor):
        return cursor
    hint = "; read its text with Cursor.from_urlsafe" if isinstance(cursor, str) else ""
    raise BadArgumentError(f"expected a {what} cursor, got {type(cursor).__name__} {cursor!r:.80}{hint}")
