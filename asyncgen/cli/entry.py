"""``main``: from arguments to an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn, TextIO

from asyncgen import errors
from asyncgen.cli.app import app
from asyncgen.cli.leaving import end_soon
from asyncgen.cli.signals import stop_when_told
from asyncgen.dashboard import tell, wait_for_terminals

__all__ = ["EXIT_CODES", "main"]

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.InputError, 2),
    (errors.ResumeRefused, 2),
    (errors.OutputDamaged, 2),
    (errors.OutputInUse, 3),
    (errors.TooManyRejections, 4),
    (errors.SourcesEnded, 5),
    (errors.ServerFailed, 69),
    (errors.OutputFailed, 74),
)
"""First match wins; 0 complete, 1 any other error, 130 and 143 stopped by SIGINT and SIGTERM."""

_ROOT_OPTIONS = frozenset({"-h", "--help", "--version", "--install-completion", "--show-completion"})


def main() -> NoReturn:
    """Entry point of ``python -m asyncgen`` and of the console script."""
    stop_when_told()
    _make_streams_forgiving()
    _make_current_folder_importable()
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("-") and arguments[0] not in _ROOT_OPTIONS:
        arguments.insert(0, "run")
    try:
        app(arguments, prog_name="asyncgen")
    except OSError as error:
        if not (_fails(sys.stderr) or _fails(sys.stdout)):
            raise
        tell(f"asyncgen: error: standard output cannot be written: {error.strerror}")
        os._exit(getattr(error.__context__, "exit_code", 1))  # that of the message that could not be shown
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        tell(
            f"asyncgen: error: {error.object}: the locale has no such characters\n  set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        )
        sys.exit(2)
    except errors.AsyncgenError as error:
        tell(f"asyncgen: error: {error}")
        sys.exit(_exit_code(error))
    finally:
        wait_for_terminals()  # the last words wait for one that is held, like those of any program
        end_soon(sys.exception())
    sys.exit(0)


def _make_streams_forgiving() -> None:
    """What is shown to a person never fails for its characters, nor because a stream was closed from the beginning:
    then it leads nowhere, and no file of the run gets its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fails(stream: TextIO) -> bool:
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _make_current_folder_importable() -> None:
    """As ``python -m`` does, so that ``module:function`` means the same for the console script."""
    if sys.flags.safe_path:  # whoever set it does not want this
        return
    try:
        folder = os.getcwd()  # noqa: PTH109  # a text is what belongs into sys.path
    except FileNotFoundError:
        return
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _exit_code(error: BaseException) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
