"""The command line on a disk that fails: ``ASYNCGEN_FAIL=write:3:28 python -m tests.faults.failing run ...`` lets the
third write in the current folder, and all that follow, fail with error number 28. Groups are committed, and manifests
replaced, at every write.
"""

from __future__ import annotations

import os
from pathlib import Path

from asyncgen.cli import main
from asyncgen.output import writer
from tests.faults.disk import FailAt, shown

if __name__ == "__main__":
    operation, at, number = os.environ["ASYNCGEN_FAIL"].split(":")
    writer.GROUP_SECONDS = writer.MANIFEST_SECONDS = 0.0
    with shown(Path.cwd(), FailAt(operation, int(at), int(number), lasting=True)):
        main()
