"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from aiodatastore.cli.parsing import VALUES_HELP, parse_filter, parse_key, parse_names
from aiodatastore.key import Key
from aiodatastore.query import Filter, Or

__all__ = ["QueryOptions", "filter_options", "json_option", "namespace_option", "query_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
namespace_option = click.option(
    "--namespace", default="", metavar="NAME", help="The namespace of the kind, and of keys that name none."
)

_FILTERS = (
    click.option(
        "--filter",
        "-f",
        "filters",
        multiple=True,
        metavar="CONDITION",
        help="""A condition like 'age >= 21', 'city in London,Paris', 'tags = "x"', '__key__ > /Person:ada';
        with = != < <= > >= in, not in. All that are given must hold.""",
    ),
    click.option(
        "--any",
        "alternatives",
        multiple=True,
        metavar="CONDITION",
        help="Of these conditions, at least one must hold.",
    ),
    click.option("--ancestor", metavar="KEY", help="Only this key and what is below it."),
    namespace_option,
)

_QUERY = (
    click.option(
        "--order",
        "-o",
        "orders",
        multiple=True,
        metavar="NAME",
        help="Sort by this property; descending with a minus: --order -age --order name (or -age,name).",
    ),
    click.option("--project", "projection", multiple=True, metavar="NAME", help="Only these properties."),
    click.option("--distinct", is_flag=True, help="Of equal projected values, only the first."),
    click.option("--keys-only", is_flag=True, help="Keys alone."),
)


def _with(options: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


filter_options = _with(_FILTERS)
query_options = _with((*_FILTERS, *_QUERY))


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What ``--filter`` and its companions say, checked."""

    filters: tuple[Filter, ...] = ()
    ancestor: Key | None = None
    orders: tuple[str, ...] = ()
    projection: tuple[str, ...] = ()
    distinct: bool = False
    keys_only: bool = False

    @classmethod
    def read(
        cls,
        *,
        filters: tuple[str, ...] = (),
        alternatives: tuple[str, ...] = (),
        ancestor: str | None = None,
        namespace: str = "",
        orders: tuple[str, ...] = (),
        projection: tuple[str, ...] = (),
        distinct: bool = False,
        keys_only: bool = False,
    ) -> QueryOptions:
        """Read the texts of the options.

        :raises click.BadParameter: if one can't be read
        """
        conditions = [parse_filter(text, namespace) for text in filters]
        if alternatives:
            conditions.append(Or(*(parse_filter(text, namespace) for text in alternatives)))
        if distinct and not projection:
            raise click.UsageError("--distinct goes with --project")
        return cls(
            tuple(conditions),
            parse_key(ancestor, namespace) if ancestor else None,
            parse_names(orders),
            parse_names(projection),
            distinct,
            keys_only,
        )

    def apply(self, query: Any) -> Any:
        """The query (of a datastore, or by itself) with all of this."""
        for condition in self.filters:
            query = query.filter(condition)
        if self.ancestor is not None:
            query = query.under(self.ancestor)
        if self.orders:
            query = query.order(*self.orders)
        if self.projection:
            query = query.project(*self.projection)
        if self.distinct:
            query = query.distinct_on(*self.projection)
        if self.keys_only:
            query = query.keys_only()
        return query


HELP_VALUES = VALUES_HELP
