"""From composed URLs and TOML files to adapters."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import pytest

from aiodatastore import BadArgumentError, Capability, Datastore, Entity, Key, UnsupportedError
from aiodatastore import shims as shims_package
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.registry import UnknownOptionError, adapter_from_url, parse_float, parse_int
from aiodatastore.composing import Description, describe, known_names, names, store_urls
from aiodatastore.shims.base import Shim


class Plain(Shim):
    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"seconds": parse_float, "count": parse_int}

    def __init__(self, child: Adapter, *, seconds: float = 1.0, count: int | None = None) -> None:
        super().__init__(child)
        self.given = {"seconds": seconds, "count": count}

    @property
    def settings(self) -> Mapping[str, object]:
        return self.given


def read_key(text: str) -> bytes:
    if len(text) < 4:
        raise ValueError(f"expected a key of 4 characters or more, got {text}")
    return text.encode()


class Keyed(Shim):
    """Needs a secret, and loses a capability."""

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"key": read_key}

    def __init__(self, child: Adapter, *, key: bytes) -> None:
        super().__init__(child)
        self.key = key

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.INLINE_READS}


class Before(Shim):
    """A shim over one store with another beside it."""

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"cache": adapter_from_url}

    def __init__(self, child: Adapter, *, cache: Adapter | None = None) -> None:
        super().__init__(child)
        self.cache = cache

    @property
    def settings(self) -> Mapping[str, object]:
        return {"cache": self.cache}


class Several(Shim):
    url_form = "children"
    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"by": str}

    def __init__(self, children: Sequence[Adapter], *, by: str = "group") -> None:
        if len(children) < 2:
            raise BadArgumentError("expected two stores or more")
        if by == "never":
            raise UnsupportedError("not by never")
        super().__init__(children[0])
        self.several = list(children)
        self.by = by

    @property
    def settings(self) -> Mapping[str, object]:
        return {"by": self.by, "sizes": (1, 2), "none": []}

    @property
    def children(self) -> Sequence[Adapter]:
        return self.several

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset.intersection(*(child.capabilities for child in self.several))


class Mounts(Shim):
    url_form = "mounts"

    def __init__(self, mounts: Mapping[str, Adapter]) -> None:
        super().__init__(next(iter(mounts.values())))
        self.mounts = mounts
        self.names = list(mounts)

    @property
    def children(self) -> Sequence[Adapter]:
        return list(self.mounts.values())


class CodeOnly(Shim):
    def __init__(self, child: Adapter, function: Callable[[int], int]) -> None:
        super().__init__(child)


THEIRS = {
    "plain": "Plain",
    "keyed": "Keyed",
    "before": "Before",
    "several": "Several",
    "mounts": "Mounts",
    "code": "CodeOnly",
}


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shims of this file, as another distribution would register them."""
    entries = [
        importlib.metadata.EntryPoint(name, f"{__name__}:{attribute}", names.GROUP)
        for name, attribute in THEIRS.items()
    ]
    found = importlib.metadata.EntryPoints(entries)

    def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
        return found.select(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def made(url: str, **options: Any) -> Any:
    return adapter_from_url(url, **options)


def made_of(shim: Shim) -> EngineAdapter:
    assert isinstance(shim.child, EngineAdapter)
    return shim.child


# ------------------------------------------------------------------------------------------------- URLs


def test_a_shim_with_settings() -> None:
    adapter = made("plain{seconds=2.5&count=%33}:memory://")
    assert (type(adapter), adapter.given) == (Plain, {"seconds": 2.5, "count": 3})
    assert adapter.child.url == "memory://"


def test_what_another_distribution_registers_is_known() -> None:
    assert set(THEIRS) | set(names.BUILT_IN) == set(known_names())


def test_collections_and_nesting() -> None:
    adapter = made("several{by=kind}:{plain:memory:// | several:{memory://|null://} | sqlite:///a.db}")
    assert [type(child) for child in adapter.children][:2] == [Plain, Several]
    assert adapter.children[1].children[1].url == "null://"
    adapter = made("mounts:{Person=plain:memory:// | *=null://}")
    assert {name: child.url for name, child in adapter.mounts.items()} == {"Person": "memory://", "*": "null://"}


def test_a_store_in_a_setting() -> None:
    assert made("before:memory://").cache is None
    adapter = made("before{cache={plain:null://?sort_budget=7}}:memory://", sort_budget=5)
    cache: Any = adapter.cache
    assert type(cache) is Plain
    assert made_of(cache).sort_budget == 7
    assert adapter.child.sort_budget == 5


def test_options_go_to_the_stores_that_know_them() -> None:
    adapter = made("several:{memory:// | plain:sqlite:///a.db}", require_indexes=True, cache_mb=3)
    memory, shim = adapter.children
    assert memory.require_indexes
    assert shim.child.require_indexes
    assert shim.child.store._cache_kib == 3 * 1024
    with pytest.raises(UnknownOptionError, match="no store of this composition knows an option 'cash_mb'"):
        made("several:{memory:// | sqlite:///a.db}", cash_mb=3)
    with pytest.raises(BadArgumentError, match=r"character 10: cache_mb is given in the URL and as an argument"):
        made("several:{sqlite:///a.db?cache_mb=1 | memory://}", cache_mb=3)
    ds = Datastore("plain:memory://", require_indexes=True, sort_budget=9)
    assert isinstance(ds.adapter, Plain)
    assert isinstance(ds.adapter.child, EngineAdapter)
    assert (ds.adapter.child.require_indexes, ds.adapter.child.sort_budget) == (True, 9)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense:memory://", "character 1: there is no shim 'nonsense'; known are .*before.*cached.*several"),
        ("plain:what:memory://", "character 7: there is no shim 'what'"),
        ("plain{second=1}:memory://", "unknown setting 'second' at character 7; it knows count, seconds"),
        ("code{x=1}:memory://", r"code \(character 1\): unknown setting 'x' .*; it has none"),
        ("code:memory://", r"code \(character 1\) can only be made in code: it needs function"),
        ("plain{seconds=soon}:memory://", "seconds at character 7: expected a number, got 'soon'"),
        ("keyed:memory://", r"keyed \(character 1\): the setting key is missing"),
        ("plain:{memory:// | memory://}", "holds one store, as in plain:memory://; got 2 stores"),
        ("plain:{a=memory://}", "holds one store, .* got patterns"),
        ("several:memory://", r"holds several stores, as in several:\{URL \| URL\}; got one without braces"),
        ("several:{memory://}", r"several \(character 1\): expected two stores or more"),
        ("mounts:{memory://}", r"holds stores with patterns, as in mounts:\{Person=URL \| \*=URL\}"),
        ("mounts:{a=memory:// | a=memory://}", "the pattern 'a' is given twice"),
        ("plain:{several:{memory:// | memory://x}}", "character 29: memory:// keeps its data"),
        ("plain:memory://?cache_mb=1", "character 7: unknown option 'cache_mb' for memory://"),
        ("before{cache={plain{x=1}:memory://}}:memory://", r"cache at character 8: plain \(character 15\): unknown"),
        ("key_transform:memory://", "KeyTransform"),
        ("null:memory://", "write null://"),
        ("interface_mapping:memory://", r"InterfaceMapping\(obj\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_shim_and_the_place(url: str, message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        made(url)


def test_other_refusals_keep_their_class_and_tell_the_place() -> None:
    with pytest.raises(UnsupportedError, match="not by never") as caught:
        made("plain:several{by=never}:{memory:// | memory://}")
    assert caught.value.__notes__ == ["raised by several (character 7)"]


def test_a_shim_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", names.BUILT_IN), "absent", ("aiodatastore.shims.absent", "X", "child"))
    with pytest.raises(BadArgumentError, match=r"absent \(character 1\) can't be used: No module named"):
        made("absent:memory://")


def test_secrets_do_not_show() -> None:
    secret = "hunter2"
    for url in (
        f"keyed{{key={secret}&x=1}}:memory://",
        f"keyed{{kex={secret}}}:memory://",
        f"plain{{seconds={secret[:0]}1&count=x}}:postgresql://me:{secret}@db/x",
        f"plain{{x=1}}:postgresql://me:{secret}@db/x",
        f"plain:postgresql://me:{secret}@db/x?nonsense=1",
        f"before{{cache={{redis://me:{secret}@db/x}}}}:memory://",
        f"before{{cache={{what://me:{secret}@db}}}}:memory://",
        f"several:{{postgresql://me:{secret}@db/x}}",
        f"several:{{postgresql://me:{secret}@db/x?nonsense=1 | memory://}}",
    ):
        with pytest.raises(BadArgumentError) as caught:
            made(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in str(error), url
            error = error.__cause__
    with pytest.raises(BadArgumentError, match=r"keyed \(character 1\), key at character 7: read_key can't read it"):
        made("keyed{key=hun}:memory://")


async def test_a_composition_works_as_a_store(anyio_backend: str) -> None:
    async with Datastore("plain:keyed{key=abcd}:memory://") as ds:
        await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
        assert await ds.query("Person").filter("born", "<", 1900).count() == 1


# ------------------------------------------------------------------------------------------------- TOML


FILE = """
[store]
use = "several"
by = "${KIND}"

[[store.children]]
use = "before"
cache = { url = "null://", sort_budget = 7 }
child = "memory://?sort_budget=3"

[[store.children]]
url = "plain{seconds=2}:null://"
sort_budget = 4

[tests.fast]
use = "mounts"
mounts = { Person = "memory://", "*" = { use = "plain", seconds = 2, count = 3, child = { url = "null://" } } }

[wrong]
use = "plain"
second = 1
child = "memory://"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KIND", "kind")
    tmp_path.joinpath("store.toml").write_text(FILE, encoding="utf-8")
    return f"toml:///{tmp_path}/store.toml"


def test_a_file(file: str) -> None:
    adapter = made(file, require_indexes=True)
    first, second = adapter.children
    assert (first.child.sort_budget, first.cache.sort_budget, second.child.sort_budget) == (3, 7, 4)
    assert (first.child.require_indexes, second.child.require_indexes) == (True, True)
    assert second.given["seconds"] == 2.0
    assert store_urls(file) == ["memory://?sort_budget=3", "null://"]


def test_another_table_of_a_file(file: str) -> None:
    adapter = made(file + "?store=tests.fast")
    assert adapter.mounts["*"].given == {"seconds": 2.0, "count": 3}
    assert type(made(f"plain:{file}?store=tests.fast").child) is Mounts


def test_what_is_wrong_in_a_file_is_told(file: str, tmp_path: Path) -> None:
    for url, message in (
        (file + "?store=wrong", r"plain \(wrong\): unknown setting 'second' at wrong.second; it knows count, seconds"),
        (file + "?store=none", r"has no table \[none\]; it has store, tests, wrong"),
        (file + "?nonsense=1", "unknown option 'nonsense' for toml://; known are .*store"),
        (file.replace("store.toml", "none.toml"), "none.toml: No such file"),
        ("toml://host/x", "toml:///relative/path"),
    ):
        with pytest.raises(BadArgumentError, match=message):
            made(url)
    with pytest.raises(UnknownOptionError, match="knows an option 'cash_mb'"):
        made(file, cash_mb=1)
    for text, message in (
        ("[store", "store.toml is not TOML: Expected"),
        ("store = 5", "store: expected a table or a URL, got int"),
        ("[store]\nx = 1", "store: expected either url, of a store, or use"),
        ("[store]\nuse = 'plain'\nurl = 'memory://'", "store: expected either url"),
        ("[store]\nuse = 5", "store.use: expected text, got int"),
        ("[store]\nuse = 'plain'", "store: expected one of child, children and mounts, got none"),
        ("[store]\nuse = 'plain'\nchildren = []", "store.children: expected a list of tables or URLs"),
        ("[store]\nuse = 'plain'\nmounts = []", "store.mounts: expected a table from patterns"),
        ("[store]\nuse = 'plain'\nchildren = ['memory://', 5]", r"children\[1\]: expected a table or a URL, got int"),
        ("[store]\nuse = 'plain'\nchild = '${NO_SUCH}'", "store.child: the environment variable NO_SUCH is not set"),
        ("[store]\nuse = 'plain'\nchild = '$HOME'", r"child: write \$\{NAME\} for an environment variable, \$\$ for"),
        ("[store]\nuse = 'plain'\nseconds = 1979-05-27\nchild = 'memory://'", "store.seconds: expected text, a number"),
        ("[store]\nuse = 'plain'\nseconds = {url='memory://'}\nchild = 'null://'", "text or a number, got a store"),
        ("[store]\nurl = 'memory://'\nsort_budget = []", "store.sort_budget: expected text, a number"),
        ("[store]\nurl = 'memory://'\ncash_mb = 1", "store: unknown option 'cash_mb' for memory://"),
    ):  # fmt: skip
        tmp_path.joinpath("store.toml").write_text(text, encoding="utf-8")
        with pytest.raises(BadArgumentError, match=message):
            made(file)


def test_dollars_and_variables(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    path = tmp_path / "store.toml"
    path.write_text("[store]\nuse = 'keyed'\nkey = 'a$$b${PASSWORD}'\nchild = 'memory://'", encoding="utf-8")
    assert made(file).key == b"a$bhunter2"
    path.write_text("[store]\nuse = 'keyed'\nkez = '${PASSWORD}'\nchild = 'memory://'", encoding="utf-8")
    with pytest.raises(BadArgumentError) as caught:
        made(file)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_names_itself_ends(file: str, tmp_path: Path) -> None:
    tmp_path.joinpath("store.toml").write_text(f"[store]\nuse = 'plain'\nchild = '{file}'", encoding="utf-8")
    with pytest.raises(BadArgumentError, match="nested more than 32 deep"):
        made(file)


# --------------------------------------------------------------------------------------------- describing


def test_the_tree_and_who_lost_what() -> None:
    url = "before{cache={null://}}:several:{plain{seconds=2}:memory:// | keyed{key=abcd}:null://}"
    found = describe(adapter_from_url(url))
    assert str(found).partition("\n\n")[0] == "\n".join(
        [
            "before",
            "├── several  by=group  sizes=1,2",
            "│   ├── plain  seconds=2.0",
            "│   │   └── memory://",
            "│   └── keyed",
            "│       └── null://",
            "└── cache = null://",
        ]
    )
    assert found.lost[Capability.TRIO] == ()
    assert found.lost[Capability.INLINE_READS] == ("keyed",)
    assert found.lost[Capability.TTL] == ("memory://",)
    assert found.lost[Capability.DURABLE] == ("memory://", "null://")
    assert found.to_dict()["capabilities"]["inline_reads"] == {"has": False, "lost_by": ["keyed"]}
    assert found.to_dict()["tree"]["children"][1] == {
        "name": "null", "label": "cache", "url": "null://", "settings": {}, "children": [],
    }  # fmt: skip


def test_mounted_stores_have_their_patterns_as_labels() -> None:
    found: Description = describe(adapter_from_url("mounts:{Person=memory:// | *=null://}"))
    assert str(found).startswith("mounts\n├── Person = memory://\n└── * = null://\n")
    assert describe(Mounts(MappingProxyType({"a": adapter_from_url("memory://")}))).tree.children[0].label == "a"


# --------------------------------------------------------------------------------------------- the package


def test_names_of_the_package_are_loaded_when_used() -> None:
    code = (
        "import sys; import aiodatastore.shims; from aiodatastore.shims import Shim;"
        "print('aiodatastore.shims.null' in sys.modules); from aiodatastore.shims import Null;"
        "print('aiodatastore.shims.null' in sys.modules, 'aiodatastore.composing' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True", "False"]
    with pytest.raises(AttributeError, match="nonsense"):
        shims_package.nonsense  # noqa: B018
