"""Functions that run in transactions whenever they are called."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from aiodatastore.arguments import check_retries, check_timeout
from aiodatastore.errors import BadArgumentError
from aiodatastore.txn.current import find_datastore
from aiodatastore.txn.running import Propagation, check_async, run_in_transaction

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore

__all__ = ["check_options", "decorated", "transactional"]

P = ParamSpec("P")
T = TypeVar("T")


def check_options(retries: int, timeout: float | None, propagation: Propagation) -> None:
    """:raises BadArgumentError: if an option of a decorator is not one"""
    check_retries(retries)
    check_timeout(timeout)
    if not isinstance(propagation, Propagation):
        raise BadArgumentError(f"propagation: expected a Propagation, got {propagation!r:.80}")


def decorated(
    function: Callable[..., Any],
    find: Callable[[], Datastore],
    *,
    retries: int,
    timeout: float | None,
    read_only: bool,
    propagation: Propagation,
) -> Callable[..., Any]:
    """``function``, run in a transaction of the datastore that ``find`` finds when it is called."""
    check_async(function)

    @functools.wraps(function)
    async def in_transaction(*args: Any, **kwargs: Any) -> Any:
        return await run_in_transaction(
            find(),
            function,
            args,
            kwargs,
            retries=retries,
            timeout=timeout,
            read_only=read_only,
            propagation=propagation,
        )

    return in_transaction


@overload
def transactional(function: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]: ...
@overload
def transactional(
    *,
    datastore: Datastore | None = None,
    retries: int = 3,
    timeout: float | None = None,
    read_only: bool = False,
    propagation: Propagation = Propagation.ALLOWED,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]: ...
def transactional(
    function: Callable[..., Any] | None = None,
    /,
    *,
    datastore: Datastore | None = None,
    retries: int = 3,
    timeout: float | None = None,
    read_only: bool = False,
    propagation: Propagation = Propagation.ALLOWED,
) -> Any:
    """Run an async function in a transaction; for functions of modules that have no datastore at hand.

    As ``Datastore.transactional``. The datastore is the one given, else that of the current transaction,
    else the only one that is open in this process when the function is called.

    >>> @transactional(retries=5)
    ... async def finish(ds, key):
    ...     task = await ds.get(key)
    ...     task["done"] = True
    ...     await ds.put(task)
    """

    check_options(retries, timeout, propagation)

    def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        return decorated(
            wrapped,
            find_datastore if datastore is None else lambda: datastore,
            retries=retries,
            timeout=timeout,
            read_only=read_only,
            propagation=propagation,
        )

    return decorate if function is None else decorate(function)
