"""Row 31: one process serves, another generates through it; SIGKILL of either at random moments changes no record."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from asyncgen.resources import bundled_model
from tests.faults.conftest import Trials
from tests.programs import asyncgen, records, start
from tests.server.serving import Served, serving

pytestmark = pytest.mark.timeout(1200)

SLOW_ECHO = ("--batch-size", "16", "--set", "backend={kind: echo, bad_share: 0.3, seconds_per_batch: 0.05}")
"""Some answers are too short for any check; speed changes no record."""
NAMES = ("{}.jsonl", "{}.rejected.jsonl")


def through(served: Served, stories: int, name: str, *settings: str) -> tuple[str, ...]:
    """The arguments of a run that generates through a server."""
    backend = f"backend={{kind: openai, base_url: '{served.url}/v1', patience: 60, timeout: 20}}"
    return (
        *("--set", backend, "--num-stories", str(stories), "--output-path", f"{name}.jsonl"),
        *("--set", "max_attempts=2", "--set", "window=64"),
        *(part for setting in settings for part in ("--set", setting)),
    )


WORDLESS = ("validation.require_words=false", "generation.batch_size=16")
"""The words of a prompt are in its text, which the served echo does not read."""


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_run_killed(tmp_path: Path, trials: Trials) -> None:
    kills = trials(3, 20)
    stories = 40 * kills
    rng = random.Random(1)
    with serving(tmp_path, "--port", "0", *SLOW_ECHO) as served:
        whole = asyncgen("run", *through(served, stories, "whole", *WORDLESS), cwd=tmp_path, timeout=300)
        assert whole.returncode == 0, whole.stderr
        for moment in sorted(rng.randint(0, stories - 20) for _ in range(kills)):
            run = start("run", *through(served, stories, "killed", *WORDLESS), cwd=tmp_path)
            while run.poll() is None and lines(tmp_path / "killed.jsonl") <= moment:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            run.kill()
            _, messages = run.communicate(timeout=60)
            assert run.returncode == -signal.SIGKILL, messages
        last = asyncgen("run", *through(served, stories, "killed", *WORDLESS), cwd=tmp_path, timeout=300)
        assert last.returncode == 0, last.stderr
        assert served.idle()["asyncgen_stories_open"] == 0, "what the killed had asked for is let go"
    for name in NAMES:
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))
    assert records(tmp_path / "killed.rejected.jsonl"), "the run must have rejections for this to mean much"


def test_the_server_killed(tmp_path: Path, trials: Trials) -> None:
    """Started again on the same port each time, while the run waits."""
    kills = trials(2, 20)
    stories = 60 * kills
    rng = random.Random(2)
    with ExitStack() as servers:
        served = servers.enter_context(serving(tmp_path, "--port", "0", *SLOW_ECHO))
        port = served.url.rpartition(":")[2]
        whole = asyncgen("run", *through(served, stories, "whole", *WORDLESS), cwd=tmp_path, timeout=300)
        assert whole.returncode == 0, whole.stderr
        run = start("run", *through(served, stories, "killed", *WORDLESS), cwd=tmp_path)
        done = 0
        for moment in sorted(rng.randint(1, stories - 30) for _ in range(kills)):
            while run.poll() is None and lines(tmp_path / "killed.jsonl") < moment:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            if run.poll() is not None:
                break
            served.program.kill()
            served.program.wait()
            done += 1
            time.sleep(rng.uniform(0, 0.3))
            served = servers.enter_context(serving(tmp_path, "--port", port, *SLOW_ECHO))
        _, messages = run.communicate(timeout=300)
    assert run.returncode == 0, messages
    assert done >= 0.8 * kills, f"only {done} kills: the run is too short for this test"
    for name in NAMES:
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))


def test_a_server_that_does_not_come_back_stops_the_run_resumably(tmp_path: Path) -> None:
    with ExitStack() as servers:
        served = servers.enter_context(serving(tmp_path, "--port", "0", *SLOW_ECHO))
        port = served.url.rpartition(":")[2]
        whole = asyncgen("run", *through(served, 60, "whole", *WORDLESS), cwd=tmp_path)
        assert whole.returncode == 0, whole.stderr
        arguments = through(served, 60, "stopped", *WORDLESS, "backend.timeout=2", "backend.patience=2.5")
        run = start("run", *arguments, cwd=tmp_path)
        while run.poll() is None and lines(tmp_path / "stopped.jsonl") < 20:
            time.sleep(0.01)
        served.program.kill()
        _, messages = run.communicate(timeout=100)
        assert run.returncode == 69, messages
        assert f"no answer from http://127.0.0.1:{port}/v1" in messages
        gone = asyncgen("run", *arguments, cwd=tmp_path)
        assert gone.returncode == 69, gone.stderr
        servers.enter_context(serving(tmp_path, "--port", port, *SLOW_ECHO))
        last = asyncgen("run", *arguments, cwd=tmp_path)
        assert last.returncode == 0, last.stderr
    for name in NAMES:
        assert records(tmp_path / name.format("stopped")) == records(tmp_path / name.format("whole"))


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_through_a_server_come_the_stories_that_come_without_one(tmp_path: Path) -> None:
    """The same model and the same seeds: the same records, whichever side of HTTP the model is on."""
    settings = ("generation.batch_size=16", "generation.max_new_tokens=160", "k_shot_count=1", "window=32")
    with serving(tmp_path, "--port", "0", "--batch-size", "16") as served:
        remote = asyncgen("run", *through(served, 8, "remote", *settings), cwd=tmp_path)
    assert remote.returncode == 0, remote.stderr
    local = [*through(served, 8, "local", *settings), "--set", "backend={kind: slots}"]
    done = asyncgen("run", *local, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert records(tmp_path / name.format("remote")) == records(tmp_path / name.format("local"))
    assert len(records(tmp_path / "remote.jsonl")) == 8
