"""``python -m asyncgen``, and the console script."""

import os
import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Runs the command line.

    An interrupt while that is still being imported ends the process at once: nothing has been begun, and an exception
    there would surface as whatever the interrupted import makes of it (pydantic turns it into a SchemaError).
    """
    importing = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, under nohup say
    if importing:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        from asyncgen.cli import main as run_command_line  # noqa: PLC0415  # takes a third of a second

        if importing:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run_command_line()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            _leave()
        raise


def _leave() -> None:
    """Ends with 130. CPython would now and then end with SIGINT itself: it remembers an interrupt that fell into an
    ``exec`` (a dataclass being made, say) as unhandled, although it was handled further up.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # not there, not writable or closed: nobody is listening
            continue
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
