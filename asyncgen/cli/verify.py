"""``verify`` reads a whole output and says whether it is sound; ``repair`` saves what is sound of one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncgen.cli.speak import say
from asyncgen.config_file import load_config
from asyncgen.errors import InputError
from asyncgen.output import repair, verify
from asyncgen.paths import exists, is_file
from asyncgen.validators import count_words, normalise

__all__ = ["repair_command", "verify_command"]

_MANIFEST, _REJECTED = ".run.json", ".rejected.jsonl"


_Run = Annotated[Path, typer.Argument(help="A configuration, a stories.jsonl or its stories.run.json.", metavar="RUN")]


def verify_command(run: _Run) -> None:
    """Read every line of an output and say whether it is sound. Changes nothing."""
    path = _output_of(run)
    try:
        report = verify(path, key=normalise, words=count_words)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    say(report.text())
    raise typer.Exit(0 if report.ok else 2)


def repair_command(
    run: _Run,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where sound stories go; otherwise NAME.repaired.jsonl beside the old file."),
    ] = None,
) -> None:
    """Save what is sound of a damaged output into new files. The old ones are never touched."""
    path = _output_of(run)
    try:
        salvage = repair(path, to, words=count_words)
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror}", hint="no new file was left") from error
    say(salvage.text())


def _output_of(run: Path) -> Path:
    """The stories' path that ``run`` means. Raises InputError if nothing is there."""
    if run.name.endswith(_REJECTED):
        run = run.with_name(run.name.removesuffix(_REJECTED) + ".jsonl")
    elif run.name.endswith(_MANIFEST):
        stem = run.with_name(run.name.removesuffix(_MANIFEST))
        run = stem if is_file(stem) else run.with_name(stem.name + ".jsonl")
    elif run.suffix in (".yaml", ".yml") or (run.suffix == ".json" and not exists(_manifest_of(run))):
        run = load_config(run).output_path
    if not exists(run) and not exists(_manifest_of(run)):
        raise InputError(f"{run}: there is no output", hint="name a configuration, a stories.jsonl or its run.json")
    return run


def _manifest_of(stories: Path) -> Path:
    return stories.with_name(stories.name.removesuffix(".jsonl") + _MANIFEST)
