"""Finds a user's own function from what the configuration says of it: ``package.module:function`` or
``file.py:function``.

Naming a function in a configuration runs its module's code, as importing it would. Nothing else here is clever: no
registry, no entry points. A file is loaded once per process under a name of its own and never enters ``sys.path``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncgen.errors import ConfigError
from asyncgen.paths import is_file

__all__ = ["described", "find_function", "raised_at", "source_file"]

_SHOWN = 300


def find_function(reference: str, where: str) -> Callable[..., Any]:
    """The function that ``reference`` names; ``where`` is the configuration's key for the messages.

    Imports the module, so it may take long and belongs into a thread. Raises ConfigError if there is no such module
    or function, if importing it fails, or if it is no function.
    """
    place, _, name = reference.rpartition(":")
    module, function = _load(place, name, where)
    if function is None:
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        close = get_close_matches(name, names, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(names) or 'no function'}"
        raise ConfigError(f"{where}: there is no {name!r} in {place}{meant}")
    if not callable(function):
        raise ConfigError(f"{where}: {reference} is of type {type(function).__name__}; it must be a function")
    found: Callable[..., Any] = function
    return found


def source_file(reference: str) -> Path | None:
    """The file that holds the function's code, without running it; None if there is none to be found."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    try:
        spec = importlib.util.find_spec(place)
    except KeyboardInterrupt:  # a person's, who waits for a package that this imports
        raise
    except BaseException:  # noqa: BLE001  # what a package raises, SystemExit too, is said when it is imported to be used
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def raised_at(error: BaseException, function: Callable[..., Any]) -> str:
    """`` (checks.py:12)``: the innermost line in the function's own file that ``error`` came through; empty if it came
    through none.
    """
    module = sys.modules.get(str(getattr(function, "__module__", "")))
    file = getattr(module, "__file__", None)
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f" ({Path(file).name}:{lines[-1]})" if file and lines else ""


def described(error: BaseException) -> str:
    """The error on one line, its type first; whatever it does when it is asked for its message."""
    try:
        text = " ".join(str.__str__(str(error)).split())[:_SHOWN]
    except BaseException:  # noqa: BLE001  # code of the user's, which has failed already
        text = ""
    return type(error).__name__ + (f": {text}" if text else "")


def _load(place: str, name: str, where: str) -> tuple[ModuleType, Any]:
    """The module, and what it calls ``name``, None if there is no such thing."""
    try:
        module = _load_file(Path(place), where) if place.endswith(".py") else importlib.import_module(place)
        return module, getattr(module, name, None)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{where}: there is no module {place!r}",
                hint="a module is looked for in the current folder and among what is installed; a file is given as "
                "path/to/file.py:function",
            ) from None
        raise ConfigError(f"{where}: importing {place} failed: {error}") from error
    except BaseException as error:  # SystemExit too, which would end no more than the thread that imports
        raise ConfigError(f"{where}: importing {place} failed: {described(error)}") from error


def _load_file(path: Path, where: str) -> ModuleType:
    if not is_file(path):
        raise ConfigError(f"{where}: there is no file {path}")
    name = f"asyncgen_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # first: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
