"""Writing to a terminal that may be held (Ctrl-S), or to a pipe that nobody reads, without waiting for it."""

from __future__ import annotations

import io
import os
import stat
import threading
import time
from contextlib import suppress
from typing import TextIO
from weakref import WeakSet

__all__ = ["Patient", "terminals_held", "wait_for_terminals"]

LAST_WORDS_SECONDS = 5.0
"""Time for a reader of what is no terminal to take the last words: nobody can see that they are waited for."""
MOST = 1_000_000
"""Characters that may wait for a terminal; what is told beyond them is lost."""


class Patient:
    """A stream in front of ``out``. What is written waits until ``send``, then a thread passes it on, however long the
    terminal takes; the thread ends when nothing is left. It is a daemon, and holds no lock of Python's streams while
    it waits: a terminal that is never released must not keep the process from ending.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._lock = threading.Lock()
        self._pending: list[str] = []
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.encoding = out.encoding
        _patients.add(self)

    @staticmethod
    def of(out: TextIO) -> Patient | None:
        """The one in front of ``out``, if there is one."""
        return next((each for each in list(_patients) if each.out is out), None)

    @staticmethod
    def before(out: TextIO) -> Patient | None:
        """The one in front of ``out``, made if there is none; None if ``out`` never lets one wait."""
        with _making:
            found = Patient.of(out)
            return Patient(out) if found is None and _may_wait(out) else found

    @property
    def held(self) -> bool:
        """Whether the terminal has not yet taken what was sent."""
        return self._thread is not None

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be told."""
        return sum(map(len, self._pending)) > MOST

    def fileno(self) -> int:
        """That of the terminal."""
        return self.out.fileno()

    def isatty(self) -> bool:
        """Whether it is one."""
        return self.out.isatty()

    def write(self, text: str) -> int:
        """Keeps the text for ``send``."""
        with self._lock:
            self._pending.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing: tqdm flushes each line of many that belong together."""

    def send(self) -> None:
        """Passes on what was written. Raises what went wrong the last time: OSError or ValueError."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._thread is None and self._pending:
                self._thread = threading.Thread(target=self._pass_on, name="asyncgen terminal", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the system gives none now; the next one passes this on too
                    self._thread = None
                    _without_thread.add(self)
                else:
                    _without_thread.discard(self)

    def wait(self, seconds: float | None = None) -> None:
        """Waits until everything has been passed on, or for so long."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def _pass_on(self) -> None:
        while True:
            with self._lock:
                text = "".join(self._pending)
                self._pending.clear()
                if not text or self._error is not None:
                    self._thread = None
                    return
            try:
                self._put(text)
            except (OSError, ValueError) as error:
                self._error = error

    def _put(self, text: str) -> None:
        if not (self.out.isatty() or _may_wait(self.out)):
            self.out.write(text)
            self.out.flush()
            return
        self.out.flush()
        errors = self.out.errors
        rest = memoryview(text.encode(self.out.encoding, "replace" if errors in (None, "strict") else errors))
        while rest:
            rest = rest[os.write(self.out.fileno(), rest) :]


_patients: WeakSet[Patient] = WeakSet()
_making = threading.Lock()
_without_thread: set[Patient] = set()  # they have something to pass on, and nobody else keeps them


def _may_wait(out: TextIO) -> bool:
    """Whether writing may have to wait for somebody: it leads to no regular file, but to a terminal or a pipe."""
    if not isinstance(out, io.TextIOWrapper):
        return False
    try:
        return not stat.S_ISREG(os.fstat(out.fileno()).st_mode)
    except (OSError, ValueError):  # no file at all, or one that is closed
        return False


def terminals_held() -> bool:
    """Whether one of them has not taken everything yet."""
    return any(each.held for each in list(_patients))


def wait_for_terminals() -> None:
    """Waits until the terminals have taken everything, and a few seconds for whoever reads a pipe."""
    end = time.monotonic() + LAST_WORDS_SECONDS
    for each in list(_patients):
        with suppress(OSError, ValueError):  # gone, or closed
            each.send()
            each.wait(None if each.isatty() else max(0.0, end - time.monotonic()))
