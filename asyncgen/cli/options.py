"""The options that ``run``, ``check`` and ``preview`` share: which configuration, and what is changed in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from asyncgen.config import Config
from asyncgen.config_file import Flag, Origins, read_config
from asyncgen.errors import ConfigError

__all__ = ["Settings", "with_settings"]

_Own = ParamSpec("_Own")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the shared options amount to."""

    config: Config
    origins: Origins
    """Where each setting was made, for messages."""
    file: Path | None
    """The file that it was read from."""


def read_settings(
    config: Annotated[Path | None, typer.Argument(help="YAML or JSON file; without one the defaults apply.")] = None,
    config_option: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The same as the argument.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: generation.top_k=50. Repeatable."),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="bedtime-tiny, a hub id or a directory.")] = None,
    num_stories: Annotated[int | None, typer.Option(help="Accepted stories to make.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Rows generated at once, or auto.")] = None,
    output_path: Annotated[
        str | None, typer.Option(help="Where the stories go, relative to the current folder.")
    ] = None,
    no_k_shot: Annotated[bool, typer.Option("--no-k-shot", help="No examples in front of the prompts.")] = False,
    no_diversity: Annotated[bool, typer.Option("--no-diversity", help="Draw words independently.")] = False,
) -> Settings:
    """The configuration that these options describe; flags of their own outweigh ``--set``, and both the file."""
    if config is not None and config_option is not None:
        raise ConfigError(f"--config {config_option}: the configuration is given twice, {config} is the other")
    flags = [
        Flag(key, value, name if value in (True, False) and isinstance(value, bool) else f"{name} {value}")
        for name, key, value in (
            ("--model-name", "model_name", model_name),
            ("--num-stories", "num_stories", num_stories),
            ("--batch-size", "generation.batch_size", _number_or_text(batch_size)),
            ("--output-path", "output_path", output_path),
            ("--no-k-shot", "use_k_shot", False if no_k_shot else None),
            ("--no-diversity", "ensure_diversity", False if no_diversity else None),
        )
        if value is not None
    ]
    file = config or config_option
    return Settings(*read_config(file, [*(sets or ()), *flags]), file)


def with_settings(
    command: Callable[Concatenate[Settings, _Own], None], refused: Callable[..., object] | None = None
) -> Callable[..., None]:
    """The same command with the shared options in front of its own; it is called with what they amount to. If that is
    no configuration, ``refused`` hears why first, with the command's own options.
    """
    shared = inspect.signature(read_settings, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def wrapped(**options: Any) -> None:
        try:
            settings = read_settings(**{name: options.pop(name) for name in shared})
        except ConfigError as error:
            if refused is not None:
                refused(error, **options)
            raise
        command(settings, **options)  # type: ignore[call-arg]  # typer gives what the signature below asks for

    parameters = [*shared.values(), *own]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    return wrapped


def _number_or_text(text: str | None) -> int | str | None:
    """``auto`` and whatever else is no number stay what they are: the configuration says what is allowed."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else text
