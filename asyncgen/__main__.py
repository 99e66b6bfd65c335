"""``python -m asyncgen``, and the console script."""

import os
import signal

__all__ = ["main"]


def main() -> None:
    """Runs the command line.

    A signal while that is still being imported ends the process at once: nothing has been begun, and an exception
    there would surface as whatever the interrupted import makes of it (pydantic turns it into a SchemaError).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _: os._exit(128 + received))
    for name in [each for each in os.environ if each.startswith("TQDM_") and each != "TQDM_DISABLE"]:
        del os.environ[name]  # tqdm reads them when it is imported, and fails with what it does not understand
    from asyncgen.cli import main as run_command_line  # noqa: PLC0415  # takes a third of a second

    run_command_line()


if __name__ == "__main__":
    main()
