"""``init`` and ``schema``: what the configuration may say, written to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncgen.cli.speak import say
from asyncgen.errors import ConfigError
from asyncgen.init_file import render_config, render_schema
from asyncgen.paths import exists

__all__ = ["init_command", "schema_command"]


def init_command(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite it if it exists.")] = False,
) -> None:
    """Write a commented configuration, and its JSON Schema for editors beside it."""
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file}: a configuration is written as YAML; name it {file.with_suffix('.yaml').name}")
    schema = file.with_suffix(".schema.json")
    if not force:
        _check_is_new(file, schema)
    made = not exists(file.parent)
    _write(file, render_config(schema.name, file.with_suffix(".jsonl").name))
    _write(schema, render_schema())
    if made:
        say(f"made the folder {file.parent}")
    say(f"wrote {file} (and {schema} for editors); next: python -m asyncgen run {file}")


def schema_command(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write it to this file instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite it if it exists.")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors and checks of your own."""
    if output is None:
        say(render_schema().rstrip("\n"))
    else:
        if not force:
            _check_is_new(output)
        _write(output, render_schema())


def _check_is_new(*files: Path) -> None:
    for path in files:
        if exists(path):
            raise ConfigError(f"{path}: exists already", hint="--force overwrites it")


def _write(file: Path, text: str) -> None:
    try:
        data = text.encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    except UnicodeEncodeError:  # the schema's name, which is a part of the text
        raise ConfigError(f"{file}: the name is not UTF-8") from None
