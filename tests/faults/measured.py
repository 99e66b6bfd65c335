"""The command line, and how much memory it took: ``python -m tests.faults.measured FILE run ...`` leaves in FILE the
most kilobytes that it held at once. What is counted for whoever waits (``ru_maxrss``) has that one's own memory in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from asyncgen.cli import main

STATUS = Path("/proc/self/status")

if __name__ == "__main__":
    kept = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        [peak] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        kept.write_text(peak.split()[1])
