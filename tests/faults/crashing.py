"""The command line, killed at a named place: ``ASYNCGEN_CRASH=POINT:N python -m tests.faults.crashing run ...`` ends
itself with SIGKILL when it comes to POINT for the N-th time. Groups are committed, and manifests replaced, at every
write.
"""

from __future__ import annotations

import os
import signal
import sys

from asyncgen.cli import main
from asyncgen.output import writer
from asyncgen.output.points import POINTS, points


def crash_at(wanted: str, number: int) -> None:
    """Installs the end of this process."""
    if wanted not in POINTS:
        sys.exit(f"no such point: {wanted}")
    left = number

    def at(name: str) -> None:
        nonlocal left
        left -= name == wanted
        if name == wanted and not left:
            os.kill(os.getpid(), signal.SIGKILL)

    points.at = at


if __name__ == "__main__":
    point, _, times = os.environ["ASYNCGEN_CRASH"].partition(":")
    crash_at(point, int(times))
    writer.GROUP_SECONDS = writer.MANIFEST_SECONDS = 0.0
    main()
