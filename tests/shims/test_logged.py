"""``Logged``: what a line says, and what it never says."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from aiodatastore import BadArgumentError, Datastore, Entity, Key, Or, PropertyFilter, UnavailableError
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.delayed import Delayed
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.logged import Logged
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

ADA, BOB = Key("Person", "ada"), Key("Person", "bob")
NAME = "tests.logged"


class TestSuite(ShimSuite):
    """With every line written, to nowhere."""

    stores_rows = True

    @staticmethod
    def wrap(adapter: Any) -> Logged:
        logger = logging.Logger("nowhere", logging.DEBUG)
        logger.addHandler(logging.NullHandler())
        return Logged(adapter, logger=logger, values=True)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines without their times."""
    found = [f"{record.levelname} {re.sub(r' .[0-9.]+ ms.', '', record.getMessage())}" for record in caplog.records]
    caplog.clear()
    return found


async def some_calls(shim: Logged) -> None:
    async with Datastore(shim) as ds:
        await ds.put([Entity(ADA, {"born": 1815, "secret": "hush"}), Entity(BOB, {"born": 1850})])
        await ds.get([ADA, BOB, Key("Person", 5)])
        await ds.query("Person", ancestor=ADA).filter("born", "<", 1900).order("-born").fetch(1)
        await ds.query("Person").filter(Or(PropertyFilter("born", "in", [1815]), PropertyFilter("b", ">", 2))).count()
        await ds.delete(BOB)
        await ds.allocate_ids(Key("Person"), 5)


async def test_a_line_for_each_operation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME))
    assert lines(caplog) == [
        "INFO open: done",
        "INFO commit Person: put Person=2, committed [/Person:ada, /Person:bob]",
        "INFO lookup Person: 2 of 3 found, at hand [/Person:ada, /Person:bob, /Person:5]",
        "INFO query Person under /Person:ada born<… order -born limit 1: 1 results",
        "INFO aggregate Person (born in … or b>…): 1 values",
        "INFO commit Person: delete Person=1, committed [/Person:bob]",
        "INFO allocate_ids Person: 5 ids [/Person]",
    ]


async def test_values_are_logged_only_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "1815" not in text
    assert "hush" not in text
    assert "1900" not in text
    caplog.clear()
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME, values=True))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "'secret': 'hush'" in text
    assert "born<1900" in text
    assert "(born in (1815,) or b>2)" in text


async def test_keys_are_redacted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME, redact=True))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "ada" not in text
    assert "[/Person:…, /Person:…]" in text
    caplog.clear()
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME, redact=lambda key: f"<{key.kind[0]}>"))
    assert lines(caplog)[1].endswith("[<P>, <P>]")


async def test_of_many_keys_the_first(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    async with Datastore(Logged(adapter_from_url("memory://"), logger=NAME)) as ds:
        await ds.get([Key("Person", number) for number in range(1, 100)])
    assert lines(caplog)[-1] == (
        "INFO lookup Person: 0 of 99 found, at hand [/Person:1, /Person:2, /Person:3, /Person:4, /Person:5, …]"
    )


async def test_errors_and_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    child = Failing(adapter_from_url("memory://"), 0.0)
    shim = Logged(child, logger=NAME, level="INFO")
    async with Datastore(shim) as ds:
        await ds.put(Entity(ADA))
        caplog.clear()
        with pytest.raises(Exception, match="exists already"):
            await ds.insert(Entity(ADA))
        assert "put Person=1, 1 checks, conflict (1 keys, 0 spans)" in caplog.records[0].getMessage()
        caplog.clear()
        child._rate = 1.0
        with pytest.raises(UnavailableError):
            await ds.put(Entity(ADA, {"name": "hush"}))
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith("commit Person: UnavailableError (")
        assert "on purpose" not in record.getMessage()
        assert (record.operation, record.kind) == ("commit", "Person")  # type: ignore[attr-defined]
        assert 0 < record.seconds < 10  # type: ignore[attr-defined]
        child._rate = 0.0


async def test_a_level_that_is_off_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    await some_calls(Logged(adapter_from_url("memory://"), logger=NAME, level=logging.DEBUG))
    assert not caplog.records
    await some_calls(Logged(Delayed(adapter_from_url("memory://"), 0.0), logger=NAME, level="warning"))
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert any("2 of 3 found" in record.getMessage() for record in caplog.records)


def test_capabilities_and_settings() -> None:
    shim = Logged(adapter_from_url("memory://"), logger=logging.getLogger("x"), redact=str, level=logging.ERROR)
    assert Capability.INLINE_READS in shim.capabilities
    assert shim.settings == {"logger": "x", "level": "ERROR", "redact": "str", "values": False}
    assert Logged.url_settings["level"]("debug") == logging.DEBUG
    with pytest.raises(ValueError, match="expected DEBUG"):
        Logged.url_settings["level"]("loud")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "LOUD"}, "level: expected a level"),
        ({"level": 1.5}, "level"),
        ({"logger": 5}, "logger: expected a name"),
        ({"redact": "yes"}, "redact: expected True"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        Logged(adapter_from_url("memory://"), **arguments)
