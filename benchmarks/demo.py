"""What the in-flight engine does for the demo: the quickstart with ``static`` and with ``slots``, in turn.

    python -m benchmarks.demo                  # five rounds of both, a few minutes; --quick: one, of few stories
    python -m benchmarks.demo --write          # also into benchmarks/results/

Every run is the whole of ``asyncgen run configs/quickstart.yaml``, files included, in a process of its own, both with
``batch_size: auto``. Two times are taken: from the first prompt planned to the last record on disk, and from the start
of the process to its end, which has the import of torch and the loading of the model in it. The ratio of a round is
``static``'s time over ``slots``'s; who goes first changes from round to round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.environment import ROOT, describe, save

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
KINDS = ("static", "slots")
TIMES = ("generating", "whole process")

CHILD = """
import json, sys
import anyio, asyncgen
config = asyncgen.load_config(sys.argv[1], json.loads(sys.argv[2]))
s = anyio.run(asyncgen.run, config).snapshot
print(json.dumps({"generating": s.seconds, "tokens/s": s.tokens_per_second, "attempts": s.attempts, "in use": s.fill}))
"""


def run_child(kind: str, stories: int | None, folder: Path) -> dict[str, float]:
    """The quickstart with one engine."""
    output = Path(tempfile.mkdtemp(dir=folder)) / "stories.jsonl"
    overrides = [f"backend.kind={kind}", "generation.batch_size=auto", f"output_path={output}"]
    if stories is not None:
        overrides.append(f"num_stories={stories}")
    began = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(QUICKSTART), json.dumps(overrides)],
        env=({"OMP_WAIT_POLICY": "passive"} if kind == "static" else {}) | os.environ,  # as the command line has it
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout) | {"whole process": perf_counter() - began}
    return result


def measure(rounds: int, stories: int | None, folder: Path) -> dict[str, list[dict[str, float]]]:
    """The runs of each engine, round by round."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            found[kind].append(run_child(kind, stories, folder))
            figures = "  ".join(f"{name} {value:,.2f}" for name, value in found[kind][-1].items())
            print(f"round {number + 1}, {kind:7} {figures}", flush=True)
    return found


def ratios(found: dict[str, list[dict[str, float]]], time: str) -> dict[str, float]:
    """Of each round, ``static``'s time over ``slots``'s: median, least and most."""
    each = [one[time] / other[time] for one, other in zip(found["static"], found["slots"], strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def main() -> None:
    """Measures, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of both engines")
    parser.add_argument("--quick", action="store_true", help="one round of two stories")
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args()
    rounds, stories = (1, 2) if options.quick else (options.rounds, None)
    environment = describe(f"configs/quickstart.yaml, batch_size auto; {rounds} rounds, median (min to max) of ratios")
    print(json.dumps(environment, indent=2))
    with tempfile.TemporaryDirectory() as name:
        found = measure(rounds, stories, Path(name))
    compared = {time: ratios(found, time) for time in TIMES}
    for time, ratio in compared.items():
        spread = f"({ratio['min']:.2f} to {ratio['max']:.2f})"
        print(f"{time}: slots is {ratio['median']:.2f} {spread} times as fast as static")
    if options.write:
        print(f"kept in {save('demo', environment, {'ratios': compared, 'runs': found})}")


if __name__ == "__main__":
    main()
