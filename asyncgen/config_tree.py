"""The configuration's models as a tree: which sections a field may hold, which model describes a section that is
written down, and every key there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from asyncgen.config import Config

__all__ = ["KnownKey", "all_keys", "is_a_list", "keys_called", "kind_of", "model_for", "models_in"]


class KnownKey(NamedTuple):
    """A key of the configuration."""

    dotted: str
    """Where it stands: ``validation.functions[].name``."""
    name: str
    kind: str | None
    """The kind of section that has it, where sections of several kinds may stand in that place."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type may hold, itself or as items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from models_in(argument)


def is_a_list(annotation: Any) -> bool:
    """Whether a field of this type holds a list of what ``models_in`` finds."""
    return get_origin(annotation) is tuple or any(is_a_list(argument) for argument in get_args(annotation))


def kind_of(model: type[BaseModel]) -> str | None:
    """What ``kind:`` says of this section; None for a section that has no kinds."""
    field = model.model_fields.get("kind")
    return None if field is None else str(get_args(field.annotation)[0])


def model_for(annotation: Any, section: Any) -> type[BaseModel] | None:
    """The model that describes ``section``, by its kind where there are several."""
    models = list(models_in(annotation))
    if len(models) < 2:
        return models[0] if models else None
    if isinstance(section, dict) and "kind" in section:
        return next((model for model in models if kind_of(model) == str(section["kind"])), None)
    return next((model for model in models if not model.model_fields["kind"].is_required()), None)


def keys_called(name: str) -> list[str]:
    """Where keys of this name that can be set by themselves stand: ``seed``, ``generation.temperature``."""
    found = (known.dotted for known in all_keys() if known.name == name and "[]" not in known.dotted)
    return list(dict.fromkeys(found))


def all_keys(model: type[BaseModel] = Config, prefix: str = "", kind: str | None = None) -> Iterator[KnownKey]:
    """Every key there is, outer ones first."""
    for name in model.model_fields:
        yield KnownKey(prefix + name, name, kind)
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        items = "[]" if is_a_list(field.annotation) else ""
        for each in inner:
            yield from all_keys(each, f"{prefix}{name}{items}.", kind_of(each) if len(inner) > 1 else None)
