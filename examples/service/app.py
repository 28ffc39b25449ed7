"""Entities over HTTP, and one transactional endpoint: a complete service in one file.

Run it with ``uvicorn examples.service.app:app``. Settings come from the environment: ``DATASTORE_URL`` (by default
``sqlite:///service.db``) and ``DATASTORE_TIMEOUT`` (seconds that a call may take, by default 5).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiodatastore import (
    BadArgumentError,
    BadValueError,
    BoundQuery,
    ConflictError,
    Cursor,
    Datastore,
    DatastoreError,
    DeadlineExceededError,
    Entity,
    EntityExistsError,
    EntityNotFoundError,
    Key,
    TransactionFailedError,
    UnavailableError,
)
from aiodatastore.errors import CorruptDataError
from aiodatastore.jsonl import dump_value, load_value

__all__ = ["app", "create_app"]

INDEXES = """\
indexes:
- kind: Transfer
  ancestor: yes
  properties:
  - name: amount
    direction: desc
"""
MAX_PAGE = 200


# --------------------------------------------------------------------------------------------- entities


async def read_entity(request: Request) -> Response:
    """``GET /entities/Account:ada``: the entity, its version as ETag."""
    entity = await store(request).get(entity_key(request))
    if entity is None:
        raise HTTPException(404, f"there is no {entity_key(request)}")
    return entity_response(entity)


async def write_entity(request: Request) -> Response:
    """``PUT /entities/Account:ada`` with ``{"properties": {...}}``.

    ``If-Match: "7"`` writes only over version 7, ``If-None-Match: *`` only where nothing is.
    """
    body = await json_body(request)
    properties = body.get("properties")
    if not isinstance(properties, dict):
        raise BadArgumentError('expected {"properties": {...}, "unindexed": [...]}')
    values = {name: load_value(value, name) for name, value in properties.items()}
    entity = Entity(entity_key(request), values, unindexed=body.get("unindexed", ()))
    if request.headers.get("if-none-match") == "*":
        await store(request).insert(entity)
        return entity_response(entity, 201)
    await store(request).put(entity, if_version=expected_version(request))
    return entity_response(entity)


async def delete_entity(request: Request) -> Response:
    """``DELETE /entities/Account:ada``: gone, also if it never was; ``If-Match`` as for PUT."""
    await store(request).delete(entity_key(request), if_version=expected_version(request))
    return Response(status_code=204)


async def add_entity(request: Request) -> Response:
    """``POST /kinds/Note`` with ``{"properties": {...}}``: a new entity with an id of its own."""
    body = await json_body(request)
    properties = body.get("properties")
    if not isinstance(properties, dict):
        raise BadArgumentError('expected {"properties": {...}}')
    entity = Entity(request.path_params["kind"], {name: load_value(value, name) for name, value in properties.items()})
    await store(request).put(entity)
    return entity_response(entity, 201, {"Location": f"/entities{entity.key}"})


# ----------------------------------------------------------------------------------------------- queries


async def find_entities(request: Request) -> Response:
    """``GET /kinds/Account?filter=balance >=:100&order=-balance&size=20&cursor=...``: a page of entities.

    ``filter`` may come several times; its value is JSON, or else text. ``ancestor`` is a key like
    ``/Account:ada``. The answer's ``next`` is the cursor of the next page, null at the end.
    """
    query = store(request).query(request.path_params["kind"])
    parameters = request.query_params
    if "ancestor" in parameters:
        query = query.under(Key.from_string(parameters["ancestor"]))
    for text in parameters.getlist("filter"):
        query = filtered(query, text)
    if "order" in parameters:
        query = query.order(*parameters["order"].split(","))
    cursor = Cursor.from_urlsafe(parameters["cursor"]) if "cursor" in parameters else None
    page = await query.page(page_size(parameters), start=cursor)
    return json_response(
        {
            "entities": [plain(entity) for entity in page.entities],
            "next": page.cursor.to_urlsafe() if page.more else None,
        }
    )


async def count_entities(request: Request) -> Response:
    """``GET /kinds/Account/count?sum=balance``: how many there are, and the sum of a property if asked for."""
    query = store(request).query(request.path_params["kind"])
    name = request.query_params.get("sum")
    if name is None:
        return json_response({"count": await query.count()})
    return json_response(await query.aggregate(count="count", sum=("sum", name)))


def filtered(query: BoundQuery, text: str) -> BoundQuery:
    """With a filter like ``balance >=:100`` or ``owner:Ada``."""
    condition, colon, value = text.partition(":")
    if not colon:
        raise BadArgumentError(f"expected a filter like 'balance >=:100', got {text!r}")
    try:
        return query.filter(condition, load_value(msgspec.json.decode(value)))
    except msgspec.DecodeError:
        return query.filter(condition, value)


def page_size(parameters: Mapping[str, str]) -> int:
    """Of the parameter ``size``: 1 to 200, by default 20."""
    text = parameters.get("size", "20")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PAGE:
        raise BadArgumentError(f"size is a number from 1 to {MAX_PAGE}, not {text!r}")
    return int(text)


# -------------------------------------------------------------------------------------------- transfers


class RefusedError(Exception):
    """A rule of the application says no; the transaction is rolled back."""


async def transfer(request: Request) -> Response:
    """``POST /transfers`` with ``{"from": "ada", "to": "bob", "amount": 5}``: all of it happens, or nothing.

    Conflicts with other transfers are retried; what the transfer did is kept below the account it came from. A
    client that repeats a request it heard nothing of sends ``"id"``: the same id is carried out once.
    """
    body = await json_body(request)
    source, target, amount = body.get("from"), body.get("to"), body.get("amount")
    if type(source) is not str or type(target) is not str or source == target or type(amount) is not int or amount <= 0:
        raise BadArgumentError('expected {"from": name, "to": another name, "amount": a positive int}')
    ds = store(request)
    record = Entity(Key("Account", source, "Transfer", body.get("id")), {"to": target, "amount": amount})

    @ds.transactional(retries=50)
    async def move() -> Entity:
        done = await ds.get(record.key) if record.key.is_complete else None
        if done is not None:
            return done
        payer, payee = await ds.get([Key("Account", source), Key("Account", target)])
        if payer is None or payee is None:
            missing = Key("Account", source if payer is None else target)
            raise EntityNotFoundError(f"there is no {missing}", key=missing)
        if payer["balance"] < amount:
            raise RefusedError(f"{source} has {payer['balance']}, which is less than {amount}")
        payer["balance"] -= amount
        payee["balance"] += amount
        await ds.put([payer, payee, record])
        return record

    return entity_response(await move(), 201)


# ------------------------------------------------------------------------------------ requests, responses


def store(request: Request) -> Datastore:
    """The datastore that the lifespan opened."""
    found: Datastore = request.state.store
    return found


def entity_key(request: Request) -> Key:
    """The key that a path like ``/entities/Account:ada`` names."""
    key = Key.from_string("/" + request.path_params["path"])
    if not key.is_complete:
        raise BadArgumentError(f"{key} names no entity: the last kind needs an id or a name")
    return key


def expected_version(request: Request) -> int | None:
    """The version of the header ``If-Match``, if there is one."""
    text = request.headers.get("if-match")
    if text is None:
        return None
    if not text.strip('"').isdecimal():
        raise BadArgumentError(f'If-Match holds a version like "7", not {text!r}')
    return int(text.strip('"'))


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body."""
    try:
        body = msgspec.json.decode(await request.body())
    except msgspec.DecodeError as exc:
        raise BadValueError(f"the body is no JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadValueError("the body is no JSON object")
    return body


def plain(entity: Entity) -> dict[str, Any]:
    """An entity as JSON has it; ``aiodatastore.jsonl`` keeps every type."""
    properties = {name: dump_value(value) for name, value in entity.items()}
    return {"key": str(entity.key), "version": entity.version, "properties": properties}


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def entity_response(entity: Entity, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(plain(entity), status, {"ETag": f'"{entity.version}"', **(headers or {})})


# ------------------------------------------------------------------------------------------------ errors

STATUS: dict[type[Exception], int] = {
    EntityNotFoundError: 404,
    EntityExistsError: 409,
    ConflictError: 409,
    RefusedError: 409,
    TransactionFailedError: 503,  # too much contention: the client may try again
    DeadlineExceededError: 503,
    UnavailableError: 503,
    CorruptDataError: 500,
    DatastoreError: 400,  # everything else is about what was asked
}
"""The status of each family of errors. A class that is not named here has that of its nearest base."""


async def error_response(request: Request, exc: Exception) -> Response:
    """``{"error": class, "message": ...}``."""
    status = next(STATUS[base] for base in type(exc).__mro__ if base in STATUS)
    headers = {"Retry-After": "1"} if status == 503 else None
    return json_response({"error": type(exc).__name__, "message": str(exc)}, status, headers)


async def http_error_response(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return json_response({"error": "HTTPException", "message": exc.detail}, exc.status_code, exc.headers)


# ---------------------------------------------------------------------------------------------- the app


def create_app(environment: Mapping[str, str] = os.environ) -> Starlette:
    """The service, with settings of an environment. It opens the datastore when it starts, and closes it at the end."""
    url = environment.get("DATASTORE_URL", "sqlite:///service.db")
    timeout = float(environment.get("DATASTORE_TIMEOUT", "5"))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Datastore]]:
        async with Datastore(url, index_yaml=INDEXES, timeout=timeout) as ds:
            yield {"store": ds}

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/entities/{path:path}", read_entity, methods=["GET"]),
            Route("/entities/{path:path}", write_entity, methods=["PUT"]),
            Route("/entities/{path:path}", delete_entity, methods=["DELETE"]),
            Route("/kinds/{kind}", find_entities, methods=["GET"]),
            Route("/kinds/{kind}", add_entity, methods=["POST"]),
            Route("/kinds/{kind}/count", count_entities, methods=["GET"]),
            Route("/transfers", transfer, methods=["POST"]),
        ],
        exception_handlers={
            DatastoreError: error_response,
            RefusedError: error_response,
            HTTPException: http_error_response,
        },
    )


app = create_app()
