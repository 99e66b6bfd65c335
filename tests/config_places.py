"""Every place of the configuration where keys stand, found by walking the models, so that new ones are covered too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from asyncgen.config import Config

REQUIRED = {"path": "prompts.jsonl", "function": "module:function", "base_url": "http://localhost:8000/v1"}
"""Values for keys that have no default."""


class Place(NamedTuple):
    """A section of the configuration, and how to reach it."""

    key: tuple[str | int, ...]
    model: type[BaseModel]
    kind: str | None

    @property
    def dotted(self) -> str:
        """``sources[0].`` in front of a key of this section; empty at the top."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.key).lstrip(".")
        return f"{text}." if text else ""

    def section(self) -> dict[str, Any]:
        """The section's shortest valid content."""
        kind = {} if self.kind is None else {"kind": self.kind}
        required = [name for name, field in self.model.model_fields.items() if field.is_required() and name != "kind"]
        return kind | {name: REQUIRED[name] for name in required}

    def config(self, section: dict[str, Any]) -> dict[str, Any]:
        """A whole configuration with ``section`` in this place."""
        value: Any = section
        for part in reversed(self.key):
            value = [value] if isinstance(part, int) else {part: value}
        assert isinstance(value, dict)
        return value

    def __str__(self) -> str:
        return f"{self.dotted or '(top)'}{'' if self.kind is None else f' of kind {self.kind}'}"


def _places(model: type[BaseModel], key: tuple[str | int, ...], kind: str | None) -> Iterator[Place]:
    yield Place(key, model, kind)
    for name, field in model.model_fields.items():
        for inner, index in _sections(field.annotation):
            kinds = inner.model_fields.get("kind")
            yield from _places(inner, (*key, name, *index), get_args(kinds.annotation)[0] if kinds else None)


def _sections(annotation: Any, index: tuple[int, ...] = ()) -> Iterator[tuple[type[BaseModel], tuple[int, ...]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, index
    elif get_origin(annotation) is tuple:
        yield from _sections(get_args(annotation)[0], (*index, 0))
    elif get_origin(annotation) in (Union, UnionType) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from _sections(argument, index)


PLACES = tuple(_places(Config, (), None))


def write_yaml(folder: Path, config: dict[str, Any]) -> Path:
    """``config`` as a YAML file with one key a line."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, default_flow_style=False), encoding="utf-8")
    return path


def line_of(path: Path, *key: str | int) -> int:
    """The line, from 1, on which the key stands, as PyYAML's own parser sees it."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    mark = None
    for part in key:
        if isinstance(node, yaml.MappingNode):
            name, node = next(pair for pair in node.value if pair[0].value == part)
            mark = name.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
    assert mark is not None
    return int(mark.line) + 1
