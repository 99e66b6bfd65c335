"""The commands, their help and their examples."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import asyncgen
from asyncgen.cli.check import check_command, check_refused
from asyncgen.cli.options import read_server_settings, with_settings
from asyncgen.cli.preview import preview_command
from asyncgen.cli.run import run_command
from asyncgen.cli.serve import serve_command
from asyncgen.cli.verify import repair_command, verify_command
from asyncgen.cli.write import init_command, schema_command
from asyncgen.config_tree import keys_called
from asyncgen.errors import InputError
from asyncgen.paths import is_file

__all__ = ["app"]

_RUN_EPILOG = """
\b
Examples:
  asyncgen run config.yaml
  asyncgen run config.yaml --num-stories 2000 --batch-size 16
  asyncgen run --set backend.kind=echo --output-path try.jsonl

\b
Exit codes: 0 complete, 1 internal error, 2 bad configuration, data or
model, 3 output in use, 4 too many rejections, 5 the sources ended first,
69 the server failed or did not answer, 74 output failed, 75 no progress for
`watchdog` seconds, 130/143 stopped by a signal (these five resumable).
"""
_CHECK_EPILOG = """
\b
Examples:
  asyncgen check config.yaml
  asyncgen check config.yaml --num-stories 100000 --no-k-shot
  asyncgen check config.yaml --json

\b
Exit codes: 0 all is well, 2 something is wrong.
"""
_PREVIEW_EPILOG = """
\b
Examples:
  asyncgen preview config.yaml
  asyncgen preview config.yaml -n 1 --start 500 --no-k-shot
  asyncgen preview config.yaml --generate

\b
Exit codes: 0 shown, 2 bad configuration, data or model, 4 a check failed too
often (after what was found), 5 the sources end before --start, 69 the server
failed.
"""
_SERVE_EPILOG = """
\b
Examples:
  asyncgen serve --port 8080
  asyncgen serve config.yaml --batch-size auto
  asyncgen serve config.yaml --host 0.0.0.0 --set server.api_key_env=MY_KEY

\b
Exit codes: 0 stopped by a signal, 1 internal error or the model failed, 2 bad
configuration or model, or the address is in use, 130/143 stopped at once by a
second signal.
"""
_INIT_EPILOG = """
\b
Examples:
  asyncgen init my.yaml
  asyncgen init my.yaml --force

\b
Exit codes: 0 written, 2 not written (the file exists, say).
"""
_SCHEMA_EPILOG = """
\b
Examples:
  asyncgen schema
  asyncgen schema --output asyncgen.schema.json --force

\b
Exit codes: 0 written, 2 not written (the file exists, say).
"""
_VERIFY_EPILOG = """
\b
Examples:
  asyncgen verify config.yaml
  asyncgen verify stories.jsonl
  asyncgen verify stories.run.json

\b
Exit codes: 0 sound, 2 damaged or not there.
"""
_REPAIR_EPILOG = """
\b
Examples:
  asyncgen repair config.yaml
  asyncgen repair stories.jsonl --to saved.jsonl

\b
Exit codes: 0 saved, 2 nothing to read or a file in the way.
"""


class _Group(TyperGroup):
    """Commands; a configuration in the place of one is answered with what was meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that ``args`` begin with."""
        name = args[0]
        if name not in self.commands and (name.endswith((".yaml", ".yml", ".json")) or is_file(Path(name))):
            raise InputError(f"{name} is no command", hint=f"did you mean: asyncgen run {' '.join(args)}")
        return super().resolve_command(ctx, args)


class _Command(TyperCommand):
    """A command with settings; a key of the configuration in the place of an option is answered with ``--set``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        options = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        for place, arg in enumerate(args):
            option, given, value = arg.partition("=")
            keys = keys_called(option[2:].replace("-", "_")) if option[:2] == "--" and option not in options else []
            if keys:
                following = args[place + 1 : place + 2]
                value = value if given else "".join(each for each in following if each[:1] != "-") or "VALUE"
                meant = " or ".join(f"--set {shlex.quote(f'{key}={value}')}" for key in keys)
                raise InputError(f"{option} is no option of {ctx.info_name}", hint=f"did you mean: {meant}")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="asyncgen",
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Synthetic text data sets from a language model: validated, never lost, never repeated.",
    epilog="Short forms: --config FILE is run FILE, --create-config FILE is init FILE, and run's options work alone.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Options that stand before any command."""
    if version:
        typer.echo(f"asyncgen {asyncgen.__version__}")
        raise typer.Exit


app.command("run", cls=_Command, epilog=_RUN_EPILOG)(with_settings(run_command))
app.command("check", cls=_Command, epilog=_CHECK_EPILOG)(with_settings(check_command, check_refused))
app.command("preview", cls=_Command, epilog=_PREVIEW_EPILOG)(with_settings(preview_command))
app.command("serve", cls=_Command, epilog=_SERVE_EPILOG)(with_settings(serve_command, read=read_server_settings))
app.command("init", epilog=_INIT_EPILOG)(init_command)
app.command("schema", epilog=_SCHEMA_EPILOG)(schema_command)
app.command("verify", epilog=_VERIFY_EPILOG)(verify_command)
app.command("repair", epilog=_REPAIR_EPILOG)(repair_command)
