"""The command line, held at its start: ``python -m tests.faults.racing run ...`` says that it is ready, and begins when
its standard input has a line. So two of them begin at the same moment, however long Python takes.
"""

from __future__ import annotations

import sys

import asyncgen.session
from asyncgen.cli import main

if __name__ == "__main__":
    assert asyncgen.session, "what a run needs is loaded"
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    main()
