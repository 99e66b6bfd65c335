"""Inputs that are nearly right: bytes and JSON values with a few things changed, and text that is anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = ["any_bytes", "any_values", "json_texts", "mutated", "mutated_value"]

Draw = Callable[[st.SearchStrategy[Any]], Any]

_TOKENS = (
    *(bytes([each]) for each in b"{}[]\\,: \t\n\0\xff"),
    *(
        b'"',
        b'""',
        b"\n\n",
        b"\r\n",
        b"\x00" * 40,
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\\ud800",
        b"\x1b[2J",
    ),
    *(
        b"null",
        b"NaN",
        b"1e999",
        b"-1",
        b"0",
        b"9" * 30,
        b"true",
        b"{}\n",
        b"[]",
        b"[" * 3000,
        b'{"a":' * 1500,
        b"1" * 5000,
    ),
)
"""What parsers stumble over."""


def any_bytes() -> st.SearchStrategy[bytes]:
    """Anything, and what is made of pieces that matter to parsers."""
    pieces = st.lists(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=6)), max_size=12).map(b"".join)
    return st.one_of(st.binary(max_size=200), pieces)


@st.composite
def mutated(draw: Draw, base: bytes, most: int = 3) -> bytes:
    """``base`` after a few small accidents."""
    data = base
    for _ in range(draw(st.integers(1, most))):
        data = _accident(draw, data)
    return data


def _accident(draw: Draw, data: bytes) -> bytes:
    start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
    lines = data.splitlines(keepends=True)
    match draw(st.sampled_from(("cut", "flip", "insert", "delete", "double", "zeros", "lines", "line"))):
        case "cut":
            return data[:end]
        case "flip" if start < len(data):
            return data[:start] + bytes([data[start] ^ (1 << draw(st.integers(0, 7)))]) + data[start + 1 :]
        case "insert":
            inserted: bytes = draw(any_bytes())
            return data[:start] + inserted + data[start:]
        case "delete":
            return data[:start] + data[end:]
        case "double":
            return data[:end] + data[start:]
        case "zeros":
            return data[:start] + bytes(end - start) + data[end:]
        case "lines" if lines:
            return b"".join(draw(st.permutations(lines)))
        case "line" if lines:
            at = draw(st.integers(0, len(lines) - 1))
            return b"".join([*lines[:at], *[lines[at]] * draw(st.sampled_from((0, 2))), *lines[at + 1 :]])
    return data


def any_values() -> st.SearchStrategy[Any]:
    """Values of JSON and YAML: small ones, and those at the edges."""
    numbers = st.one_of(
        st.integers(-3, 40),
        st.sampled_from((2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, -1)),
        st.floats(),
        st.sampled_from((0.0, -0.0, 0.5, 1.0, 1e-320, 1e308)),
    )
    texts = st.one_of(
        st.text(max_size=12),
        st.sampled_from(("", " ", "\n", "auto", "null", "x" * 300, "~", "~nobody-here/x", "..", "/", "a:b", "x.py:f")),
        st.sampled_from(("\x00", "\ud800", "\x85", "\u2028", "{word1}", "{", "[", "(a+)+$", "\\", "en_US", "(hidden)")),
    )
    scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
    )


@st.composite
def mutated_value(draw: Draw, base: Any, values: st.SearchStrategy[Any] | None = None, most: int = 3) -> Any:
    """``base``, a value of JSON, with a few of the values inside it replaced, removed, added or renamed."""
    value = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, most))):
        value = _changed(draw, value, any_values() if values is None else values)
    return value


def _changed(draw: Draw, value: Any, values: st.SearchStrategy[Any]) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(values)
    if isinstance(value, list):
        at = draw(st.integers(0, len(value) - 1))
        match draw(st.sampled_from(("inside", "inside", "inside", "remove", "double", "add"))):
            case "remove":
                return value[:at] + value[at + 1 :]
            case "double":
                return [*value[:at], value[at], *value[at:]]
            case "add":
                return [*value, draw(values)]
        return [*value[:at], _changed(draw, value[at], values), *value[at + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    match draw(st.sampled_from(("inside", "inside", "inside", "inside", "remove", "rename", "add"))):
        case "remove":
            return {name: each for name, each in value.items() if name != key}
        case "rename":
            return {
                f"{key}{draw(st.sampled_from('sx_ '))}" if name == key else name: each for name, each in value.items()
            }
        case "add":
            return value | {draw(st.text(max_size=6)): draw(values)}
    return value | {key: _changed(draw, value[key], values)}


@st.composite
def json_texts(draw: Draw, values: st.SearchStrategy[Any]) -> bytes:
    """``values`` as JSON, written in one of many ways, and sometimes with an accident."""
    value = draw(values)
    indent = draw(st.sampled_from((None, None, 1)))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent)
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        data = data.replace(b"\n", b"\r\n")
    if draw(st.integers(0, 3)) == 0:
        data = b"\xef\xbb\xbf" + data
    return draw(mutated(data, 2)) if draw(st.integers(0, 2)) == 0 else data
