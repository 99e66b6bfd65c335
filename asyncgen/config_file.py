"""From a YAML file and overrides to a ``Config``, or to an error that names file, line and key.

Relative paths are resolved here: those in a file against the file's directory, those in overrides against the
current one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asyncgen.config import Config
from asyncgen.errors import ConfigError
from asyncgen.resources import BUNDLED_MODEL
from asyncgen.yaml_file import Key, parse_value, read_mapping

__all__ = ["load_config"]

_SAYS_WHAT_IT_FOUND = frozenset(
    {"extra_forbidden", "value_error", "missing", "union_tag_invalid", "union_tag_not_found"}
)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in ``path`` (YAML or JSON; None: defaults), changed by ``overrides`` (``generation.top_k=50``).

    Raises ConfigError; its message has one line for everything that is wrong, each naming file and line, or the
    override, the key, what was found and what is allowed.
    """
    values: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    base = _current_folder()
    if path is not None:
        file = Path(path)
        values, lines = read_mapping(file)
        origins = {key: f"{file}:{line}" for key, line in lines.items()}
        base = file.absolute().parent
    values.setdefault("output_path", "stories.jsonl")
    _make_absolute(values, base)
    for override in overrides:
        _apply(override, values, origins)
    try:
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, values, origins, path or "configuration"))) from None


def _apply(override: str, values: dict[str, Any], origins: dict[Key, str]) -> None:
    """Puts one ``a.b=c`` into ``values``."""
    override = _as_utf8(override)
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        raise ConfigError(f"{where}: expected key=value, as in generation.temperature=0.7")
    layer = {key[-1]: parse_value(text, where)}
    nested: dict[str, Any] = layer
    for name in reversed(key[:-1]):
        nested = {name: nested}
    _make_absolute(nested, _current_folder())
    section = values
    for name in key[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{where}: {name!r} is not a section, it has no keys of its own")
    section.update(layer)
    origins[key] = where


def _as_utf8(argument: str) -> str:
    """An argument as its bytes say in UTF-8, whatever the locale: Python keeps what it cannot decode as surrogates."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise ConfigError(f"--set {argument.encode(errors='replace').decode()}: the argument is not UTF-8") from None


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder does not exist any more", hint="cd to one that does") from None


def _make_absolute(values: dict[str, Any], base: Path) -> None:
    """Resolves relative paths; a template is one if it cannot be a text, a model name if such a directory is there."""
    _resolve_paths(values, base, Config)
    template = values.get("template")
    if isinstance(template, str) and "\n" not in template and "{" not in template:
        values["template"] = str(base / Path(template).expanduser())
    model = values.get("model_name")
    if isinstance(model, str) and model != BUNDLED_MODEL and (model.startswith((".", "/")) or (base / model).is_dir()):
        values["model_name"] = str(base / model)


def _resolve_paths(values: Any, base: Path, *models: type[BaseModel]) -> None:
    """Resolves, at every level, the fields that are paths, and the files of ``file.py:function``."""
    if isinstance(values, list):
        for each in values:
            _resolve_paths(each, base, *models)
    for name, value in values.items() if isinstance(values, dict) else ():
        for field in [model.model_fields[name] for model in models if name in model.model_fields][:1]:
            place, _, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
            if not isinstance(value, str):
                _resolve_paths(value, base, *_models(field.annotation))
            elif Path in (field.annotation, *get_args(field.annotation)):
                values[name] = str(base / Path(value).expanduser())
            elif name == "function" and place.endswith(".py"):
                values[name] = f"{base / Path(place).expanduser()}:{function}"


def _problems(
    error: ValidationError, values: dict[str, Any], origins: dict[Key, str], default_origin: str | Path
) -> list[str]:
    """One line for each key with which something is wrong."""
    messages: dict[Key, list[str]] = {}
    found: dict[Key, str] = {}
    for details in error.errors():
        key = _key_in_file(details["loc"], values)
        messages.setdefault(key, []).append(_message(details, key, values))
        if details["type"] not in _SAYS_WHAT_IT_FOUND and not isinstance(details["input"], dict | list):
            found[key] = f", found {json.dumps(details['input'], ensure_ascii=False)}"
    lines = []
    for key, texts in messages.items():
        if any(other[: len(key)] == key for other in messages if other != key):
            continue  # what is wrong inside explains it
        origin = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), default_origin)
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
        lines.append(": ".join(part for part in (str(origin), name, " or ".join(texts)) if part) + found.get(key, ""))
    return lines


def _message(details: ErrorDetails, key: Key, values: dict[str, Any]) -> str:
    if details["type"] == "extra_forbidden":
        return f"unknown key{_did_you_mean(key, values)}"
    if details["type"].startswith("union_tag"):
        return _unknown_kind(details)
    message = details["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _unknown_kind(details: ErrorDetails) -> str:
    allowed = details.get("ctx", {}).get("expected_tags", "'template', 'jsonl'")
    section = details["input"]
    if not isinstance(section, dict):
        return f"found {json.dumps(section, ensure_ascii=False)}, expected a section with a kind: {allowed}"
    return f"found kind {section['kind']!r}, allowed: {allowed}" if "kind" in section else f"needs a kind: {allowed}"


def _key_in_file(loc: tuple[int | str, ...], values: Any) -> Key:
    """Pydantic's location without the names of union members, which do not stand in the file."""
    key: list[int | str] = []
    for part in loc:
        if isinstance(values, dict):
            if part not in values and values.get("kind", "auto") == part:
                continue
            values = values.get(str(part))
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            break
        key.append(part)
    return tuple(key)


def _did_you_mean(key: Key, values: dict[str, Any]) -> str:
    """A suggestion among the keys of the same section, else the same key in another section."""
    name = str(key[-1])
    section = _section(key[:-1], values)
    allowed = [] if section is None else list(section.model_fields)
    elsewhere = {field: dotted for dotted, field in _all_keys()}
    if name in elsewhere:
        return f" here; did you mean {elsewhere[name]!r}?"
    if close := difflib.get_close_matches(name, allowed, n=1):
        return f"; did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(name, list(elsewhere), n=1, cutoff=0.75):
        return f"; did you mean {elsewhere[close[0]]!r}?"
    return f"; allowed here: {', '.join(allowed)}"


def _section(key: Key, values: Any) -> type[BaseModel] | None:
    """The model that describes the section at ``key``."""
    model: type[BaseModel] | None = Config
    for part in key:
        values = values[part]
        if isinstance(part, str):
            candidates = list(_models(model.model_fields[part].annotation)) if model else []
        kind = values.get("kind", "auto") if isinstance(values, dict) else None
        fitting = [m for m in candidates if "kind" not in m.model_fields or _kind_of(m) == kind]
        model = fitting[0] if fitting else None
    return model


def _all_keys() -> Iterator[tuple[str, str]]:
    """Every key there is, as (dotted name, last part)."""
    for name, field in Config.model_fields.items():
        yield name, name
        for model in _models(field.annotation):
            for inner in model.model_fields:
                yield f"{name}.{inner}", inner


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from _models(argument)


def _kind_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])
