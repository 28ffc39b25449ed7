"""Steps on top of a serializer, and serializers by their names."""

from __future__ import annotations

from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.serializers.base import STEP, Reading, Step, check_name, framed
from aiodatastore.serializers.documents import JSONSerializer
from aiodatastore.serializers.packed import MsgpackSerializer
from aiodatastore.serializers.steps import ZstdStep

__all__ = ["Stack", "serializer_named"]


class Stack(Reading):
    """A serializer and steps that are applied to its payloads, in this order.

    >>> from aiodatastore import Entity, Key
    >>> stack = Stack(MsgpackSerializer(), ZstdStep(level=9))
    >>> payload = stack.dumps(Entity(Key("Note", 1), {"text": "to be or not to be, " * 50}))
    >>> stack.name, len(payload) < 80, stack.loads(Key("Note", 1), payload, 7)["text"][:5]
    ('msgpack+zstd', True, 'to be')

    It reads what was written without the steps, and by any other serializer of this package. Index rows are not touched
    by it: indexed values stand there in clear, whatever is done to payloads.

    :raises BadArgumentError: if something is no serializer or step, a step is given twice, or the serializer is a stack
    """

    def __init__(self, serializer: Reading, *steps: Step) -> None:
        if isinstance(serializer, Stack) or not isinstance(serializer, Reading):
            raise BadArgumentError(
                f"expected MsgpackSerializer, JSONSerializer or FunctionSerializer, got {serializer!r:.80}"
            )
        for step in steps:
            if not all(callable(getattr(step, name, None)) for name in ("wrap", "unwrap")):
                raise BadArgumentError(f"expected steps with name, wrap and unwrap, got {step!r:.80}")
            check_name(getattr(step, "name", None))
        self._serializer = serializer
        self._steps = steps
        self.steps = {step.name: step for step in steps}
        if len(self.steps) < len(steps):
            raise BadArgumentError(f"each step is given once, got {', '.join(step.name for step in steps)}")
        self.functions = serializer.functions
        self.name = "+".join([serializer.name, *[step.name for step in steps]])

    def dumps(self, entity: Entity) -> bytes:
        """The payload of an entity, after all steps."""
        payload = self._serializer.dumps(entity)
        for step in self._steps:
            wrapped = step.wrap(payload)
            if wrapped is not None:
                payload = framed(STEP, step.name, wrapped)
        return payload


def serializer_named(text: str, *, indented: bool = False) -> Reading:
    """``msgpack``, ``json`` (on one line, ``indented``: not), ``compact``, ``pretty``; each also with ``+zstd``.

    >>> serializer_named("json+zstd")
    Stack('json+zstd')

    :raises BadArgumentError: for any other name: what needs a key, or a function, is given as an object
    """
    base, *steps = text.replace(" ", "+").split("+")  # as a + in a URL's parameters is a blank
    serializer: Reading | None = None
    if base == "msgpack":
        serializer = MsgpackSerializer()
    elif base in ("json", "pretty", "compact"):
        serializer = JSONSerializer(pretty=base == "pretty" or (base == "json" and indented))
    if serializer is None or steps not in ([], ["zstd"]):
        raise BadArgumentError(
            f"expected msgpack, json, compact or pretty, also with +zstd, or an object; got {text!r:.100}"
        )
    return Stack(serializer, ZstdStep()) if steps else serializer
