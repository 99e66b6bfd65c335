"""The command line, with every look for another machine noted and refused: ``python -m tests.faults.listening FILE
run ...`` leaves in FILE a line for each address that was asked for.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from asyncgen.cli import main


def listen(kept: Path) -> None:
    """Installs the notes."""
    kept.write_text("")
    connect = socket.socket.connect

    def note(what: str, address: object) -> None:
        with kept.open("a") as file:
            file.write(f"{what} {address}\n")
        raise OSError("there is no network here")

    def connected(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            note("connect", address)
        connect(self, address)

    def found(host: Any, *_: Any, **__: Any) -> Any:
        note("getaddrinfo", host)

    socket.socket.connect = connected  # type: ignore[assignment, method-assign]  # with one argument, as it is called
    socket.getaddrinfo = found


if __name__ == "__main__":
    listen(Path(sys.argv.pop(1)))
    main()
