"""The engine of a run: its own, or one that others use too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from asyncgen.config import Config
from asyncgen.engine.engine import Engine
from asyncgen.errors import ConfigError

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
    for name in ("model_name", "backend"):
        wanted, there = getattr(config, name), getattr(given.config, name)
        if wanted != there:
            raise ConfigError(
                f"{name}: found {wanted!r}, but the engine that is given has {there!r}",
                hint="give the engine and the run the same model_name and backend, or let the run open its own",
            )
    yield given
