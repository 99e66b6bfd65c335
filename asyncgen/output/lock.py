"""One writer per output: a lock on a file beside it, which ends with the process that holds it, however that ends.

The file stays: somebody else may be waiting with it open.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from asyncgen.errors import OutputInUse
from asyncgen.output.places import Places

__all__ = ["Lock", "is_written", "while_not_written"]

_LOOKING = 0.2
"""Seconds within which somebody who only looks has let go."""
_BY_ANOTHER = "{} is being written by another run"


class Lock:
    """The lock of one output."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = FileLock(places.lock, thread_local=False)

    def take(self) -> None:
        """Raises OutputInUse, and OSError if there can be no lock. Waits for somebody who only looks whether it is
        held.
        """
        try:
            self._lock.acquire(timeout=_LOOKING, poll_interval=_LOOKING / 20)
        except Timeout as error:
            if not self._places.lock.exists():  # nobody holds it: this is how filelock says that it cannot be made
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            hint = "wait for it, or give another output_path"
            raise OutputInUse(_BY_ANOTHER.format(self._places.stories), hint=hint) from error

    def release(self) -> None:
        """Does nothing if it is not held."""
        self._lock.release()


@contextmanager
def while_not_written(places: Places) -> Iterator[None]:
    """No run of ours can write the output meanwhile. Raises OutputInUse if one does, and OSError if nobody can tell.
    Makes no file, and needs no right to write: another user's run counts too.
    """
    try:
        descriptor = os.open(places.lock, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:  # there was no run
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            # Where there is no flock, filelock makes do with the file itself, and removes it when it is done.
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOSYS):
                raise
            raise OutputInUse(_BY_ANOTHER.format(places.stories), hint="wait for it, or stop it first") from error
        yield
    finally:
        os.close(descriptor)


def is_written(places: Places) -> bool:
    """Whether a run is writing the output at this moment. Raises OSError if nobody can tell."""
    try:
        with while_not_written(places):
            return False
    except OutputInUse:
        return True
