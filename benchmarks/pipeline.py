"""The pipeline without a model: records a second, memory, resume and start-up, on the ``echo`` backend.

    python -m benchmarks.pipeline              # all of it, about five minutes; --quick: smaller numbers
    python -m benchmarks.pipeline --write      # also into benchmarks/results/

Every figure is measured in a process of its own. Variants that are compared run in turn, several times, and the
median counts: these machines are shared, and a neighbour slows whoever runs at that moment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.environment import describe, save

ECHO = ["backend={kind: echo}", "generation.batch_size=32"]
OFF = ["validation.enabled=false"]

CHILD = """
import json, resource, sys, time
import anyio, asyncgen
config = asyncgen.load_config(None, json.loads(sys.argv[1]))
run = asyncgen.run  # imported here: start-up is measured by itself
began = time.perf_counter()
report = anyio.run(run, config)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
s = report.snapshot
print(json.dumps({"seconds": seconds, "new": s.new, "decided": s.accepted + s.rejected, "peak_mb": peak,
                  "torch": "torch" in sys.modules}))
"""


def run_child(output: Path, stories: int, *settings: str) -> dict[str, Any]:
    """One run in its own process; seconds from configuration to closed files."""
    overrides = [*ECHO, f"num_stories={stories}", f"output_path={output}", *settings]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(overrides)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def throughput(folder: Path, stories: int, rounds: int) -> dict[str, float]:
    """Records a second end to end, with and without validation, interleaved."""
    variants: dict[str, list[str]] = {"with validation": [], "without validation": OFF}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(rounds):
        for name, settings in variants.items():
            result = run_child(folder / f"{name.replace(' ', '-')}-{n}.jsonl", stories, *settings)
            rates[name].append(result["decided"] / result["seconds"])
    return {name: statistics.median(values) for name, values in rates.items()}


def memory(folder: Path, sizes: tuple[int, int]) -> dict[str, float]:
    """Peak memory in MB at two sizes, and seconds to find the larger one complete afterwards."""
    small = run_child(folder / "small.jsonl", sizes[0])
    large = run_child(folder / "large.jsonl", sizes[1])
    allowed = 20 + 8 * (sizes[1] - sizes[0]) / 2**20
    again = ["-m", "asyncgen", "run", *_flags(folder / "large.jsonl", sizes[1])]
    return {
        f"peak MB at {sizes[0]:,}": small["peak_mb"],
        f"peak MB at {sizes[1]:,}": large["peak_mb"],
        "growth MB": large["peak_mb"] - small["peak_mb"],
        "growth allowed MB": allowed,
        f"records/s at {sizes[1]:,}": large["decided"] / large["seconds"],
        f"resume of finished {sizes[1]:,} s": _median(lambda: _time(again), 3),
    }


def startup() -> dict[str, float]:
    """Seconds to import the package and to print the help, the interpreter's own start included."""
    return {
        "python -c pass s": _median(lambda: _time(["-c", "pass"]), 5),
        "import asyncgen s": _median(lambda: _time(["-c", "import asyncgen"]), 5),
        "--help s": _median(lambda: _time(["-m", "asyncgen", "--help"]), 5),
    }


def _flags(output: Path, stories: int) -> list[str]:
    overrides = [*ECHO, f"num_stories={stories}", f"output_path={output}"]
    return [part for override in overrides for part in ("--set", override)]


def _time(arguments: list[str]) -> float:
    began = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return perf_counter() - began


def _median(measure: Callable[[], float], times: int) -> float:
    return statistics.median(measure() for _ in range(times))


def main() -> None:
    """Measures, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller numbers, about a minute")
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args()
    stories, rounds, sizes = (5_000, 1, (2_000, 20_000)) if options.quick else (20_000, 3, (10_000, 1_000_000))
    environment = describe(
        f"echo, batches of 32, two k-shot examples; throughput of {stories:,} stories, median of {rounds}"
    )
    print(json.dumps(environment, indent=2))
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for measure in (startup, lambda: throughput(folder, stories, rounds), lambda: memory(folder, sizes)):
            results |= (part := measure())
            for key, value in part.items():
                print(f"{key:32} {value:,.3f}" if value < 100 else f"{key:32} {value:,.0f}", flush=True)
    if options.write:
        print(f"kept in {save('pipeline', environment, results)}")


if __name__ == "__main__":
    main()
