"""The suite on each of the key shims."""

from __future__ import annotations

from aiodatastore.adapters.base import Adapter
from aiodatastore.key import Key
from aiodatastore.shims.directories import Directories
from aiodatastore.shims.key_transform import KeyTransform
from aiodatastore.shims.lowercase_keys import LowercaseKeys
from aiodatastore.shims.namespaced import Namespaced
from aiodatastore.shims.nested_path import NestedPath
from aiodatastore.shims.symlinks import Symlinks
from tests.shims.stacks import ShimSuite


def boxed(key: Key) -> Key:
    """Everything below one root, in another project."""
    return Key._make(f"~{key.project}", key.namespace, (("Box", 1), *key.pairs))


def unboxed(key: Key) -> Key:
    return Key._make(key.project[1:], key.namespace, key.pairs[1:])


def boxes(adapter: Adapter) -> Adapter:
    """Another shape, the same order."""
    return KeyTransform(
        adapter,
        encode=boxed,
        decode=unboxed,
        partitions=(lambda home: (f"~{home[0]}", home[1]), lambda home: (home[0][1:], home[1])),
        keeps_order=True,
    )


class TestKeyTransform(ShimSuite):
    wrap = staticmethod(boxes)


def turned(text: str) -> str:
    return text[::-1]


def backwards(key: Key) -> Key:
    """Names and kinds spelled backwards: another order."""
    pairs = tuple((turned(kind), turned(ident) if isinstance(ident, str) else ident) for kind, ident in key.pairs)
    return Key._make(key.project, key.namespace, pairs)


class TestKeyTransformWithoutOrder(ShimSuite):
    wrap = staticmethod(
        lambda adapter: KeyTransform(adapter, encode=backwards, decode=backwards, kinds=(turned, turned))
    )


class TestNamespaced(ShimSuite):
    wrap = staticmethod(lambda adapter: Namespaced(adapter, "acme.com"))


class TestNestedPath(ShimSuite):
    wrap = staticmethod(lambda adapter: NestedPath(adapter, depth=2, length=1))


class TestLowercaseKeys(ShimSuite):
    wrap = staticmethod(LowercaseKeys)


class TestSymlinks(ShimSuite):
    wrap = staticmethod(Symlinks)


class TestDirectories(ShimSuite):
    wrap = staticmethod(Directories)
