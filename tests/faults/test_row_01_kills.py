"""Row 1: SIGKILL at random moments, while resuming too. Resumed each time, a run has the lines of one left alone."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from asyncgen.resources import bundled_model
from tests.faults.conftest import Trials
from tests.programs import asyncgen, records, start

pytestmark = pytest.mark.timeout(1200)


def kill_and_resume(arguments: tuple[str, ...], folder: Path, kills: int, longest: float, seed: int) -> int:
    """Starts the run again and again, killing it after random seconds, until it is complete; the kills."""
    rng = random.Random(seed)
    done = 0
    while True:
        run = start("run", *arguments, cwd=folder)
        if done < kills:
            time.sleep(rng.uniform(0.0, longest))
            run.kill()
        _, messages = run.communicate(timeout=300)
        if run.returncode == 0:
            return done
        assert run.returncode == -signal.SIGKILL, messages
        done += 1


def test_an_echo_run_killed_equals_the_whole_one(tmp_path: Path, trials: Trials) -> None:
    wanted = trials(10, 200)
    settings = ("--set", "backend={kind: echo, bad_share: 0.4, distinct: 4000}", "--set", "max_attempts=2")
    arguments = (*settings, "--set", "window=64", "--num-stories", str(60 * wanted))
    whole = asyncgen("run", *arguments, "--output-path", "whole.jsonl", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    # Slowed down, so that the kills fall into the work and not only into the start; speed changes no record.
    slow = ("--set", "backend.seconds_per_batch=0.05", "--output-path", "killed.jsonl")
    kills = kill_and_resume((*arguments, *slow), tmp_path, wanted, 1.2, seed=3)
    assert kills >= 0.8 * wanted, f"only {kills} kills: the run is too short for this test"
    for name in ("{}.jsonl", "{}.rejected.jsonl"):
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))
    assert records(tmp_path / "killed.rejected.jsonl"), "the run must have rejections for this to mean much"


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_a_run_of_the_bundled_model_killed_equals_the_whole_one(tmp_path: Path, trials: Trials) -> None:
    """Killed each time when a random number of stories is on disk."""
    kills = trials(1, 20)
    stories = 8 * kills + 4
    settings = ("generation.max_new_tokens=160", "generation.batch_size=8", "window=24", "k_shot_count=1")
    arguments = (*(part for setting in settings for part in ("--set", setting)), "--num-stories", str(stories))
    whole = asyncgen("run", *arguments, "--output-path", "whole.jsonl", cwd=tmp_path, timeout=500)
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(5)
    for lines in sorted(rng.randint(0, stories - 6) for _ in range(kills)):
        run = start("run", *arguments, "--output-path", "killed.jsonl", cwd=tmp_path)
        while run.poll() is None and _lines(tmp_path / "killed.jsonl") <= lines:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        run.kill()
        _, messages = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGKILL, messages
    last = asyncgen("run", *arguments, "--output-path", "killed.jsonl", cwd=tmp_path, timeout=500)
    assert last.returncode == 0, last.stderr
    for name in ("{}.jsonl", "{}.rejected.jsonl"):
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else -1
