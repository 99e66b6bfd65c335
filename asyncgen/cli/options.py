"""Options that several commands share: which configuration, what is changed in it, and what is logged."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from asyncgen.config import Config, StaticBackend
from asyncgen.config_file import Flag, Origins, read_config
from asyncgen.errors import ConfigError

__all__ = [
    "Level",
    "LogFile",
    "LogLevel",
    "Settings",
    "level_of",
    "read_server_settings",
    "set_threads",
    "with_settings",
]

_Own = ParamSpec("_Own")


class Level(StrEnum):
    """``logs.LEVELS``, as typer wants its choices."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevel = Annotated[
    Level | None,
    typer.Option(metavar="LEVEL", help="What is logged: debug, info, warning (the default) or error (with --quiet)."),
]
LogFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Append the log to this file too, with times.")]

_Config = Annotated[Path | None, typer.Argument(help="YAML or JSON file; without one the defaults apply.")]
_ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The same as the argument.")]
_Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: generation.top_k=50. Repeatable."),
]
_ModelName = Annotated[str | None, typer.Option(help="bedtime-tiny, a hub id or a directory.")]
_BatchSize = Annotated[str | None, typer.Option(help="Rows generated at once, or auto.")]
_ServerBatchSize = Annotated[str | None, typer.Option(help="Rows generated at once; auto unless it is set.")]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the shared options amount to."""

    config: Config
    origins: Origins
    """Where each setting was made, for messages."""
    file: Path | None
    """The file that it was read from."""


def read_settings(
    config: _Config = None,
    config_option: _ConfigOption = None,
    sets: _Sets = None,
    model_name: _ModelName = None,
    num_stories: Annotated[int | None, typer.Option(help="Accepted stories to make.")] = None,
    batch_size: _BatchSize = None,
    output_path: Annotated[
        str | None, typer.Option(help="Where the stories go, relative to the current folder.")
    ] = None,
    no_k_shot: Annotated[bool, typer.Option("--no-k-shot", help="No examples in front of the prompts.")] = False,
    no_diversity: Annotated[bool, typer.Option("--no-diversity", help="Draw words independently.")] = False,
) -> Settings:
    """The configuration that these options describe; flags of their own outweigh ``--set``, and both the file."""
    return _settings(
        config,
        config_option,
        sets,
        ("--model-name", "model_name", model_name),
        ("--num-stories", "num_stories", num_stories),
        ("--batch-size", "generation.batch_size", _number_or_text(batch_size)),
        ("--output-path", "output_path", output_path),
        ("--no-k-shot", "use_k_shot", False if no_k_shot else None),
        ("--no-diversity", "ensure_diversity", False if no_diversity else None),
    )


def read_server_settings(
    config: _Config = None,
    config_option: _ConfigOption = None,
    sets: _Sets = None,
    model_name: _ModelName = None,
    batch_size: _ServerBatchSize = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; others than 127.0.0.1 need a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at; 0 takes one that is free.")] = None,
) -> Settings:
    """The same for a server, whose rows are as many as suit the engine unless somebody says how many."""
    settings = _settings(
        config,
        config_option,
        sets,
        ("--model-name", "model_name", model_name),
        ("--batch-size", "generation.batch_size", _number_or_text(batch_size)),
        ("--host", "server.host", host),
        ("--port", "server.port", port),
    )
    generation = settings.config.generation
    if "batch_size" in generation.model_fields_set:
        return settings
    automatic = generation.model_copy(update={"batch_size": "auto"})
    return replace(settings, config=settings.config.model_copy(update={"generation": automatic}))


def with_settings(
    command: Callable[Concatenate[Settings, _Own], None],
    refused: Callable[..., object] | None = None,
    read: Callable[..., Settings] = read_settings,
) -> Callable[..., None]:
    """The same command with the shared options (those of ``read``) in front of its own; it is called with what they
    amount to. If that is no configuration, ``refused`` hears why first, with the command's own options.
    """
    shared = inspect.signature(read, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def wrapped(**options: Any) -> None:
        try:
            settings = read(**{name: options.pop(name) for name in shared})
        except ConfigError as error:
            if refused is not None:
                refused(error, **options)
            raise
        command(settings, **options)  # type: ignore[call-arg]  # typer gives what the signature below asks for

    parameters = [*shared.values(), *own]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    return wrapped


def level_of(level: Level | None, *, quiet: bool) -> str:
    """The level that is logged from."""
    return (level or (Level.ERROR if quiet else Level.WARNING)).value


def set_threads(config: Config) -> None:
    """OpenMP threads that spin while they wait slow each other down forty-fold beside another busy process (slots looks
    out for that, and is faster with them). Read when torch is imported, which comes later.
    """
    if isinstance(config.backend, StaticBackend):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _settings(
    config: Path | None, config_option: Path | None, sets: list[str] | None, *flags: tuple[str, str, object]
) -> Settings:
    """What these options, each with its key and value, make of a configuration; None was not given."""
    if config is not None and config_option is not None:
        raise ConfigError(f"--config {config_option}: the configuration is given twice, {config} is the other")
    given = [
        Flag(key, value, option if isinstance(value, bool) else f"{option} {value}")
        for option, key, value in flags
        if value is not None
    ]
    file = config or config_option
    return Settings(*read_config(file, [*(sets or ()), *given]), file)


def _number_or_text(text: str | None) -> int | str | None:
    """``auto`` and whatever else is no number stay what they are: the configuration says what is allowed."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else text
