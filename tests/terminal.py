"""A real pseudo-terminal with a program in it, and an emulator that shows what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

from tests.programs import environment


class Terminal:
    """``python ARGUMENTS`` in a terminal of this size; ``screen`` is what it shows, ``raw`` all it was sent."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        *,
        columns: int = 100,
        rows: int = 30,
        env: dict[str, str] | None = None,
    ) -> None:
        self.screen = pyte.Screen(columns or 80, rows)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._main, terminal = pty.openpty()
        self._set_size(columns, rows)
        variables = environment(**{"TERM": "xterm"} | (env or {}))
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=variables, stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)

    @property
    def lines(self) -> list[str]:
        """What the screen shows, without the blanks at the right and at the bottom."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().splitlines()

    def follow(self, until: Callable[[], bool] = lambda: False, each: Callable[[], object] = lambda: None) -> None:
        """Shows what comes, calling ``each`` after every piece, ``until`` that is true or the program has closed it."""
        while not until():
            try:
                part = os.read(self._main, 4096)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            self.raw += part
            self._stream.feed(part)
            each()

    def resize(self, columns: int, rows: int) -> None:
        """As a person would with the mouse."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def vanish(self) -> None:
        """Closes the window."""
        os.close(self._main)

    def wait(self) -> int:
        """The exit status of the program, once it has ended; closes the window."""
        status = self.process.wait(60)
        self.vanish()
        return status

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
