"""One writer per output: a lock on a file beside it, which ends with the process that holds it, however that ends.

The file stays: somebody else may be waiting with it open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from asyncgen.errors import OutputInUse
from asyncgen.output.places import Places

__all__ = ["Lock", "is_written", "while_not_written"]


class Lock:
    """The lock of one output."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = FileLock(places.lock, thread_local=False)

    def take(self) -> None:
        """Raises OutputInUse, and OSError if there can be no lock."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            if not self._places.lock.exists():  # nobody holds it: this is how filelock says that it cannot be made
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise OutputInUse(
                f"{self._places.stories} is being written by another run",
                hint="wait for it, or give another output_path",
            ) from error

    def release(self) -> None:
        """Does nothing if it is not held."""
        self._lock.release()


@contextmanager
def while_not_written(places: Places) -> Iterator[None]:
    """No run of ours can write the output meanwhile. Raises OutputInUse if one does. Makes no file.

    Where no lock file is, there was no run; one that may not be opened is on a disk that takes no records either.
    """
    lock = Lock(places)
    if places.lock.exists():
        try:
            lock.take()
        except OutputInUse as error:
            raise OutputInUse(error.message, hint="wait for it, or stop it first") from error
        except OSError:
            pass
    try:
        yield
    finally:
        lock.release()


def is_written(places: Places) -> bool:
    """Whether a run is writing the output at this moment."""
    try:
        with while_not_written(places):
            return False
    except OutputInUse:
        return True
