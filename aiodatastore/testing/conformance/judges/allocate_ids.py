"""``allocate_ids.jsonl``: allocation of ids, each case in a project of its own.

What was allocated is never given back, not even when entities are deleted. Therefore every case counts as an
empty store by having a project of its own, unique to the run.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import decode_argument, decode_entity, decode_key
from aiodatastore.testing.conformance.session import Case, MismatchError, Record, Session, namespaces_in, outcome_of

__all__ = ["judge"]

Sequences = dict[tuple[str, str], list[range]]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""
    run = secrets.token_hex(4)
    async with session.store() as ds:
        for number, record in enumerate(records):
            project = f"conformance-{run}-{number}"
            with session.case(record) as case:
                # All quirks of this file say "any scheme": what no scheme may do is checked all the same.
                if "quirk" in record:
                    case.quirk()
                await _Allocation(case, ds, project).run()
            await _clean_up(ds, record, project)


async def _clean_up(ds: Datastore, record: Record, project: str) -> None:
    for namespace in namespaces_in(record):
        keys = [key async for key in ds.query(None, namespace=namespace, project=project).keys_only()]
        if keys:
            await ds.delete(keys)


class _Allocation:
    """One case: what was handed out so far, by namespace and kind."""

    def __init__(self, case: Case, ds: Datastore, project: str) -> None:
        self.case = case
        self.ds = ds
        self.project = project
        self.allocated: Sequences = {}
        self.automatic: set[Key] = set()
        self.explicit: set[Key] = set()

    async def run(self) -> None:
        for step in self.case.record["steps"]:
            await getattr(self, f"_{step['op']}")(step, {**step["expect"], "any_error": step.get("any_error")})

    async def _allocate(self, step: Record, expected: Record) -> None:
        model = decode_argument(step["model"], project=self.project)
        options = {name: step[name] for name in ("size", "max") if name in step}
        got = await outcome_of(lambda: self.ds.allocate_ids(model, **options))
        if "error" in expected:
            self.case.check_error(expected, got)
            return
        if isinstance(got, Exception):
            raise got
        first, last = got
        count, check = last - first + 1, self.case.check
        check((count <= 0) == expected["empty"], "empty", expected=expected["empty"], got=got)
        if "size" in step:
            check(count == expected["count"], "count", expected=expected["count"], got=got)
        if "end" in expected:
            check(last == expected["end"], "end", expected=expected["end"], got=got)
        if count > 0:
            check(first >= 1, "first id", expected="a positive one", got=got)
            self._check_disjoint(_sequence_of(model), range(first, last + 1))

    def _check_disjoint(self, sequence: tuple[str, str], ids: range) -> None:
        earlier = self.allocated.setdefault(sequence, [])
        for other in earlier:
            disjoint = ids[-1] < other[0] or other[-1] < ids[0]
            self.case.check(disjoint, "disjoint from earlier ranges", expected=other, got=ids)
        for key in self.automatic:
            again = (key.namespace, key.kind) == sequence and key.id in ids
            self.case.check(not again, "an id that was given automatically", got=key)
        earlier.append(ids)

    async def _put(self, step: Record, expected: Record) -> None:
        entity = decode_entity(step["entity"], project=self.project)
        automatic = not entity.key.is_complete
        got: Any = await outcome_of(lambda: self.ds.put(entity))
        if "error" in expected and "quirk" not in self.case.record:
            self.case.check_error(expected, got)
            return
        if isinstance(got, Exception):
            raise got
        if automatic:
            self._check_automatic(got)
        else:
            self.explicit.add(got)

    def _check_automatic(self, key: Key) -> None:
        check = self.case.check
        check(type(key.id) is int and key.id > 0, "automatic id", got=key)
        ranges = self.allocated.get((key.namespace, key.kind), [])
        check(not any(key.id in ids for ids in ranges), "outside_allocated", expected=ranges, got=key)
        check(key not in self.automatic | self.explicit, "an id that is free", got=key)
        self.automatic.add(key)

    async def _delete(self, step: Record, expected: Record) -> None:
        if expected.get("error"):
            raise MismatchError("a delete that fails is not in the format")
        # The key stays in its set: no scheme may hand its id out again.
        await self.ds.delete(decode_key(step["key"], project=self.project))


def _sequence_of(model: Any) -> tuple[str, str]:
    """Namespace and kind of a model in any form."""
    if isinstance(model, list | tuple):
        (model,) = model
    key = Key.from_urlsafe(model) if isinstance(model, str) else model if isinstance(model, Key) else model.key
    return key.namespace, key.kind
