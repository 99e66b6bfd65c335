"""``python -m benchmarks.soak``: a run under everything at once, for an hour, and the same run left alone.

    python -m benchmarks.soak                 # an hour under faults, then some minutes to make the plan once more
    python -m benchmarks.soak --minutes 5
    python -m benchmarks.soak --write         # and keeps the result in benchmarks/results/

The echo backend makes stories while its sessions are killed, told to stop, or fail; its disk, its checks and its source
are slow, the clock jumps by days, and one record in a hundred is poisoned. A third of the time is one session that goes
on while it is looked at. Then ``num_stories`` is set to a little more than there is, reached under some more kills, and
the same plan is made by a run that is left alone. Passed, if

- each index of the plan is exactly once in the stories or in the rejects, in order, and there are exactly N stories;
- the records of both runs, timings aside, have the same SHA-256, and ``verify`` finds both sound;
- memory of the long session did not grow by more than 4 MiB between its first and last third (after a fifth of warming
  up), 9 bytes a story aside, by which repeats are known; neither did its open files and its threads;
- no file is left behind in the output's or the temporary folder, and every session ended as it was told to.

Whatever ends it, no session is left running. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.environment import describe, save
from benchmarks.soak.plan import Scale
from benchmarks.soak.run import Result, soak


def main() -> None:
    """Runs, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="time under faults (60)")
    parser.add_argument("--seed", type=int, default=None, help="of what is chance (a new one each time)")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    # Started in the background of a shell it would be ignored, and by every session too, which is to be told by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scale = Scale(seconds=60 * options.minutes)
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    facts = describe(f"{scale.text}; seed {seed}")
    print(json.dumps(facts, indent=2), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="asyncgen-soak-"))
    keep = False
    try:
        result = soak(folder, scale, seed, lambda text: print(text, flush=True))
        keep = not result.passed
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if not keep:
            shutil.rmtree(folder)
    print(f"\n{table(result)}\n\n{f'FAIL; what it left is in {folder}' if keep else 'PASS'}")
    if options.write:
        print(f"kept in {save('soak', facts, result.as_json())}")
    sys.exit(not result.passed)


def table(result: Result) -> str:
    """What was injected how often, and what was found, as two markdown tables."""
    lines = ["| injected | times |", "|---|---|"]
    lines += [f"| {what} | {count} |" for what, count in result.injected.items()]
    lines += ["", "| asked | found | |", "|---|---|---|"]
    lines += [f"| {each.asked} | {each.found} | {'pass' if each.passed else 'FAIL'} |" for each in result.verdicts]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
