"""Reads one YAML or JSON file of settings into plain values, remembering the line of every key.

YAML as a configuration needs it: no tags, no anchors, no duplicate keys, no numbers to the base of 60, and so little
of everything that a hostile file costs nothing: an alias bomb of 340 bytes can otherwise cost a gigabyte, and a
megabyte of ``[1, 1, 1 ...`` a quarter of a minute. Knows nothing about asyncgen's settings.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from asyncgen.errors import ConfigError

__all__ = ["MAX_DEPTH", "Key", "check_key", "dotted", "parse_value", "read_mapping", "shortened"]

MAX_BYTES = 250_000
"""PyYAML, which is written in Python, looks at a million characters a second."""
MAX_VALUES = 5_000
"""Keys and values together; PyYAML makes thirty thousand a second."""
MAX_DEPTH = 20
_LONGEST_KEY = 200
_LONGEST_NUMBER = 80
_LONGEST_SHOWN = 120
_LONG_LIST = "a long list belongs into a file of its own"

_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")

Key = tuple[str | int, ...]
"""Where a value stands: ``("generation", "temperature")``."""

_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without dates and 1:30 (they stay text) and with floats such as 1e-3 (text in YAML 1.1). It
    stops at the first thing that a configuration does not need, before it has cost anything.
    """

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self._where = where
        self._values = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML composes it, counted."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML is typed in parts
        here = f"{self._where}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"{here}: anchors and aliases (&, *) are not supported; write the value out")
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(f"{here}: more than {MAX_VALUES} keys and values", hint=_LONG_LIST)
        if self._depth > MAX_DEPTH:
            raise ConfigError(f"{here}: nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":float", ":int", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_mapping(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping in ``path`` (an empty file is an empty mapping) and the line, from 1, of every key and
    list item in it.

    Raises ConfigError, naming file and line, for a file that is missing, too large, not UTF-8 or not such a mapping.
    """
    text = _read_text(path)
    lines: dict[Key, int] = {}
    value = _parse_json(text, str(path)) if path.suffix == ".json" else _parse(text, str(path), lines)
    if value is None:
        return {}, lines
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: found a {_kind(value)}, expected a mapping of settings (key: value)")
    return value, lines


def dotted(key: Key) -> str:
    """A key as it is written in messages: ``sources[0].path``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def shortened(text: str) -> str:
    """``text`` for a message: the beginning of what is long."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def parse_value(text: str, where: str) -> Any:
    """One YAML value, as in ``--set key=value``; ``where`` stands in the error."""
    return _parse(text, where, {})


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: cannot be read: it is not a regular file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes, a configuration has at most {MAX_BYTES}")
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        name = quote(str(path if path.suffix in {".yaml", ".yml"} else path.with_suffix(".yaml")))
        raise ConfigError(f"{path}: no such file", hint=f"write one with: python -m asyncgen init {name}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(text: str, where: str, lines: dict[Key, int]) -> Any:
    if unfit := _UNFIT.search(text):
        at = text.count("\n", 0, unfit.start()) + 1
        raise ConfigError(f"{where}:{at}: the character U+{ord(unfit.group()):04X} has no place in a configuration")
    loader = _Loader(text, where)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, where, lines).value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    except (ValueError, OverflowError) as error:  # what PyYAML's scanner lets through: "\\UFFFFFFFF", %YAML 1.99999...
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


class _Reader:
    """Turns YAML nodes into plain values, refusing what a configuration does not need."""

    def __init__(self, loader: _Loader, where: str, lines: dict[Key, int]) -> None:
        self._loader = loader
        self._where = where
        self._lines = lines

    def value(self, node: yaml.Node, key: Key) -> Any:
        here = f"{self._where}:{node.start_mark.line + 1}"
        if node.tag not in _TAGS:
            raise ConfigError(f"{here}: the tag {shortened(node.tag)!r} is not allowed; only plain values are")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            self._lines |= {(*key, at): item.start_mark.line + 1 for at, item in enumerate(node.value)}
            return [self.value(item, (*key, at)) for at, item in enumerate(node.value)]
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            raise ConfigError(f"{here}: a number of {len(node.value)} characters, at most {_LONGEST_NUMBER} are read")
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError) as error:  # what PyYAML's constructors raise for values they cannot make
            raise ConfigError(f"{here}: not valid YAML: {error}") from None
        check_value(value, here)
        return value

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._where}:{line}: a key must be a plain text")
            name = str(key_node.value)
            check_key(name, f"{self._where}:{line}")
            if name in values:
                first = self._lines[*key, name]
                raise ConfigError(f"{self._where}:{line}: the key {name!r} stands there twice, first on line {first}")
            self._lines[*key, name] = line
            values[name] = self.value(value_node, (*key, name))
        return values


def check_key(name: str, where: str) -> None:
    """Raises ConfigError for a key that is no name but a text, which every message about it would repeat, and for one
    that cannot be written to a file or shown.
    """
    if len(name) > _LONGEST_KEY:
        raise ConfigError(f"{where}: a key of {len(name)} characters, it begins with {name[:40]!a}")
    if unfit := _UNFIT.search(name):
        raise ConfigError(f"{where}: the character U+{ord(unfit.group()):04X} cannot stand in a key")


def check_value(value: object, where: str) -> None:
    """Raises ConfigError for numbers beyond 64 bits and for texts that cannot be written to a file."""
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ConfigError(f"{where}: a number beyond 64 bits")
    if isinstance(value, str) and (unfit := _UNFIT.search(value)):
        raise ConfigError(f"{where}: the character U+{ord(unfit.group()):04X} cannot stand in a text")


def _parse_json(text: str, where: str) -> Any:
    count = 0

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            check_key(name, where)
            if name in values:
                raise ConfigError(f"{where}: the key {name!r} stands there twice")
            values[name] = value
        return values

    def number(text: str) -> int:
        if len(text) > 20:
            raise ConfigError(f"{where}: a number beyond 64 bits")
        return int(text)

    def check(value: object, depth: int = 0) -> None:
        nonlocal count
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(f"{where}: more than {MAX_VALUES} values", hint=_LONG_LIST)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested more than {MAX_DEPTH} levels deep")
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part, depth + 1)
        check_value(value, where)

    try:
        value = json.loads(text, object_pairs_hook=without_duplicates, parse_int=number)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} levels deep") from None
    check(value)
    return value


def _kind(value: object) -> str:
    return {list: "list", str: "text", bool: "boolean", int: "number", float: "number"}.get(type(value), "value")
