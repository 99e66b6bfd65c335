"""``python -m benchmarks.faults``: the whole fault matrix, every row with all its trials, as a table.

    python -m benchmarks.faults             # prints it: about twenty minutes on two cores
    python -m benchmarks.faults --write     # and keeps it in benchmarks/results/

A row is a file ``tests/faults/test_row_NN_NAME.py``; its trials are those that its tests note, or one for each. Other
tests of which ``make test`` has a share are run in full as well, without a row: if one fails, so does this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree as ET

from benchmarks.environment import ROOT, describe, save

_REPORT = ("-o", "junit_family=xunit1")
"""The newer one has no room for the trials that a test notes, and pytest then fails it."""
_BESIDES = (
    "tests/backends/slots/test_flows.py",
    "tests/output/test_kills.py",
    "tests/test_sources_resume.py",
    "tests/test_wheel.py",
)
"""Outside of ``tests/faults``, with more trials, or more tests, than in ``make test``."""
_ROW = re.compile(r"test_row_(\d+)_(\w+)")


@dataclass(slots=True)
class Row:
    """What became of one row of the matrix."""

    number: int
    name: str
    tests: int = 0
    trials: int = 0
    failures: int = 0
    skipped: int = 0
    seconds: float = 0.0


def run(jobs: int) -> tuple[int, list[Row]]:
    """Runs the tests; pytest's exit code, and the rows."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "tests/faults", *_BESIDES),
                *(*_REPORT, f"--junitxml={report}"),
            ],
            cwd=ROOT,
            env=os.environ | {"ASYNCGEN_FAULTS": "full"},
            check=False,
        )
        cases = ET.parse(report).getroot().iter("testcase")
        rows: dict[int, Row] = {}
        for case in cases:
            found = _ROW.search(case.get("classname", ""))
            if found is not None:
                _count(rows.setdefault(int(found[1]), Row(int(found[1]), found[2].replace("_", " "))), case)
    return done.returncode, sorted(rows.values(), key=lambda row: row.number)


def _count(row: Row, case: ET.Element) -> None:
    noted = [int(each.get("value", "1")) for each in case.iter("property") if each.get("name") == "trials"]
    row.tests += 1
    row.seconds += float(case.get("time", "0"))
    row.failures += any(case.find(kind) is not None for kind in ("failure", "error"))
    if case.find("skipped") is not None:
        row.skipped += 1
    else:
        row.trials += sum(noted) or 1


def table(rows: list[Row]) -> str:
    """The rows as a markdown table."""
    lines = ["| row | fault | tests | trials | failures | skipped | seconds |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.number} | {r.name} | {r.tests} | {r.trials} | {r.failures} | {r.skipped} | {r.seconds:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time (2)")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    options = parser.parse_args()
    facts = describe("the fault matrix, tests/faults")
    began = monotonic()
    code, rows = run(options.jobs)
    print(f"\n{json.dumps(facts, indent=2)}\n\n{table(rows)}\n\n{monotonic() - began:.0f} s")
    if options.write:
        print(f"kept in {save('faults', facts, {'rows': [asdict(row) for row in rows]})}")
    sys.exit(code)


if __name__ == "__main__":
    main()
