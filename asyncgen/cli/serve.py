"""``serve``: answers other programs until it is told to stop."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Annotated

import anyio
import typer

from asyncgen.backends.find import INSTALL
from asyncgen.cli.explain import placed
from asyncgen.cli.leaving import run_loop
from asyncgen.cli.options import LogFile, LogLevel, Settings, level_of, set_threads
from asyncgen.cli.signals import Signals
from asyncgen.config import Config
from asyncgen.dashboard import tell
from asyncgen.errors import ConfigError, InputError
from asyncgen.logs import configure
from asyncgen.tasks import tell_nobody

__all__ = ["serve_command"]

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def serve_command(
    settings: Settings,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors and the address only.")] = False,
    log_level: LogLevel = None,
    log_file: LogFile = None,
) -> None:
    """Answer other programs, in the protocol of OpenAI's API."""
    _check_packages()
    set_threads(settings.config)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each client takes a descriptor
    signals = Signals(settings.config.drain_timeout, "")
    with configure(level_of(log_level, quiet=quiet), log_file), _placed(settings):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each request that is none
        done = run_loop(partial(signals.watch, partial(_serve, settings.config, signals, quiet=quiet)))
    raise typer.Exit(0 if done else 128 + signals.received)


async def _serve(config: Config, signals: Signals, stop: anyio.Event, *, quiet: bool) -> bool:
    """Whether it was not cut short by a second signal."""
    from asyncgen.server import model_id, serve  # noqa: PLC0415  # the packages of an extra

    def begin(address: str) -> None:
        signals.begun()
        tell(f"serving {model_id(config)} at {address}/v1")

    await serve(config, stop=stop, notice=tell_nobody if quiet else tell, begin=begin)
    return True


@contextmanager
def _placed(settings: Settings) -> Iterator[None]:
    """Puts in front of what is wrong with a setting where that was made."""
    try:
        yield
    except InputError as error:
        raise placed(error, settings) from error


def _check_packages() -> None:
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise ConfigError(f"asyncgen serve needs the package {name}", hint=f"{INSTALL} '.[serve]'")
