"""Opens what a configuration says about validation, before a model loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asyncgen.config import Config
from asyncgen.validators.judge import Judge
from asyncgen.validators.readability import known_words_path

__all__ = ["Validators", "input_files", "open_validators"]


@dataclass(frozen=True, slots=True)
class Validators:
    """Everything that judges the completions of a run."""

    judge: Judge
    """The built-in checks."""


def open_validators(config: Config) -> Validators:
    """Reads, compiles and finds everything that ``validation`` names; may take long, so it belongs into a thread.

    Raises ConfigError or DataError for the first thing that cannot be used.
    """
    return Validators(Judge(config.validation))


def input_files(config: Config) -> dict[str, Path | str]:
    """What verdicts depend on besides the configuration's own values, as far as it is in use: a path for a file.

    Keys: ``validation.banned_words`` and ``validation.known_words``.
    """
    settings = config.validation
    if not settings.enabled:
        return {}
    paths = {"validation.banned_words": settings.banned_words_path, "validation.known_words": known_words_path(config)}
    return {name: path for name, path in paths.items() if path is not None}
