"""The example web service, over real HTTP and under concurrent load."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from examples.service.app import create_app


@contextmanager
def served(url: str) -> Iterator[str]:
    """The service on a free port, in a thread of its own; the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app({"DATASTORE_URL": url}), log_level="warning", lifespan="on", timeout_keep_alive=600
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive(), "the service did not start"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/service.db"


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with served(url) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def put(client: httpx.Client, path: str, properties: dict[str, Any], **headers: str) -> httpx.Response:
    return client.put(f"/entities/{path}", json={"properties": properties}, headers=headers)


def test_entities_are_written_read_and_deleted(client: httpx.Client) -> None:
    born = {"$datetime": "1815-12-10T00:00:00Z"}
    written = put(client, "Person:ada", {"name": "Ada", "born": born, "height": 1.6, "tags": ["math", None]})
    assert written.status_code == 200
    read = client.get("/entities/Person:ada")
    assert read.json()["properties"] == {"name": "Ada", "born": born, "height": 1.6, "tags": ["math", None]}
    assert read.headers["etag"] == written.headers["etag"] == f'"{read.json()["version"]}"'
    added = client.post("/kinds/Note", json={"properties": {"text": "G"}})
    assert added.status_code == 201
    assert client.get(added.headers["location"]).json() == added.json()
    assert client.delete("/entities/Person:ada").status_code == 204
    assert client.get("/entities/Person:ada").status_code == 404


