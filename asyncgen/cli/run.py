"""``run``: makes the stories, telling a person what happens."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
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
from asyncgen.cli.options import LogFile, LogLevel, Settings, level_of, set_threads
from asyncgen.cli.signals import Signals
from asyncgen.cli.watchdog import STALLED, Watchdog
from asyncgen.cli.write import init_command
from asyncgen.config import Config
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
            help="Records that are there: auto goes on with them, never stops, require stops without any.",
        ),
    ] = Resuming.AUTO,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors and the final summary only.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="A line now and then instead of the bars.")] = False,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    create_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a configuration to this file and exit.")
    ] = None,
) -> None:
    """Make stories, or go on with a run that was stopped."""
    if create_config is not None:
        init_command(create_config)
        return
    set_threads(settings.config)
    run = _Run(settings.config, choose_view(plain=plain, quiet=quiet), tell_nobody if quiet else tell)
    run.watchdog.begin()
    if log_file is not None:
        _check_is_no_part(log_file, settings)
    with configure(level_of(log_level, quiet=quiet), log_file), explained(settings) as begin:
        check_resume(settings.config, resume.value)
        code = run.through(resume.value, begin)
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


class _Run:
    """One run, how it is shown, and what ends it when nothing else does."""

    def __init__(self, config: Config, view: View, tell_more: Callable[[str], object]) -> None:
        """``tell_more`` is told what happens on the way; errors and how it ended are told in any case."""
        self._config, self._view, self._tell_more = config, view, tell_more
        self._again = _command_again()
        self._signals = Signals(config.drain_timeout, self._again)
        self.watchdog = Watchdog(config.watchdog, self._signals.cancel, self._again)
        self._cut_short: list[Report] = []

    def through(self, resume: Resume, begin: Callable[[], None]) -> int:
        """Runs and returns the exit code; calls ``begin`` when inputs and output are sound."""
        done = finished_on_disk(self._config)
        if done is not None:
            wanted = f"{self._config.num_stories} wanted"
            tell(f"complete: {done.accepted} stories ({wanted}) are in {self._config.output_path}; nothing to do")
            return 0
        try:
            report = run_loop(partial(self._signals.watch, partial(self._make, resume, begin)))
        except BaseException as error:
            if self.watchdog.bit:
                _leave_stalled()
            for each in filter(None, [error.report] if isinstance(error, errors.RunStopped) else self._cut_short):
                tell(each.summary())  # what was refused before anything was generated has none
            if isinstance(error, errors.ServerFailed):
                self._tell_more(f"go on with: {self._again}")
            if isinstance(error, Exception):
                raise
            # Whatever raises it in a task or callback of its own, asyncio ends the loop with it.
            raise errors.AsyncgenError(
                f"code of yours ended the event loop with {type(error).__name__} {error}".rstrip(),
                hint="a check or a source may raise it where it is called, but not in a task of its own",
            ) from error
        finally:
            self.watchdog.phase()
        return self._exit_code(report or next(iter(self._cut_short), None))

    def _exit_code(self, report: Report | None) -> int:
        """Tells how it ended; does not return where waiting for the interpreter's own end would be no use."""
        if report is not None:
            tell(report.summary())
        if report is not None and report.complete:
            self._signals.completed()
            return 0
        if self.watchdog.bit:
            _leave_stalled()
        signals = self._signals
        if not signals.received:
            return 1  # nobody stopped it, and it is not complete: there is no such end, or it is no success
        tell(f"stopped; go on with: {self._again}")
        if signals.count > 1:
            os._exit(128 + signals.received)  # the interpreter's own end, with torch in it, takes seconds
        return 128 + signals.received

    async def _make(self, resume: Resume, begin: Callable[[], None], stop: anyio.Event) -> Report:
        return await run(
            self._config,
            resume=resume,
            stop=stop,
            watch=self._watch,
            notice=self._tell_more,
            begin=partial(self._announce, begin),
            cut_short=self._cut_short.append,
            phase=self._phase,
        )

    def _phase(self, name: str) -> None:
        _fill_standard_descriptors()
        self.watchdog.phase(name)

    async def _watch(self, flow: Watched) -> None:
        self._signals.begun()
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(self.watchdog.watch, flow)
            await self._view(flow)

    def _announce(self, begin: Callable[[], None], made: int) -> None:
        """Says what is about to happen, now that nothing but the model can refuse it; ``made`` stories are on disk."""
        begin()
        config = self._config
        goal = "stories until the sources end" if config.num_stories is None else f"{config.num_stories} stories"
        so_far = f" (going on after {made})" if made else ""
        model = "the echo backend" if config.backend.kind == "echo" else config.model_name
        self._tell_more(f"asyncgen {asyncgen.__version__}: {goal} with {model}{so_far}")


def _fill_standard_descriptors() -> None:
    """If code of the user's has closed one of them, no file of the run gets its number, and what is told with it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _leave_stalled() -> NoReturn:
    """What hangs would not end with the interpreter."""
    wait_for_terminals()
    os._exit(STALLED)


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
