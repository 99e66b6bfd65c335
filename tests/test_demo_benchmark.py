"""The benchmark of the demo runs, and its ratio is what it says."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from asyncgen.resources import bundled_model
from benchmarks.demo import ratios
from tests.programs import ROOT, environment


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_the_quick_run_compares_both_engines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.demo", "--quick"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^round 1, (\w+) ", done.stdout, re.MULTILINE) == ["static", "slots"]
    lines = re.findall(
        r"^(.*): slots is [\d.]+ \([\d.]+ to [\d.]+\) times as fast as static$", done.stdout, re.MULTILINE
    )
    assert lines == ["generating", "whole process"]


def test_a_ratio_compares_the_runs_of_one_round() -> None:
    runs = {"static": [8.0, 30.0, 12.0], "slots": [4.0, 10.0, 8.0]}
    found = {kind: [{"generating": seconds} for seconds in each] for kind, each in runs.items()}
    assert ratios(found, "generating") == {"median": 2.0, "min": 1.5, "max": 3.0}
