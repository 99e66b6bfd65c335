"""What every section of the configuration is made of: its base, and the types of values that several sections have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

__all__ = ["HIDDEN", "FunctionReference", "Parameters", "Section", "may_be_empty", "without_secrets"]

HIDDEN = "(hidden)"
_REFERENCE = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*", re.DOTALL)


def _is_reference(text: str) -> str:
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"found {text!r}, expected module:function, package.module:function or file.py:function")
    return text


FunctionReference = Annotated[str, AfterValidator(_is_reference)]
"""``module:function``, or ``file.py:function`` with the file relative to the configuration."""


def _is_finite(parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(parameters, allow_nan=False)
    except ValueError as error:
        raise ValueError("found a number that is infinite or none; a manifest cannot hold it") from error
    if f'"{HIDDEN}"' in json.dumps(parameters):
        raise ValueError(f"{HIDDEN} stands where a secret was hidden; put the secret itself there")
    return parameters


Parameters = Annotated[dict[str, JsonValue], AfterValidator(_is_finite)]
"""Passed to a function of the user's by name."""


_SECRET = re.compile(
    r"(?:.*_)?(?:api_?keys?|token|secrets?|passwords?|passwd|passphrase|pwd|credentials?|auth|authorization|bearer|cookies?"
    r"|dsn)|.+_keys?",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"(?:eos|bos|pad|unk|sep|mask|end|start|stop|special|next|max|min|num)_token"
    r"|(?:sort|primary|foreign|cache|json|text|prompt|group|dict|field)_keys?",
    re.IGNORECASE,
)
_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def without_secrets(value: JsonValue) -> JsonValue:
    """The same, but what has a name like ``api_key``, ``hf_token``, ``clientSecret`` or ``password`` is hidden, at any
    depth and whatever it is; null stays null.
    """
    if isinstance(value, dict):
        return {
            key: HIDDEN if each is not None and _is_secret(key) else without_secrets(each)
            for key, each in value.items()
        }
    return [without_secrets(each) for each in value] if isinstance(value, list) else value


def _is_secret(name: str) -> bool:
    words = re.sub(r"[\W_]+", "_", _CASE.sub("_", name))
    return bool(_SECRET.fullmatch(words)) and not _HARMLESS.fullmatch(words)


def may_be_empty(model: type[BaseModel]) -> Iterator[str]:
    """The fields of ``model`` that are sections with defaults: null in a file is such a section without any key."""
    return (name for name, field in model.model_fields.items() if isinstance(field.default, BaseModel))


def _let_sections_be_null(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Says so in the schema."""
    for name in may_be_empty(model):
        section = schema["properties"][name]
        about = {key: section.pop(key) for key in ("description", "default", "title") if key in section}
        schema["properties"][name] = about | {"anyOf": [section, {"type": "null"}]}


class Section(BaseModel):
    """Base of every part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        json_schema_extra=_let_sections_be_null,
    )
