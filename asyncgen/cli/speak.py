"""Results go to standard output; what a person should know meanwhile goes to standard error (``dashboard.tell``)."""

from __future__ import annotations

import os
import signal

from asyncgen.dashboard import tell

__all__ = ["say"]


def say(text: str) -> None:
    """Prints a result on standard output. A reader who has seen enough (``| head``) ends the process in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)  # flushing what is buffered would fail once more
    except OSError as error:
        tell(f"asyncgen: error: standard output cannot be written: {error.strerror}")
        os._exit(1)  # flushing what is buffered would fail once more
