"""The command line: the only place with signals, printing and exit codes.

    python -m asyncgen init config.yaml
    python -m asyncgen check config.yaml
    python -m asyncgen run config.yaml

Nothing here imports torch; a run does, when its backend opens.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import anyio
import typer

import asyncgen
from asyncgen import errors
from asyncgen.check import describe
from asyncgen.config import Config
from asyncgen.config_file import load_config
from asyncgen.dashboard import choose_view, tell
from asyncgen.init_file import render_config, render_schema
from asyncgen.report import Report
from asyncgen.session import progress_on_disk, run
from asyncgen.tasks import single_cause

__all__ = ["app", "main"]

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.InputError, 2),
    (errors.ResumeRefused, 2),
    (errors.OutputDamaged, 2),
    (errors.OutputInUse, 3),
    (errors.TooManyRejections, 4),
    (errors.SourcesEnded, 5),
    (errors.OutputFailed, 74),
)
"""First match wins; 0 complete, 1 any other error, 130 and 143 stopped by SIGINT and SIGTERM."""

SECOND_SIGNAL_SECONDS = 0.8
"""After a second signal the process ends within this time, whatever the model is doing."""

app = typer.Typer(
    name="asyncgen",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Synthetic text data sets from a language model: validated, never lost, never repeated.",
    epilog="Short forms: --config FILE is run FILE, --create-config FILE is init FILE, and run's options work alone.",
)

ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML or JSON file; without one the defaults apply.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: generation.top_k=50.")
]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Options that stand before any command."""
    if version:
        typer.echo(f"asyncgen {asyncgen.__version__}")
        raise typer.Exit


@app.command("run")
def run_command(
    config: ConfigArgument = None,
    config_option: Annotated[Path | None, typer.Option("--config", help="The same as the argument.")] = None,
    sets: SetOption = None,
    model_name: Annotated[str | None, typer.Option(help="bedtime-tiny, a hub id or a directory.")] = None,
    num_stories: Annotated[int | None, typer.Option(help="Accepted stories to make.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Rows generated at once, or auto.")] = None,
    output_path: Annotated[
        str | None, typer.Option(help="Where the stories go, relative to the current folder.")
    ] = None,
    no_k_shot: Annotated[bool, typer.Option("--no-k-shot", help="No examples in front of the prompts.")] = False,
    no_diversity: Annotated[bool, typer.Option("--no-diversity", help="Draw words independently.")] = False,
    create_config: Annotated[Path | None, typer.Option(help="Write a configuration to this file and exit.")] = None,
) -> None:
    """Make stories, or go on with a run that was stopped."""
    if create_config is not None:
        init_command(create_config)
        return
    if config is not None and config_option is not None:
        raise typer.BadParameter("give the configuration once: as argument or with --config")
    file = config if config is not None else config_option
    flags = {
        "model_name": model_name,
        "num_stories": num_stories,
        "generation.batch_size": batch_size,
        "output_path": output_path,
        "use_k_shot": False if no_k_shot else None,
        "ensure_diversity": False if no_diversity else None,
    }
    named = [
        f"{key}={json.dumps(value)}" if key != "generation.batch_size" else f"{key}={value}"
        for key, value in flags.items()
        if value is not None
    ]
    settings = load_config(file, [*(sets or ()), *named])
    raise typer.Exit(_run(settings))


@app.command("init")
def init_command(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite it if it exists.")] = False,
) -> None:
    """Write a commented configuration, and its JSON Schema for editors beside it."""
    if file.suffix not in (".yaml", ".yml"):
        raise errors.ConfigError(
            f"{file}: a configuration is written as YAML; name it {file.with_suffix('.yaml').name}"
        )
    schema = file.with_suffix(".schema.json")
    if not force:
        for path in (file, schema):
            if path.exists():
                raise errors.ConfigError(f"{path}: exists already", hint="--force overwrites it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render_config(schema.name), encoding="utf-8")
        schema.write_text(render_schema(), encoding="utf-8")
    except OSError as error:
        raise errors.ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    _say(f"wrote {file} (and {schema} for editors); next: python -m asyncgen run {file}")


@app.command("check")
def check_command(config: ConfigArgument = None, sets: SetOption = None) -> None:
    """Check a configuration and everything it names, without loading a model."""
    _say(describe(load_config(config, sets or ())))


def main() -> NoReturn:
    """Entry point of ``python -m asyncgen`` and of the console script."""
    # OpenMP threads that spin while they wait slow each other down forty-fold beside another busy process. Read when
    # torch is imported, which a run does later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("-") and arguments[0] not in _ROOT_OPTIONS:
        arguments.insert(0, "run")
    try:
        app(arguments, prog_name="asyncgen")
    except errors.AsyncgenError as error:
        tell(f"asyncgen: error: {error}")
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        tell("asyncgen: stopped")
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


_ROOT_OPTIONS = frozenset({"-h", "--help", "--version", "--install-completion", "--show-completion"})


def _run(config: Config) -> int:
    """Runs and returns the exit code, telling a person what happens."""
    done = progress_on_disk(config)
    if done is not None and done.complete:
        wanted = f"{config.num_stories} wanted"
        tell(f"complete: {done.accepted} stories ({wanted}) are in {config.output_path}; nothing to do")
        return 0
    goal = "stories until the sources end" if config.num_stories is None else f"{config.num_stories} stories"
    so_far = f" (going on after {done.accepted})" if done is not None and done.accepted + done.rejected else ""
    model = "the echo backend" if config.backend.kind == "echo" else config.model_name
    tell(f"asyncgen {asyncgen.__version__}: {goal} with {model}{so_far}")
    signals = _Signals()
    try:
        report = anyio.run(signals.run, config)
    except errors.RunStopped as error:
        if isinstance(error.report, Report):
            tell(error.report.summary())
        raise
    if report is not None:
        tell(report.summary())
    if not signals.received or (report is not None and report.complete):
        return 0
    tell(f"stopped; go on with: {_command_again()}")
    if signals.count > 1:
        os._exit(128 + signals.received)  # the interpreter's own end, with torch in it, takes seconds
    return 128 + signals.received


class _Signals:
    """First SIGINT or SIGTERM: finish what was begun, commit, stop. Second: stop at once."""

    def __init__(self) -> None:
        self.received = 0
        self.count = 0
        self._stop: anyio.Event | None = None

    async def run(self, config: Config) -> Report | None:
        self._stop = anyio.Event()
        report: Report | None = None
        with single_cause():
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, group.cancel_scope)
                report = await run(config, stop=self._stop, watch=choose_view(), notice=tell)
                group.cancel_scope.cancel()
        return report

    async def _listen(self, everything: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                self.count += 1
                self.received = self.received or int(received)
                if self.count == 1:
                    assert self._stop is not None
                    tell("stopping: finishing what was begun (once more: stop at once)")
                    self._stop.set()
                else:
                    _exit_soon(128 + self.received)
                    everything.cancel()


def _exit_soon(code: int) -> None:
    """Ends the process even if the model's thread does not come back; committed records are safe on disk."""
    timer = threading.Timer(SECOND_SIGNAL_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _say(text: str) -> None:
    """Prints a result on standard output."""
    try:
        print(text, flush=True)
    except OSError as error:
        tell(f"asyncgen: error: standard output cannot be written: {error.strerror}")
        os._exit(1)  # flushing what is buffered would fail once more


def _exit_code(error: BaseException) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _command_again() -> str:
    return shlex.join(["python", "-m", "asyncgen", *sys.argv[1:]])
