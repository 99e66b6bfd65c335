"""Whether validators hide behind generation: the generator's busy share, on an ``echo`` that takes 50 ms a batch.

    python -m benchmarks.overlap               # about a minute; --quick: fewer stories
    python -m benchmarks.overlap --write       # also into benchmarks/results/

An async check that waits 5 ms a story must cost the generator nothing: it is to be busy 98 % of the run or more. One
that cannot keep up, at two stories at once and 40 ms each, sets the pace, and the generator must wait for it: the busy
share is then what the check's speed allows. Every run is the whole of ``asyncgen.run``, files included, in a process
of its own; the share is of the time from the first prompt planned to the last record on disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, save

BATCH_SECONDS = 0.05
AIM = 0.98
SLOW_STORIES = 128

CHECKS = """
import anyio

async def wait(completion, seconds):
    await anyio.sleep(seconds)
"""

CHILD = """
import json, sys
import anyio, asyncgen
config = asyncgen.load_config(None, json.loads(sys.argv[1]))
s = anyio.run(asyncgen.run, config).snapshot
print(json.dumps({"busy": s.busy, "seconds": s.seconds, "stories/s": s.stories_per_second,
                  "in checks at once": s.validator_seconds.get("wait", 0.0) / s.seconds,
                  "rows filled": s.rows_filled / s.rows_offered}))
"""

VARIANTS: dict[str, dict[str, float] | None] = {
    "no check": None,
    "check of 5 ms, 16 at once": {"seconds": 0.005, "concurrency": 16},
    "check of 40 ms, 2 at once": {"seconds": 0.04, "concurrency": 2},
}


def run_child(folder: Path, rows: int, stories: int, check: dict[str, float] | None) -> dict[str, float]:
    """One run in its own process and folder."""
    output = Path(tempfile.mkdtemp(dir=folder)) / "stories.jsonl"
    overrides = [
        f"backend={{kind: echo, seconds_per_batch: {BATCH_SECONDS}}}",
        f"generation.batch_size={rows}",
        f"num_stories={stories}",
        f"output_path={output}",
    ]
    if check is not None:
        function = {
            "function": f"{folder / 'checks.py'}:wait",
            "parameters": {"seconds": check["seconds"]},
            "concurrency": check["concurrency"],
        }
        overrides.append(f"validation.functions={json.dumps([function])}")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(overrides)], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(folder: Path, rows: int, batches: int, rounds: int) -> dict[str, dict[str, float]]:
    """The medians of each variant, run in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, check in VARIANTS.items():
            stories = SLOW_STORIES if check is not None and check["concurrency"] == 2 else rows * batches
            found[name].append(run_child(folder, rows, stories, check))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}


def main() -> None:
    """Measures, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer stories, about ten seconds")
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args()
    batches, rounds = (40, 1) if options.quick else (80, 3)
    environment = describe(f"echo, {BATCH_SECONDS * 1000:g} ms a batch, {batches} batches; median of {rounds}")
    print(json.dumps(environment, indent=2))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checks.py").write_text(CHECKS, encoding="utf-8")
        for rows in (8, 32):
            for variant, figures in measure(folder, rows, batches, rounds).items():
                results[f"batches of {rows}, {variant}"] = figures
                line = "  ".join(f"{key} {value:.3f}" for key, value in figures.items())
                print(f"batches of {rows:2}, {variant:26} {line}", flush=True)
    busy = min(figures["busy"] for name, figures in results.items() if "5 ms" in name)
    print(f"generator busy beside checks of 5 ms: {busy:.1%} (aim {AIM:.0%}{'' if busy >= AIM else ', MISSED'})")
    if options.write:
        print(f"kept in {save('overlap', environment, results)}")


if __name__ == "__main__":
    main()
