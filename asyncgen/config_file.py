"""From a YAML file and overrides to a ``Config``, or to an error that names file, line and key.

Relative paths are resolved here: those in a file against the file's directory, those in overrides against the
current one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from asyncgen.config import Config, OpenAIBackend, may_be_empty, without_secrets
from asyncgen.config_problems import explain, hint_for
from asyncgen.config_tree import model_for, models_in
from asyncgen.errors import ConfigError
from asyncgen.paths import expanded, is_dir
from asyncgen.resources import BUNDLED_MODEL
from asyncgen.yaml_file import MAX_DEPTH, Key, check_key, dotted, parse_value, read_mapping, shortened

__all__ = ["Flag", "Origins", "config_of", "load_config", "read_config", "with_absolute_model", "without_secret"]

_PART = re.compile(r"([^.\[\]]+)|\[(\d{1,9})\]")
_DOTTED = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d{1,9}\])*")


@dataclass(frozen=True, slots=True)
class Flag:
    """An override that was not written as ``key=value``."""

    key: str
    """``generation.batch_size``."""
    value: object
    typed: str
    """What a person wrote, for messages: ``--batch-size many``."""


class Origins:
    """Where the settings of a configuration were made: ``config.yaml:7``, ``--set seed=3``, ``--num-stories 5``."""

    def __init__(self, origins: Mapping[Key, str]) -> None:
        self._origins = {dotted(key): origin for key, origin in origins.items()}

    def of(self, key: str) -> str:
        """Where ``key`` (``sources[0].path``) was set, else the section that it is in; empty for what was not."""
        while key:
            if key in self._origins:
                return self._origins[key]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return ""

    def exactly(self, key: str) -> str:
        """Where ``key`` itself was set; empty for what was not, also if its section was."""
        return self._origins.get(key, "")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in ``path`` (YAML or JSON; None: defaults), changed by ``overrides`` (``generation.top_k=50``).

    Raises ConfigError; its message has one line for everything that is wrong, each naming file and line, or the
    override, the key, what was found and what is allowed.
    """
    if isinstance(overrides, str):
        raise TypeError(f"overrides: found the text {overrides!r}, expected a list of such texts")
    return read_config(path, overrides)[0]


def read_config(path: str | Path | None = None, overrides: Sequence[str | Flag] = ()) -> tuple[Config, Origins]:
    """What ``load_config`` returns, and where each setting was made."""
    values: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    base = _current_folder()
    if path is not None:
        file = Path(path)
        values, lines = read_mapping(file)
        origins = {key: f"{file}:{line}" for key, line in lines.items()}
        base = file.absolute().parent
    base = Path(_as_utf8(str(base), "the folder ", "name is"))
    values.setdefault("output_path", "stories.jsonl")
    _make_absolute(values, base)
    flags = [override if isinstance(override, Flag) else _parsed(override) for override in overrides]
    for flag in flags:
        _apply(flag, values, origins)
    if isinstance(name := values.get("model_name"), str) and not _is_served(values.get("backend")):
        typed = any(flag.key == "model_name" for flag in flags)
        values["model_name"] = _absolute_model(name, _current_folder() if typed else base)
    _fill_empty_sections(values, Config)
    return _validated(values, origins, path or "configuration"), Origins(origins)


def config_of(settings: Mapping[str, Any], origin: str) -> Config:
    """The configuration with these settings, which a program gives; touches no file. Raises ConfigError, whose message
    names ``origin``.
    """
    return _validated({**settings}, {}, origin)


def with_absolute_model(config: Config) -> Config:
    """The same; where ``model_name`` is a folder, relative to the current one, its whole path. A name that a server
    knows is none.
    """
    if isinstance(config.backend, OpenAIBackend):
        return config
    return config.model_copy(update={"model_name": _absolute_model(config.model_name, _current_folder())})


def _validated(values: dict[str, Any], origins: dict[Key, str], otherwise: str | Path) -> Config:
    """``values`` as a configuration; a setting without an origin is from ``otherwise``."""
    try:
        return Config.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        hint = hint_for(error, values, origins)
        raise ConfigError(explain(error, values, origins, otherwise), hint=hint) from None


def _parsed(override: str) -> Flag:
    """One ``a.b=c``, taken apart."""
    override = _as_utf8(override, "--set ")
    where = shortened(f"--set {without_secret(override)}")
    key, equals, text = override.partition("=")
    if not equals or not _DOTTED.fullmatch(key.strip()):
        raise ConfigError(
            f"{where}: expected key=value, as in generation.temperature=0.7 or sources[0].weight=3 (the first is [0])"
        )
    parts = _key_of(key.strip())
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{where}: a key of {len(parts)} parts, there are at most {MAX_DEPTH}")
    for part in parts:
        check_key(str(part), where)
    return Flag(key.strip(), parse_value(text, where), where)


