"""Opens what a configuration says about validation, before a model loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asyncgen.config import Config
from asyncgen.functions import source_file
from asyncgen.validators.asking import Functions, load_functions
from asyncgen.validators.judge import Judge
from asyncgen.validators.readability import known_words_path

__all__ = ["Validators", "open_validators", "validator_files"]


@dataclass(frozen=True, slots=True)
class Validators:
    """Everything that judges the completions of a run."""

    judge: Judge
    """The built-in checks."""
    functions: Functions | None
    """Those of the user's, asked about what the built-in ones accept; None if there are none."""


def open_validators(config: Config) -> Validators:
    """Reads, compiles and finds everything that ``validation`` names; may take long, so it belongs into a thread.

    Raises ConfigError or DataError for the first thing that cannot be used.
    """
    settings = config.validation
    judge = Judge(settings)
    checks = load_functions(settings) if settings.enabled else ()
    return Validators(judge, Functions(checks, settings, judge.weight) if checks else None)


def validator_files(config: Config) -> dict[str, Path | str]:
    """What verdicts depend on besides the configuration's own values, as far as it is in use: a path for a file.

    Keys: ``validation.banned_words``, ``validation.known_words``, and for each function ``validation.functions[0]``,
    the file that holds its code (not what that imports), with its name as ``validation.functions[0].name``.
    """
    settings = config.validation
    if not settings.enabled:
        return {}
    paths = {"validation.banned_words": settings.banned_words_path, "validation.known_words": known_words_path(config)}
    inputs: dict[str, Path | str] = {name: path for name, path in paths.items() if path is not None}
    for place, each in enumerate(settings.functions):
        key = f"validation.functions[{place}]"
        module, _, name = each.function.rpartition(":")
        inputs[f"{key}.name"] = name if module.endswith(".py") else each.function
        if (source := source_file(each.function)) is not None:
            inputs[key] = source
    return inputs
