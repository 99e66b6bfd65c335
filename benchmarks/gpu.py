"""The engine on one GPU: is it right, how fast is it, against whom, and what each of its tricks is worth.

    python -m benchmarks.gpu --part check      # float64, generate, bits, memory, and single operations
    python -m benchmarks.gpu --part 3b         # Qwen2.5-3B's shape through the whole pipeline; 7b: 7B's
    python -m benchmarks.gpu --part peers      # generate and generate_batch, with the same weights
    python -m benchmarks.gpu --part ablation   # without each trick in turn
    python -m benchmarks.gpu --part all --minutes 9

Weights are random, made on the card, and scaled so that sampling is as sharp as a trained model's; no text ends by
itself, lengths are drawn beforehand. Nothing is downloaded. Each part runs in a process of its own, and in another one
if that loses the device. Results are written after every measurement to ``--out`` (``gpu-PART-DATE-COMMIT.json``), at
the end a picture of step times; what did not fit into ``--minutes`` is named there as not measured. One figure that
fails does not keep the others from being measured. ``--tiny --device cpu`` is for trying out the program.

A file holds ``environment``; ``results`` by the name of the measurement; ``failed`` with tracebacks; ``not measured``
with reasons; ``seconds`` that each took.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from asyncgen.backends.slots.gpu.opening import Means
from benchmarks.environment import ROOT
from benchmarks.on_gpu import picture
from benchmarks.on_gpu.against import ablation, peers
from benchmarks.on_gpu.check import check
from benchmarks.on_gpu.results import Gone, Results, facts
from benchmarks.on_gpu.scale import FULL, SMOKE, Scale, means_of
from benchmarks.on_gpu.speed import large, small

PARTS: dict[str, Callable[[Results, Scale, torch.device, Callable[[], Means | None]], None]] = {
    "check": check,
    "3b": small,
    "peers": peers,
    "ablation": ablation,
    "7b": large,
}
SHARES = {"check": 0.3, "3b": 0.24, "peers": 0.18, "ablation": 0.14, "7b": 0.14}
"""Of the time, for ``all``. What a part leaves is the next ones'."""
LOST = 75
"""Exit code of a process that lost the device."""
TRIES = 3
GRACE = 40
"""Seconds after its time in which a part may end a measurement, before its process is ended."""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", choices=("all", *PARTS), default="all")
    add("--minutes", type=float, default=8.5, help="for everything; what does not fit is not measured (8.5)")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results")
    add("--device", default="cuda")
    add("--tiny", action="store_true", help="shapes and numbers of a smoke run")
    add("--commit", default=os.environ.get("ASYNCGEN_COMMIT", ""), help="where there is no repository to ask")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("--resume", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(
    part: str,
    *,
    out: Path,
    minutes: float,
    device: str = "cuda",
    tiny: bool = False,
    commit: str = "",
    resume: bool = False,
    means: Callable[[], Means | None] | None = None,
) -> Path:
    """One part, in this process; gives the file with its results. ``means``: what the engine is made with, if not what
    it has on a GPU. Raises Gone if the device is lost.
    """
    place = torch.device("cuda:0" if device == "cuda" else device)
    results = Results(part, out, facts(place, commit), 60 * minutes, resume=resume)
    try:
        PARTS[part](results, SMOKE if tiny else FULL, place, means or partial(means_of, place))
    except Gone:
        results.say("the device answers no more")
        raise
    except Exception as error:  # noqa: BLE001  # outside of any measurement: a model that does not fit, say
        results.failed[part] = "".join(traceback.format_exception(error))
        results.say(f"FAILED: {type(error).__name__}: {error}")
    results.write()
    results.say(f"{len(results.found)} measured, {len(results.failed)} failed, {len(results.missing)} not measured")
    return results.file


def draw(out: Path) -> Path | None:
    """The picture of the latest results in ``out``."""
    newest: dict[str, Path] = {}
    for file in sorted(out.glob("gpu-*.json"), key=lambda file: file.stat().st_mtime):
        newest[file.name.split("-")[1]] = file
    files = [newest[part] for part in ("3b", "7b") if part in newest]
    if not files:
        return None
    about = json.loads(files[-1].read_text(encoding="utf-8"))["environment"]
    name = f"gpu-steps-{about['date']}-{about['commit']}"
    where = about["hardware"].get("gpu", about["hardware"]["cpu"])
    return picture.write(
        out, name, picture.points(files), f"A decode step on {where}, {about['date']}, {about['commit']}"
    )


def supervise(chosen: argparse.Namespace) -> None:
    """Each part in a process of its own."""
    names = list(PARTS) if chosen.part == "all" else [chosen.part]
    until = monotonic() + 60 * chosen.minutes
    for number, part in enumerate(names):
        rest = sum(SHARES[each] for each in names[number:])
        end = monotonic() + (until - monotonic()) * SHARES[part] / rest
        for attempt in range(TRIES):
            seconds = end - monotonic()
            if attempt and seconds < 20:
                break
            if _child(chosen, part, max(1.0, seconds), resume=attempt > 0) == 0:
                break
            print(f"{part}: its process ended early", flush=True)
    path = draw(chosen.out)
    print(f"picture: {path}" if path else "there are no steps to draw", flush=True)


def _child(chosen: argparse.Namespace, part: str, seconds: float, *, resume: bool) -> int:
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", "--part", part, "--minutes", f"{seconds / 60:.4f}"]
    command += ["--out", str(chosen.out), "--device", chosen.device, "--commit", chosen.commit]
    command += ["--tiny"] * chosen.tiny + ["--resume"] * resume
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    try:
        return subprocess.run(command, env=environment, check=False, timeout=seconds + GRACE + 20).returncode
    except subprocess.TimeoutExpired:
        print(f"{part}: ended, it took too long", flush=True)
        return 1


def main() -> None:
    """Measures what was asked for."""
    chosen = options()
    chosen.out = chosen.out.resolve()
    if not chosen.child:
        supervise(chosen)
        return
    # A hang shows where it is, and ends: the rest is worth more.
    faulthandler.dump_traceback_later(60 * chosen.minutes + GRACE, exit=True)
    try:
        measure(
            chosen.part,
            out=chosen.out,
            minutes=chosen.minutes,
            device=chosen.device,
            tiny=chosen.tiny,
            commit=chosen.commit,
            resume=chosen.resume,
        )
    except Gone:
        sys.exit(LOST)


if __name__ == "__main__":
    main()