def without_secret(assignment: str) -> str:
    """``key=value``, as it is given to ``--set``, for people to see: what is secret in it is hidden."""
    key, equals, text = assignment.partition("=")
    name = key.rpartition(".")[2].strip()
    try:
        value = parse_value(text, "") if equals else None
    except ConfigError:
        return assignment
    shown = without_secrets({name: value})
    if shown == {name: value} or not isinstance(shown, dict):
        return assignment
    return f"{key}={shown[name] if isinstance(shown[name], str) else json.dumps(shown[name])}"


def _key_of(text: str) -> Key:
    """``sources[0].path``, taken apart."""
    return tuple(int(number) if number else name for name, number in _PART.findall(text))


def _apply(flag: Flag, values: dict[str, Any], origins: dict[Key, str]) -> None:
    """Puts one override into ``values``."""
    where = shortened(_as_utf8(flag.typed))
    key = _key_of(flag.key)
    value = _resolved(key, _as_utf8(flag.value) if isinstance(flag.value, str) else flag.value)
    section: Any = values
    for n, part in enumerate(key[:-1], 1):
        _check_holds(section, key[:n], where)
        if isinstance(section, dict) and section.get(part) is None:
            section[part] = [] if isinstance(key[n], int) else {}
        section = section[part]
    _check_holds(section, key, where)
    section[key[-1]] = value
    for n in range(1, len(key)):
        origins.setdefault(key[:n], where)
    for stale in [old for old in origins if old[: len(key)] == key]:
        del origins[stale]  # what stood there in the file is replaced
    origins[key] = where


def _resolved(key: Key, value: object) -> object:
    """``value``, with the paths in it made absolute, as those of ``key`` are."""
    nested: Any = value
    for part in reversed(key):
        nested = {part: nested} if isinstance(part, str) else [nested]
    _make_absolute(nested, _current_folder())
    for part in key:
        nested = nested[part] if isinstance(part, str) else nested[0]
    return cast("object", nested)


def _check_holds(section: object, key: Key, where: str) -> None:
    """Raises ConfigError unless the last part of ``key`` can stand in ``section``: a name, or the number of an item."""
    outer, part = dotted(key[:-1]), key[-1]
    if isinstance(part, str):
        if not isinstance(section, dict):
            raise ConfigError(f"{where}: {outer!r} is not a section, it has no keys of its own")
    elif not isinstance(section, list):
        raise ConfigError(f"{where}: {outer!r} is not a list, it has no items of its own")
    elif part >= len(section):
        items = "no item" if not section else f"the items [0] to [{len(section) - 1}]"
        raise ConfigError(f"{where}: there is no {dotted(key)!r}, {outer!r} has {items}")


def _as_utf8(argument: str, option: str = "", what: str = "argument is") -> str:
    """An argument as its bytes say in UTF-8, whatever the locale: Python keeps what it cannot decode as surrogates."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        shown = argument.encode(errors="replace").decode()
        raise ConfigError(f"{option}{shown}: the {what} not UTF-8") from None


def _fill_empty_sections(values: dict[str, Any], model: type[BaseModel]) -> None:
    """YAML reads a section of which all lines are commented out as null: it is an empty one."""
    for name in set(may_be_empty(model)) & values.keys():
        if values[name] is None:
            values[name] = {}
        inner = model_for(model.model_fields[name].annotation, values[name])
        if inner is not None and isinstance(values[name], dict):
            _fill_empty_sections(values[name], inner)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder does not exist any more", hint="cd to one that does") from None


def _make_absolute(values: dict[str, Any], base: Path) -> None:
    """Resolves relative paths; a template is one if it cannot be a text."""
    _resolve_paths(values, base, Config)
    template = values.get("template")
    if isinstance(template, str) and template.strip() and "\n" not in template and "{" not in template:
        values["template"] = str(base / expanded(template))


def _is_served(backend: object) -> bool:
    """Whether this section says that the model is a server's, which alone knows what its name means."""
    return isinstance(backend, dict) and backend.get("kind") == "openai"


def _absolute_model(name: str, base: Path) -> str:
    """A model's name is a path if such a directory is there, or it looks like one."""
    if name not in ("", BUNDLED_MODEL) and (name.startswith((".", "/")) or is_dir(base / name)):
        return str(base / name)
    return name


def _resolve_paths(values: Any, base: Path, *models: type[BaseModel]) -> None:
    """Resolves, at every level, the fields that are paths, and the files of ``file.py:function``."""
    if isinstance(values, list):
        for each in values:
            _resolve_paths(each, base, *models)
    for name, value in values.items() if isinstance(values, dict) else ():
        for field in [model.model_fields[name] for model in models if name in model.model_fields][:1]:
            place, _, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
            if not isinstance(value, str):
                _resolve_paths(value, base, *models_in(field.annotation))
            elif Path in (field.annotation, *get_args(field.annotation)):
                values[name] = str(base / expanded(value))
            elif name == "function" and place.endswith(".py"):
                values[name] = f"{base / expanded(place)}:{function}"
