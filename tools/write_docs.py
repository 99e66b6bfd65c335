"""Writes what documentation can be written from the code: ``docs/configuration.md``, ``docs/command-line.md``, and the
table of what may change on resume in ``docs/resuming.md``.

    python -m tools.write_docs
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from asyncgen.config import Config
from asyncgen.config_tree import is_a_list, kind_of, models_in
from asyncgen.output.fingerprint import RULES

DOCS = Path(__file__).parent.parent / "docs"

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m tools.write_docs` from asyncgen/config.py; do not edit by hand. -->

A configuration is a YAML (or JSON) file. Every key has a default, so an empty file is valid; a key that is not known
is refused, with the one that you probably meant. A section without any key (all commented out, say) has its defaults.
Relative paths are relative to the file. It has at most 250,000 bytes and 5,000 keys and values (longer lists belong
into files of their own), and no tags, anchors or keys that stand there twice.
`python -m asyncgen init FILE` writes one with all keys and comments, and beside it the JSON Schema by which editors
complete and check it.

Any key can be set on the command line too, where paths are relative to the current folder; the value is YAML, and
items of a list that stands in the file have numbers from 0 (`--set 'sources[0].weight=3'`):

```sh
python -m asyncgen check --set generation.top_k=50 --set 'sources=[{kind: template}]'
```

The last column says what a change means for an output that was begun with another value
([resuming](resuming.md#what-may-change)): *fixed* is refused; *content fixed* lets the path change, but not what is in
the file; *noted* is allowed and told; *free* is not compared.
"""

ON_RESUME = {"records": "fixed", "input": "content fixed", "noted": "noted", "free": "free"}
HEAD = "| key | type | default | meaning | on resume |\n|---|---|---|---|---|"


def configuration() -> str:
    """The text of ``docs/configuration.md``."""
    parts = [INTRODUCTION]
    for title, model, place in sections():
        text = " ".join((model.__doc__ or "").split())
        parts.append("\n".join([f"## {title}", "", *textwrap.wrap(text, 120), "", HEAD, *_rows(model, place)]) + "\n")
    return "\n".join(parts)


def sections(model: type[BaseModel] = Config, place: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Title, model and dotted place of every section, outer ones first."""
    if not place:
        yield "Top level", model, ""
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        for each in inner:
            here = f"{place}{name}."
            kind = f" of kind {kind_of(each)}" if len(inner) > 1 else ""
            yield f"{here.rstrip('.')}{kind}", each, here
            yield from sections(each, here)


def _rows(model: type[BaseModel], place: str) -> Iterator[str]:
    schema = model.model_json_schema()
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):  # the kind comes first
        inner = list(models_in(field.annotation))
        links = " or ".join(
            f"[{_label(place + name, each, inner)}](#{_anchor(place + name, each, inner)})" for each in inner
        )
        default = "required" if field.is_required() else f"`{_json(field.get_default(call_default_factory=True))}`"
        if inner:
            items = "list of " if is_a_list(field.annotation) else ""
            nullable = " or null" if default == "`null`" else ""
            kind, default = f"{items}{links}{nullable}", default if default in ("`null`", "`[]`") else "see there"
        else:
            kind = _type(schema["properties"][name])
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rule = ON_RESUME[RULES[place + name]] if place + name in RULES else ""
        yield f"| `{name}` | {kind} | {default} | {meaning} | {rule} |"


def _label(dotted: str, model: type[BaseModel], among: list[type[BaseModel]]) -> str:
    return str(kind_of(model)) if len(among) > 1 else dotted.rpartition(".")[2]


def _anchor(dotted: str, model: type[BaseModel], among: list[type[BaseModel]]) -> str:
    title = f"{dotted} of kind {kind_of(model)}" if len(among) > 1 else dotted
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _json(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value if isinstance(value, dict) else _scalar(value)
    return json.dumps(plain, ensure_ascii=False)


def _scalar(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _type(schema: dict[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}s"
    words = {"integer": "whole number", "boolean": "true or false", "string": "text", "object": "mapping"}
    name = (
        "path" if schema.get("format") == "path" else words.get(schema.get("type", ""), schema.get("type", "any value"))
    )
    return name + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = [
        "" if low is None else f"≥ {low}",
        "" if above is None else f"> {above}",
        "" if high is None else f"≤ {high}",
        "" if below is None else f"< {'2^63' if below == 2**63 else below}",
    ]
    text = " and ".join(bound for bound in bounds if bound)
    return f" {text}" if text else ""


def resuming(text: str) -> str:
    """``docs/resuming.md`` with its table as the rules have it."""
    groups = {rule: [name for name, value in RULES.items() if value == rule] for rule in ON_RESUME}
    rows = [f"| {ON_RESUME[rule]} | {', '.join(f'`{name}`' for name in names)} |" for rule, names in groups.items()]
    table = "\n".join(["| on resume | keys |", "|---|---|", *rows])
    return re.sub(r"(<!-- rules: [^\n]*-->\n).*?(<!-- end of rules -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL)


COMMAND_LINE = """\
# Command line

<!-- Written by `python -m tools.write_docs` from the program's own help; do not edit by hand. -->

`asyncgen` and `python -m asyncgen` are the same program. `run`, `check` and `preview` take the same configuration and
the same flags, so what is checked is what is run; `serve` takes it too. A flag outweighs `--set`, and both outweigh the
file:

```sh
asyncgen init my.yaml
asyncgen check my.yaml --num-stories 50 --model-name bedtime-tiny
asyncgen preview my.yaml -n 1 --no-tokens
```

Results go to standard output; progress, notices and errors go to standard error. An error names the file and line, or
the flag, that led to it; `check` names all of them at once. `verify` and `check` change nothing.

Neither `check`, `init`, `schema`, `verify` nor the help imports torch. `preview` reads a model's `tokenizer.json` and
chat template itself where they are on this machine. For a model without `tokenizer.json`, or one of the hub that is not
in the cache yet, it loads transformers, which imports torch, and says so; `--no-tokens` shows the messages without any
of that. `preview --generate` loads the model.

Where a model's files are not on this machine `check` reckons tokens as words x 1.35 and calls them "about". It looks at
the first 64 prompts and does not call generator functions of yours; modules that the configuration names are imported.
"""
COMPLETION = """\
## Completion

`asyncgen --install-completion` sets up the shell that it is called from (bash, zsh, fish or PowerShell), for commands,
options and their values; `asyncgen --show-completion` only prints what that would be.
"""


def command_line() -> str:
    """The text of ``docs/command-line.md``: the help of each command, 80 columns wide."""
    table = help_of().partition("Commands:\n")[2].partition("\n\n")[0]
    names = re.findall(r"^  ([a-z]+) ", table, re.MULTILINE)
    parts = [("asyncgen", help_of()), *((f"asyncgen {name}", help_of(name)) for name in names)]
    return "\n".join(
        [COMMAND_LINE, *(f"## {title}\n\n```text\n{text.rstrip()}\n```\n" for title, text in parts), COMPLETION]
    )


def help_of(*command: str) -> str:
    """What ``asyncgen COMMAND --help`` prints in a terminal of 80 columns."""
    return subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-m", "asyncgen", *command, "--help"],
        env=os.environ | {"COLUMNS": "80"},
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def main() -> None:
    """Writes the pages."""
    (DOCS / "command-line.md").write_text(command_line(), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    page = DOCS / "resuming.md"
    page.write_text(resuming(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
