"""Payloads: an entity's properties as bytes. Index rows never depend on them.

A payload begins with one byte that names the format, so that a store can hold several and read older ones. Which
serializers a store was written with stands in its header; a store that is opened with another one keeps what it has,
and writes with the new one from then on.

>>> from aiodatastore import Datastore
>>> Datastore("memory://?serializer=msgpack+zstd").adapter.serializer
Stack('msgpack+zstd')

In a URL: ``serializer=msgpack`` (the default), ``json``, ``pretty``, ``compact``, each also with ``+zstd``. As objects:
those, :class:`Stack` with any steps, :class:`FunctionSerializer`, or anything with ``dumps`` and ``loads``.
"""

from __future__ import annotations

from aiodatastore.serializers.base import Serializer, Step
from aiodatastore.serializers.documents import JSONSerializer
from aiodatastore.serializers.functions import FunctionSerializer, MappingWrapper
from aiodatastore.serializers.packed import MsgpackSerializer
from aiodatastore.serializers.stack import Stack, serializer_named
from aiodatastore.serializers.steps import FernetStep, ZstdStep

__all__ = [
    "FernetStep",
    "FunctionSerializer",
    "JSONSerializer",
    "MappingWrapper",
    "MsgpackSerializer",
    "Serializer",
    "Stack",
    "Step",
    "ZstdStep",
    "serializer_named",
]
