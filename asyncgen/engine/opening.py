"""The engine of a run: its own, or one that others use too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from asyncgen.config import Config, OpenAIBackend
from asyncgen.config_file import with_absolute_model
from asyncgen.engine.engine import Engine
from asyncgen.errors import ConfigError
from asyncgen.tasks import in_thread

__all__ = ["engine_for"]


@asynccontextmanager
async def engine_for(config: Config, given: Engine | None, notice: Callable[[str], object]) -> AsyncIterator[Engine]:
    """``given``, which stays open; or, if that is None, an engine of the run's own.

    Raises ConfigError if the one given has another model than ``config`` names, or what opening
    an engine raises.
    """
    if given is None:
        async with Engine(config, notice=notice) as engine:
            yield engine
        return
    await in_thread(_check_same, config, given.config)
    yield given


def _check_same(config: Config, engine: Config) -> None:
    same = {"model_name": _place(config) == _place(engine), "backend": config.backend == engine.backend}
    for name, is_same in same.items():
        if not is_same:
            raise ConfigError(
                f"{name}: found {getattr(config, name)!r}, but the engine that is given has {getattr(engine, name)!r}",
                hint="give the engine and the run the same model_name and backend, or let the run open its own",
            )


def _place(config: Config) -> str:
    name = with_absolute_model(config).model_name
    if isinstance(config.backend, OpenAIBackend):
        return name
    return str(Path(name).resolve()) if Path(name).is_absolute() else name