def test_writes_can_ask_for_a_version(client: httpx.Client) -> None:
    first = put(client, "Doc:1", {"text": "a"}, **{"If-None-Match": "*"})
    assert first.status_code == 201
    again = put(client, "Doc:1", {"text": "b"}, **{"If-None-Match": "*"})
    assert (again.status_code, again.json()["error"]) == (409, "EntityExistsError")
    assert put(client, "Doc:1", {"text": "c"}, **{"If-Match": first.headers["etag"]}).status_code == 200
    stale = put(client, "Doc:1", {"text": "d"}, **{"If-Match": first.headers["etag"]})
    assert (stale.status_code, stale.json()["error"]) == (409, "ConflictError")
    assert client.delete("/entities/Doc:1", headers={"If-Match": first.headers["etag"]}).status_code == 409
    assert client.get("/entities/Doc:1").json()["properties"] == {"text": "c"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/entities/Nobody:1", None, 404, "HTTPException"),
        ("GET", "/nowhere", None, 404, "HTTPException"),
        ("GET", "/entities/Person", None, 400, "BadArgumentError"),
        ("GET", "/entities/Person:ada//x", None, 400, "BadKeyError"),
        ("PUT", "/entities/Person:ada", b"{", 400, "BadValueError"),
        ("PUT", "/entities/Person:ada", b"[]", 400, "BadValueError"),
        ("PUT", "/entities/Person:ada", b"{}", 400, "BadArgumentError"),
        ("PUT", "/entities/Person:ada", b'{"properties": {"n": 9223372036854775808}}', 400, "IntegerOverflowError"),
        ("PUT", "/entities/Person:ada", b'{"properties": {"__n__": 1}}', 400, "BadRequestError"),
        ("GET", "/kinds/Person?size=0", None, 400, "BadArgumentError"),
        ("GET", "/kinds/Person?size=x", None, 400, "BadArgumentError"),
        ("GET", "/kinds/Person?cursor=AAAA", None, 400, "BadCursorError"),
        ("GET", "/kinds/Person?filter=age", None, 400, "BadArgumentError"),
        ("GET", "/kinds/Person?filter=age+~:1", None, 400, "BadFilterError"),
        ("POST", "/transfers", b'{"from": "x", "to": "x", "amount": 1}', 400, "BadArgumentError"),
        ("POST", "/transfers", b'{"from": "x", "to": "y", "amount": 1}', 404, "EntityNotFoundError"),
    ],
)
def test_what_is_wrong_has_a_status_and_a_reason(
    shared: httpx.Client, method: str, path: str, body: bytes | None, status: int, error: str
) -> None:
    answer = shared.request(method, path, content=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["message"]


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with served("memory://") as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_queries_filter_sort_and_page(client: httpx.Client) -> None:
    for number in range(25):
        put(client, f"Item:{number + 1}", {"price": number, "tags": ["even" if number % 2 == 0 else "odd", "all"]})
    asked = {"filter": ["tags:odd", "price >=:5"], "order": "-price", "size": "4"}
    found: list[int] = []
    cursor: str | None = None
    pages = 0
    while cursor is not None or pages == 0:
        answer = client.get("/kinds/Item", params={**asked, **({"cursor": cursor} if cursor else {})}).json()
        found += [entity["properties"]["price"] for entity in answer["entities"]]
        cursor = answer["next"]
        pages += 1
    assert found == [23, 21, 19, 17, 15, 13, 11, 9, 7, 5]
    assert pages == 3
    assert client.get("/kinds/Item/count", params={"sum": "price"}).json() == {"count": 25, "sum": 300}
    first = client.get("/kinds/Item", params={"size": "2"}).json()["next"]
    other = client.get("/kinds/Item", params={"cursor": first, "order": "price"})
    assert (other.status_code, other.json()["error"]) == (400, "BadCursorError")


def test_a_transfer_happens_once_or_not_at_all(client: httpx.Client) -> None:
    put(client, "Account:ada", {"balance": 100})
    put(client, "Account:bob", {"balance": 0})
    order = {"from": "ada", "to": "bob", "amount": 60, "id": "order-1"}
    assert client.post("/transfers", json=order).status_code == 201
    assert client.post("/transfers", json=order).status_code == 201  # the same one
    refused = client.post("/transfers", json={"from": "ada", "to": "bob", "amount": 60})
    assert (refused.status_code, refused.json()["error"]) == (409, "RefusedError")
    assert client.post("/transfers", json={"from": "ada", "to": "eve", "amount": 1}).status_code == 404
    balances = [client.get(f"/entities/Account:{name}").json()["properties"]["balance"] for name in ("ada", "bob")]
    assert balances == [40, 60]
    made = client.get("/kinds/Transfer", params={"ancestor": "/Account:ada"}).json()["entities"]
    assert [entity["key"] for entity in made] == ["/Account:ada/Transfer:order-1"]


def test_money_is_neither_made_nor_lost_under_load(url: str) -> None:
    names = [f"account-{number}" for number in range(6)]
    clients, transfers = 16, 15

    async def load(address: str) -> list[int]:
        statuses: list[int] = []
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            for name in names:
                await client.put(f"/entities/Account:{name}", json={"properties": {"balance": 100}})

            async def customer(number: int) -> None:
                chance = random.Random(number)
                for _ in range(transfers):
                    source, target = chance.sample(names, 2)
                    order = {"from": source, "to": target, "amount": chance.randint(1, 60)}
                    statuses.append((await client.post("/transfers", json=order)).status_code)

            async def auditor() -> None:
                # Every answer is of one moment, in the middle of all that moving.
                while len(statuses) < clients * transfers:
                    audit = (await client.get("/kinds/Account/count", params={"sum": "balance"})).json()
                    assert audit == {"count": len(names), "sum": 100 * len(names)}

            async with asyncio.TaskGroup() as group:
                group.create_task(auditor())
                for number in range(clients):
                    group.create_task(customer(number))
        return statuses

    with served(url) as address:
        statuses = asyncio.run(load(address))
        with httpx.Client(base_url=address, timeout=60) as client:
            accounts = client.get("/kinds/Account").json()["entities"]
            records = client.get("/kinds/Transfer/count", params={"sum": "amount"}).json()
    assert set(statuses) <= {201, 409}
    assert statuses.count(201) == records["count"] > 0
    balances = [account["properties"]["balance"] for account in accounts]
    assert sum(balances) == 100 * len(names)
    assert min(balances) >= 0


def test_a_closed_store_is_unavailable_not_an_error_of_the_client(shared: httpx.Client) -> None:
    from aiodatastore import errors
    from examples.service.app import STATUS

    def status(error: type[Exception]) -> int:
        return next(STATUS[base] for base in error.__mro__ if base in STATUS)

    assert {status(error) for error in (errors.StoreBusyError, errors.StoreFullError, errors.StoreClosedError)} == {503}
    assert status(errors.TransactionFailedError) == 503
    assert status(errors.BadCursorError) == status(errors.NeedIndexError) == 400
    assert status(errors.FormatVersionError) == 500
