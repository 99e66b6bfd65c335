"""Log records on the screen, where they do not tear the bars, and in a file. Only programs call this: the library logs
to ``logging.getLogger("asyncgen.…")``, at info and debug, and configures nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from asyncgen.dashboard import tell
from asyncgen.errors import ConfigError
from asyncgen.paths import exists

__all__ = ["LEVELS", "configure"]

LEVELS = ("debug", "info", "warning", "error")

OTHERS = ("transformers", "huggingface_hub", "py.warnings", "uvicorn")
"""Loggers of others that are shown too, from warnings on."""


@contextmanager
def configure(level: str, file: Path | None = None) -> Iterator[None]:
    """Shows records of ``level`` and above until left, with their time also in ``file``, which is appended to.

    Python's warnings come along. Everything is as it was before when this ends. Raises ConfigError for a level that is
    none and a file that cannot be written.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level: {level!r} is none", hint=", ".join(LEVELS))
    lowest = getattr(logging, level.upper())
    with ExitStack() as stack:
        handlers: list[logging.Handler] = [_Screen()]
        if file is not None:
            handlers.append(stack.enter_context(_opened(file)))
        for handler in handlers:
            handler.setLevel(lowest)
            handler.addFilter(_worth_showing)
        logger = logging.getLogger("asyncgen")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(lowest)
        for name in ("asyncgen", *OTHERS):
            stack.enter_context(_heard_by(handlers, name))
        stack.enter_context(_warnings_as_records())
        yield


class _Screen(logging.Handler):
    """Writes records between the bars."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler.emit``."""
        _take_over(record.name.partition(".")[0])
        try:
            tell(self.format(record))
        except Exception:  # noqa: BLE001  # what logging does with a record whose arguments are wrong
            self.handleError(record)


class _File(logging.FileHandler):
    """Appends records with their time. When the disk is full they are lost, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Says nothing: a traceback for each record would tear the bars."""


@contextmanager
def _opened(file: Path) -> Iterator[logging.Handler]:
    if exists(file) and file.is_fifo():  # opening it would wait for a reader
        raise ConfigError(f"{file}: the log cannot be written: it is not a regular file")
    try:
        handler = _File(file, encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError: no name at all for this system
        raise ConfigError(f"{file}: the log cannot be written: {getattr(error, 'strerror', error)}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        yield handler
    finally:
        with suppress(OSError):  # a full disk
            handler.close()


def _worth_showing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == "asyncgen"


@contextmanager
def _heard_by(handlers: Sequence[logging.Handler], name: str) -> Iterator[None]:
    """The logger ``name`` writes to ``handlers``, and to those alone if it is one of others."""
    logger = logging.getLogger(name)
    before = list(logger.handlers)
    _take_over(name)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.handlers[:] = before


def _take_over(name: str) -> None:
    """Takes away the handlers that transformers and huggingface_hub give themselves when imported, which may be
    later than now: they write to standard error, in the middle of the bars, what is shown here anyway.
    """
    logger = logging.getLogger(name)
    for handler in list(logger.handlers) if name in OTHERS else ():
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)


@contextmanager
def _warnings_as_records() -> Iterator[None]:
    before = warnings.showwarning
    logging.captureWarnings(True)
    try:
        yield
    finally:
        if warnings.showwarning is not before:
            logging.captureWarnings(False)
