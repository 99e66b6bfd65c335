"""What the dashboard costs: CPU time of each refresh and of writing it, over the time of the run.

    python -m benchmarks.dashboard_cost            # about half a minute; --write: also into benchmarks/results/

The run stands in a real pseudo-terminal of 100 columns, on the ``echo`` backend with a pause in each batch, so that
figures change with every refresh. One per cent is what it may cost.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from benchmarks.environment import describe, save

ALLOWED = 0.01

CHILD = """
import json, sys, time
from pathlib import Path
import anyio, asyncgen
from asyncgen.dashboard import choose_view, patient, screen

spent, written = [], []
draw, put = screen.Screen.draw, patient.Patient._put

def timed(self, flow, **options):
    began = time.thread_time()
    draw(self, flow, **options)
    spent.append(time.thread_time() - began)

def timed_put(self, text):
    began = time.thread_time()
    put(self, text)
    written.append(time.thread_time() - began)

screen.Screen.draw, patient.Patient._put = timed, timed_put
config = asyncgen.load_config(None, json.loads(sys.argv[1]))
began = time.perf_counter()
report = anyio.run(lambda: asyncgen.run(config, watch=choose_view()))
seconds = time.perf_counter() - began
result = {"seconds": seconds, "refreshes": len(spent), "in refresh s": sum(spent + written)}
Path(sys.argv[2]).write_text(json.dumps(result))
"""


def measure(folder: Path, stories: int) -> dict[str, float]:
    """One run in a terminal; its time, its refreshes and what they cost."""
    result = folder / "result.json"
    settings = ["backend={kind: echo, seconds_per_batch: 0.05, bad_share: 0.1}", "generation.batch_size=16"]
    settings += [f"num_stories={stories}", f"output_path={folder / 'stories.jsonl'}"]
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
    run = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(settings), str(result)],
        env=environment | {"TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while part := _read(main):
        shown += part
    os.close(main)
    if run.wait() != 0:
        raise SystemExit(shown.decode(errors="replace"))
    found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return found | {
        "ms a refresh": 1000 * found["in refresh s"] / found["refreshes"],
        "share of the run": found["in refresh s"] / found["seconds"],
    }


def _read(main: int) -> bytes:
    try:
        return os.read(main, 65536)
    except OSError:  # the other end is closed
        return b""


def main() -> None:
    """Measures, prints, and with ``--write`` keeps; exit code 1 if it costs more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args()
    stories = 6_000
    environment = describe(f"echo with 50 ms a batch of 16, {stories:,} stories, pseudo-terminal of 100 columns")
    print(json.dumps(environment, indent=2))
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), stories)
    for key, value in results.items():
        print(f"{key:32} {value:,.4f}")
    if options.write:
        print(f"kept in {save('dashboard-cost', environment, results)}")
    if results["share of the run"] > ALLOWED:
        raise SystemExit(f"more than the {ALLOWED:.0%} that is allowed")


if __name__ == "__main__":
    main()
