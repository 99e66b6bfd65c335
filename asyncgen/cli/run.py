"""``run``: makes the stories, telling a person what happens."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NoReturn

import anyio
import typer

import asyncgen
from asyncgen import errors
from asyncgen.cli.explain import explained
from asyncgen.cli.leaving import run_loop
from asyncgen.cli.options import Settings
from asyncgen.cli.signals import Signals
from asyncgen.cli.watchdog import STALLED, Watchdog
from asyncgen.cli.write import init_command
from asyncgen.config import Config, StaticBackend
from asyncgen.config_file import without_secret
from asyncgen.dashboard import choose_view, tell, wait_for_terminals
from asyncgen.errors import ConfigError
from asyncgen.logs import configure
from asyncgen.metrics import View, Watched
from asyncgen.output import Places
from asyncgen.prompts import input_files
from asyncgen.report import Report
from asyncgen.session import Resume, check_resume, finished_on_disk, run
from asyncgen.tasks import tell_nobody
from asyncgen.validators import validator_files

__all__ = ["run_command"]


class Level(StrEnum):
    """``logs.LEVELS``, as typer wants its choices."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Resuming(StrEnum):
    """``session.Resume``, as typer wants its choices."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRE = "require"


def run_command(
    settings: Settings,
    resume: Annotated[
        Resuming,
        typer.Option(
            metavar="HOW",
            help="auto goes on with records that are there, never refuses them, require refuses when there are none.",
        ),
    ] = Resuming.AUTO,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors and the final summary only.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="A line now and then instead of the bars.")] = False,
    log_level: Annotated[
        Level | None,
        typer.Option(
            metavar="LEVEL", help="What is logged: debug, info, warning (the default) or error (with --quiet)."
        ),
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the log to this file too, with times.")
    ] = None,
    create_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a configuration to this file and exit.")
    ] = None,
) -> None:
    """Make stories, or go on with a run that was stopped."""
    if create_config is not None:
        init_command(create_config)
        return
    if isinstance(settings.config.backend, StaticBackend):
        # OpenMP threads that spin while they wait slow each other down forty-fold beside another busy process (slots
        # looks out for that, and is faster with them). Read when torch is imported, which comes later.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    show = _Show(choose_view(plain=plain, quiet=quiet), tell_nobody if quiet else tell)
    level = log_level or (Level.ERROR if quiet else Level.WARNING)
    if log_file is not None:
        _check_is_no_part(log_file, settings)
    with configure(level.value, log_file), explained(settings) as begin:
        check_resume(settings.config, resume.value)
        code = _run(settings.config, resume.value, show, begin)
    raise typer.Exit(code)


def _check_is_no_part(log_file: Path, settings: Settings) -> None:
    """Raises ConfigError if the log would be written into a file of the run."""
    config = settings.config
    with explained(settings):
        places = Places.of(config.output_path)
        read = {**input_files(config), **validator_files(config), "configuration": settings.file}
    written = {"stories": places.stories, "rejected": places.rejected, "manifest": places.manifest, "lock": places.lock}
    for what, path in {**read, **written}.items():
        if isinstance(path, Path) and path.resolve() == log_file.resolve():
            raise ConfigError(f"--log-file {log_file}: that is a file of the run itself ({what})", hint="name another")


@dataclass(frozen=True, slots=True)
class _Show:
    """How a run is shown."""

    view: View
    tell: Callable[[str], object]
    """Told what happens on the way; errors and how it ended are told in any case."""


def _run(config: Config, resume: Resume, show: _Show, begin: Callable[[], None]) -> int:
    """Runs and returns the exit code; calls ``begin`` when inputs and output are sound."""
    done = finished_on_disk(config)
    if done is not None:
        wanted = f"{config.num_stories} wanted"
        tell(f"complete: {done.accepted} stories ({wanted}) are in {config.output_path}; nothing to do")
        return 0
    signals = Signals()
    watchdog = Watchdog(config.watchdog, signals.cancel, _command_again())
    cut_short: list[Report] = []
    try:
        make = partial(_make, config, resume, show, signals, watchdog, begin, cut_short.append)
        report = run_loop(partial(signals.watch, make))
    except Exception as error:
        if watchdog.bit:
            _leave_stalled()
        for each in filter(None, [error.report] if isinstance(error, errors.RunStopped) else cut_short):
            tell(each.summary())  # what was refused before anything was generated has none
        raise
    report = report or next(iter(cut_short), None)
    if report is not None:
        tell(report.summary())
    if report is not None and report.complete:
        return 0
    if watchdog.bit:
        _leave_stalled()
    if not signals.received:
        return 0
    tell(f"stopped; go on with: {_command_again()}")
    if signals.count > 1:
        os._exit(128 + signals.received)  # the interpreter's own end, with torch in it, takes seconds
    return 128 + signals.received


def _leave_stalled() -> NoReturn:
    """What hangs would not end with the interpreter."""
    wait_for_terminals()
    os._exit(STALLED)


async def _make(
    config: Config,
    resume: Resume,
    show: _Show,
    signals: Signals,
    watchdog: Watchdog,
    begin: Callable[[], None],
    cut_short: Callable[[Report], object],
    stop: anyio.Event,
) -> Report:
    async def watch(flow: Watched) -> None:
        signals.begun()
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(watchdog.watch, flow)
            await show.view(flow)

    announce = partial(_announce, config, show, begin)
    return await run(
        config, resume=resume, stop=stop, watch=watch, notice=show.tell, begin=announce, cut_short=cut_short
    )


def _announce(config: Config, show: _Show, begin: Callable[[], None], made: int) -> None:
    """Says what is about to happen, now that nothing but the model can refuse it; ``made`` stories are on disk."""
    begin()
    goal = "stories until the sources end" if config.num_stories is None else f"{config.num_stories} stories"
    so_far = f" (going on after {made})" if made else ""
    model = "the echo backend" if config.backend.kind == "echo" else config.model_name
    show.tell(f"asyncgen {asyncgen.__version__}: {goal} with {model}{so_far}")


def _command_again() -> str:
    """The command that goes on, as it was typed; secrets are hidden, and --resume, which may forbid it, left out."""
    script = Path(sys.argv[0]).name == "asyncgen"
    arguments: list[str] = []
    for before, argument in pairwise(["", *sys.argv[1:]]):
        if before == "--resume" or argument.partition("=")[0] == "--resume":
            continue
        option, joined, assignment = argument.rpartition("--set=")
        arguments.append(option + joined + without_secret(assignment))
    return shlex.join([*(["asyncgen"] if script else ["python", "-m", "asyncgen"]), *arguments])
