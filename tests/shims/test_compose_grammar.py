"""The grammar of composed URLs."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore.composing import Leaf, Node, Setting, is_composed, parse, store_urls
from aiodatastore.composing.grammar import MAX_DEPTH
from aiodatastore.errors import BadArgumentError


def shape(node: Leaf | Node) -> object:
    """What was read, without the places."""
    if isinstance(node, Leaf):
        return node.url
    held = [shape(child) for child in node.children]
    named = dict(zip(node.patterns, held, strict=True)) if node.patterns else held
    return (node.name, {setting.name: setting.value for setting in node.settings}, named)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logged:memory://", ("logged", {}, ["memory://"])),
        ("logged{}:memory://", ("logged", {}, ["memory://"])),
        ("a{x=1&y=two}:b:memory://?a=b&c", ("a", {"x": "1", "y": "two"}, [("b", {}, ["memory://?a=b&c"])])),
        (
            "cached{staleness_s=5&cache={redis://localhost/1?prefix=c}}:postgresql://localhost/shop",
            ("cached", {"staleness_s": "5", "cache": "redis://localhost/1?prefix=c"}, ["postgresql://localhost/shop"]),
        ),
        ("a{cache={b{c={d://}}:{e:f:// | g://}}}:h://", ("a", {"cache": "b{c={d://}}:{e:f:// | g://}"}, ["h://"])),
        ("s:{postgresql://a/0|b:memory://}", ("s", {}, ["postgresql://a/0", ("b", {}, ["memory://"])])),
        (" s : {memory://}", None),
        (" s:{ \n memory://\t|\n sqlite:///a b.db \n} ", ("s", {}, ["memory://", "sqlite:///a b.db"])),
        ("m:{Person=sqlite:///p.db | *=memory://?a=b}", ("m", {}, {"Person": "sqlite:///p.db", "*": "memory://?a=b"})),
        ("m:{/A%3Dx:1 = b{c=d}:memory:// | %20=null://}", ("m", {}, {"/A=x:1": ("b", {"c": "d"}, ["memory://"]), " ": "null://"})),
        ("a{x=%7B%7C%7D%26+%20&y=}:memory://", ("a", {"x": "{|}&+ ", "y": ""}, ["memory://"])),
    ],
)  # fmt: skip
def test_what_is_read(text: str, expected: object) -> None:
    if expected is None:
        with pytest.raises(BadArgumentError, match="character 2"):
            parse(text)
    else:
        assert shape(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a{x=1:memory://", "character 16: a: expected & and another setting"),
        ("a{x}:memory://", "character 3: a: expected a setting as name=value"),
        ("a{=1}:memory://", "character 3"),
        ("a{x=1&}:memory://", "character 7: a: expected a setting"),
        ("a{x=1&x=2}:memory://", "character 7: a: x is given twice"),
        ("a{x={memory://:memory://", "character 5: a: the brace of x is not closed"),
        ("a{x=1}memory://", "character 7: a: expected a colon"),
        ("a{x=%ff}:memory://", "character 5: percent signs"),
        ("a:{memory:// | }", "character 16: expected a store's URL"),
        ("a:{}", "character 4: expected a store's URL"),
        ("a:{memory://", r"character 13: a: expected \| and another, or } at the end"),
        ("a:memory://}", "character 12: expected the end, found '}'; write { | } in URLs as %7B %7C %7D"),
        ("a:memory://|b", "character 12: expected the end"),
        ("a:{file:///a file:///b}", r"character 14: two stores with nothing between them: expected \|"),
        ("a:{file:///a b:file:///b}", "character 14: two stores"),
        ("a:{memory://x{1}}", "character 14"),
        ("a:{x=memory:// | memory://}", "character 18: a: expected pattern=URL"),
        ("a:{memory:// | x=memory://}", "either all that it holds have a pattern, or none"),
        ("A:memory://", "character 1: expected a store's URL"),
        ("a:", "character 3: expected a store's URL"),
        ("a:b.db", "character 3"),
        ("", "character 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        parse(text)


def test_nesting_is_bounded() -> None:
    parse("a:" * (MAX_DEPTH - 1) + "memory://")
    with pytest.raises(BadArgumentError, match="more than 32 deep"):
        parse("a:" * MAX_DEPTH + "memory://")
    with pytest.raises(BadArgumentError, match="more than 32 deep"):
        parse("a:{" * 10_000)


@pytest.mark.parametrize(
    ("text", "composed"),
    [
        ("memory://", False),
        ("sqlite:///a{b}.db", False),
        ("redis://localhost?prefix={tag}", False),
        ("sqlite:tasks.db", False),
        ("logged:memory://", True),
        ("logged{}:memory://", True),
        ("  logged:memory://", True),
        ("redis+cluster://a,b", False),
        ("me:hunter2@db.example", False),
    ],
)
def test_a_url_that_stands_alone_is_left_as_it_is(text: str, composed: bool) -> None:
    assert is_composed(text) is composed
    if not composed:
        assert store_urls(text) == [text]


def complaint(text: str) -> str:
    try:
        return repr(parse(text))
    except BadArgumentError as exc:
        return str(exc)


def test_a_message_shows_nothing_of_the_text() -> None:
    secret = "hunter2"
    text = f"a{{key={secret}}}:{{postgresql://me:{secret}@db/x | redis://me:{secret}@db/1}}"
    for end in range(len(text) + 1):
        for damaged in (text[:end], text[:end] + "{" + text[end:], text[:end] + "|" + text[end:]):
            assert secret not in complaint(damaged)


# ------------------------------------------------------------------------------------------- round trip

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
schemes = st.from_regex(r"[a-z][a-z0-9+.-]{0,8}", fullmatch=True)
urls = st.builds(lambda scheme, rest: f"{scheme}://{quote(rest)}", schemes, texts)
nodes = st.recursive(
    st.builds(Leaf, urls, st.just("")),
    lambda inner: st.one_of(
        st.builds(
            lambda name, settings, children: Node(name, "", settings, tuple(children), None, True),
            names,
            st.dictionaries(names, texts, max_size=2).map(
                lambda found: tuple(Setting(name, value, "") for name, value in found.items())
            ),
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(
            lambda name, mounts: Node(name, "", (), tuple(mounts.values()), tuple(mounts), True),
            names,
            st.dictionaries(texts, inner, min_size=1, max_size=3),
        ),
    ),
    max_leaves=8,
)


def written(node: Leaf | Node) -> str:
    if isinstance(node, Leaf):
        return node.url
    settings = "&".join(f"{each.name}={quote(str(each.value))}" for each in node.settings)
    patterns = [quote(pattern, safe="") + "=" for pattern in node.patterns] if node.patterns else [""] * 9
    held = " | ".join(pattern + written(child) for pattern, child in zip(patterns, node.children, strict=False))
    return f"{node.name}{'{' + settings + '}' if settings else ''}:{{{held}}}"


@given(nodes)
def test_what_is_written_is_what_is_read(node: Leaf | Node) -> None:
    assert shape(parse(written(node))) == shape(node)
