"""A commented configuration and its JSON Schema, both written from the models in ``config.py``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from asyncgen.config import Config, Generation

__all__ = ["render_config", "render_schema"]


def render_config(schema_name: str, output_path: str) -> str:
    """The default configuration as YAML, each key with its comment, but for ``output_path``: two configurations in one
    directory have an output each; and for ``batch_size``: who has not thought about it is best served by ``auto``.

    ``schema_name`` is the schema's file, in the same directory, for editors that know yaml-language-server.
    """
    lines = [
        f"# yaml-language-server: $schema={schema_name}",
        "# A run of asyncgen: python -m asyncgen run THIS_FILE",
        "# Every key may be left out; relative paths are relative to this file.",
        "",
        *_section(Config(output_path=Path(output_path), generation=Generation(batch_size="auto")), ""),
    ]
    return "\n".join(lines) + "\n"


def render_schema() -> str:
    """The JSON Schema of the configuration."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _section(section: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    fields = type(section).model_fields
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "kind"):  # the kind comes first
        value = getattr(section, name)
        comment = field.description or ""
        lines += textwrap.wrap(comment, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_section(value, indent + "  ")]
        else:
            plain = section.model_dump(mode="json")[name]
            lines.append(f"{indent}{name}: {json.dumps(plain, ensure_ascii=False)}")
    return lines
