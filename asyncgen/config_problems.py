"""What is wrong with a configuration, in a person's words: one line for each key, with file and line (or the override),
the key, what was found and what is allowed; a mistyped key is answered with the key that was meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asyncgen.config import Config
from asyncgen.config_tree import all_keys, model_for, models_in
from asyncgen.yaml_file import Key, dotted

__all__ = ["explain", "hint_for"]

_MOST = 50
"""Keys that are told of."""
_SAYS_WHAT_IT_FOUND = frozenset(
    {"extra_forbidden", "value_error", "missing", "too_short", "too_long", "union_tag_invalid", "union_tag_not_found"}
)
_IN_YAML_TERMS = {
    "model_type": "input should be a section (key: value)",
    "dict_type": "input should be a section (key: value)",
    "tuple_type": "input should be a list",
}


def explain(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[Key, str], otherwise: str | Path
) -> str:
    """One line for each key with which something is wrong, and for the first fifty only: who reads on has mended them.

    ``values`` is what was validated, ``origins`` says where each key was written, ``otherwise`` stands for those that
    were not written anywhere.
    """
    messages: dict[Key, list[str]] = {}
    found: dict[Key, str] = {}
    errors = error.errors(include_url=False)
    meant = set(_mistyped(errors[:_MOST], values))
    for details in errors[:_MOST]:
        key, text = _problem(details, values)
        if details["type"] == "missing" and key in meant:
            continue  # it is there, mistyped, and that is said
        messages.setdefault(key, []).append(text)
        if details["type"] not in _SAYS_WHAT_IT_FOUND:
            found[key] = f", found {_show(details['input'])}"
    lines = [
        ": ".join(filter(None, [_origin(key, origins, otherwise), dotted(key), " or ".join(texts)]))
        + found.get(key, "")
        for key, texts in messages.items()
        if not any(other[: len(key)] == key for other in messages if other != key)  # what is wrong inside explains it
    ]
    more = [f"{otherwise}: and {len(errors) - _MOST} more that are wrong"] if len(errors) > _MOST else []
    return "\n".join(lines + more)


def hint_for(error: ValidationError, values: Mapping[str, Any], origins: Mapping[Key, str]) -> str | None:
    """What to do about a section of which ``--set`` changed the kind, and which holds keys of the old one."""
    for details in error.errors(include_url=False)[:_MOST]:
        if details["type"] != "extra_forbidden":
            continue
        key, _ = _place(details, values)
        section = key[:-1]
        kind, other = origins.get((*section, "kind"), ""), origins.get(key, "")
        if kind.startswith("--set ") and not other.startswith("--set "):
            named = kind.rpartition("=")[2]
            return f"--set '{dotted(section)}={{kind: {named}}}' replaces the whole section"
    return None


def _origin(key: Key, origins: Mapping[Key, str], otherwise: str | Path) -> str:
    """Where the key, or else the section around it, was written."""
    return next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), str(otherwise))


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _problem(details: ErrorDetails, values: Mapping[str, Any]) -> tuple[Key, str]:
    """The key as it stands in the file, and what is wrong with it."""
    key, model = _place(details, values)
    if details["type"] == "extra_forbidden":
        section: Any = values
        for part in key[:-1]:
            section = section[part]
        return key, f"unknown key{_did_you_mean(key, model.model_fields if model else (), section)}"
    if details["type"].startswith("union_tag"):
        return _unknown_kind(key, details)
    message = _IN_YAML_TERMS.get(details["type"], details["msg"].removeprefix("Value error, "))
    if details["type"] in ("too_short", "too_long"):
        message = message.replace("Tuple", "list").replace(" after validation, not", ", found")
    return key, message[:1].lower() + message[1:]


def _place(details: ErrorDetails, values: Any) -> tuple[Key, type[BaseModel] | None]:
    """Pydantic's location without the names of union members, which do not stand in the file; and the model of the
    section in which its last key stands.
    """
    key: list[int | str] = []
    annotation: Any = Config
    model: type[BaseModel] | None = None
    for part in details["loc"]:
        if isinstance(part, str) and len(list(models_in(annotation))) > 1:
            annotation = model_for(annotation, values)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
            key.append(part)
        elif isinstance(values, dict) and (part in values or details["type"] == "missing"):
            model = model_for(annotation, values)
            annotation = model.model_fields[part].annotation if model and part in model.model_fields else None
            values = values.get(part)
            key.append(part)
    return tuple(key), model


def _unknown_kind(key: Key, details: ErrorDetails) -> tuple[Key, str]:
    """A section without a kind, or of one that is not known."""
    section = details["input"]
    place = _pattern((*key, "kind"))
    kinds = ", ".join(dict.fromkeys(repr(known.kind) for known in all_keys() if known.dotted == place))
    if not isinstance(section, dict):
        return key, f"found {_show(section)}, expected a section with a kind: {kinds}"
    if "kind" in section:
        return (*key, "kind"), f"found {_show(section['kind'])}, allowed: {kinds}"
    if mistyped := [name for name in section if _one_edit_away(name, ["kind"])]:
        return (*key, mistyped[0]), "unknown key; did you mean 'kind'?"
    return key, f"needs a kind: {kinds}"


def _mistyped(errors: Iterable[ErrorDetails], values: Mapping[str, Any]) -> Iterator[Key]:
    """The keys that unknown ones are likely to stand for."""
    for details in errors:
        if details["type"] == "extra_forbidden":
            key, model = _place(details, values)
            for name in _one_edit_away(str(key[-1]), model.model_fields if model else ()):
                yield (*key[:-1], name)


def _did_you_mean(key: Key, allowed: Collection[str], section: Mapping[str, Any]) -> str:
    """What may have been meant: a key of the same section, one elsewhere (but for a letter), or one like them."""
    name = str(key[-1])
    if close := _one_edit_away(name, allowed):
        return f"; did you mean {_either(close)}?"
    everywhere = list(all_keys())
    if kinds := [known.kind for known in everywhere if known.kind and known.dotted == _pattern(key)]:
        return f" for kind {section.get('kind', 'auto')!r}; it belongs to kind {_either(kinds)}"
    if places := [known.dotted for known in everywhere if known.name == name]:
        return f" here; did you mean {_either(places)}?"
    if places := [known.dotted for known in everywhere if _one_edit_away(name, [known.name])]:
        return f"; did you mean {_either(places)}?"
    if similar := difflib.get_close_matches(name, allowed, n=1):
        return f"; did you mean {similar[0]!r}?"
    if similar := difflib.get_close_matches(name, {known.name for known in everywhere}, n=1, cutoff=0.75):
        return f"; did you mean {_either(known.dotted for known in everywhere if known.name == similar[0])}?"
    return f"; allowed here: {', '.join(allowed)}"


def _pattern(key: Key) -> str:
    """The key as ``all_keys`` writes it: without the numbers of items."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _either(names: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(repr(name) for name in names))


def _one_edit_away(name: str, names: Collection[str]) -> list[str]:
    """Those of ``names`` from which ``name`` is at most one letter (added, left out, replaced, or swapped with its
    neighbour) away, capitals and hyphens aside. Also finds the short ones, which difflib does not.
    """
    plain = name.lower().replace("-", "_")
    return [each for each in names if _is_one_edit(*sorted((plain, each), key=len))]


def _is_one_edit(short: str, long: str) -> bool:
    at = next((at for at, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[:at] + short[at : at + 2][::-1] + short[at + 2 :]
    return swapped == long or short[at + 1 :] == long[at + 1 :]
