"""Row 12: a model that hangs. A run that comes to a standstill says where it stands and ends with 75, whatever hangs;
one that is only slow does not.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, environment, records, start

HANGS = """\
import ctypes, threading, time
import anyio

calls = 0

async def sleeps(text):
    time.sleep(600)

async def spins(text):
    while True:
        pass

async def in_c(text):
    ctypes.CDLL(None).sleep(600)

async def once(text):
    global calls
    calls += 1
    if calls > 40:
        time.sleep(600)

async def slowly(text):
    await anyio.sleep(0.5)

async def prompts(start: int, end: int = 3):
    for number in range(start, end):
        yield f"prompt {number}"
    await anyio.sleep(600)
"""


def run(folder: Path, *options: str, watchdog: float = 1.0) -> subprocess.CompletedProcess[str]:
    (folder / "f.py").write_text(HANGS)
    return asyncgen("run", *ECHO, "--set", f"watchdog={watchdog}", *options, cwd=folder, timeout=60)


def function(name: str, **settings: object) -> tuple[str, str]:
    more = "".join(f", {key}: {value}" for key, value in settings.items())
    return "--set", f"validation.functions=[{{function: 'f.py:{name}', timeout: 0.9{more}}}]"


@pytest.mark.parametrize("kind", ["python", "c"])
def test_a_model_that_hangs_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, kind: str) -> None:
    arguments = ["run", *ECHO, "--set", "generation.batch_size=4", "--set", "watchdog=1", "--num-stories", "40"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.hanging", *arguments],
        cwd=tmp_path,
        env=environment(ASYNCGEN_HANG=f"{kind}:6"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "stalled: no token, verdict or record for 1.0 s" in done.stderr
    assert "anyio/_backends/_asyncio.py" in done.stderr, "the thread that hangs is shown"
    made = records(tmp_path / "stories.jsonl")
    assert 0 < len(made) <= 20
    done = asyncgen(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "stories.jsonl")[: len(made)] == made


@pytest.mark.parametrize("name", ["sleeps", "spins", "in_c"])
def test_whatever_hangs_is_shown_and_the_run_ends_with_75(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, *function(name), "--num-stories", "4")
    assert done.returncode == 75, done.stderr
    assert "stalled: no token, verdict or record for 1.0 s (watchdog)" in done.stderr
    assert f"in {name}" in done.stderr
    assert "stopped; what was decided is on disk; go on with: python -m asyncgen run --set" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_decided_before_is_on_disk_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    options = ("--num-stories", "80")
    check = {"concurrency": 1}
    done = run(tmp_path, *function("once", **check), *options, watchdog=1.5)
    assert done.returncode == 75, done.stderr
    made = records(tmp_path / "stories.jsonl")
    assert 20 < len(made) <= 40, "but for the last few, which the blocked loop could not write"
    for _ in range(9):  # every session has 40 calls
        done = run(tmp_path, *function("once", **check), *options, watchdog=1.5)
        if not done.returncode:
            break
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "stories.jsonl")[: len(made)] == made
    assert asyncgen("verify", "stories.jsonl", cwd=tmp_path).returncode == 0


def test_who_is_slow_is_not_stalled(tmp_path: Path) -> None:
    done = run(tmp_path, *function("slowly", concurrency=1), "--num-stories", "6", watchdog=1.5)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 6


def test_a_source_that_hangs_is_ended_by_its_own_timeout_first(tmp_path: Path) -> None:
    source = "sources=[{kind: python, function: 'f.py:prompts', timeout: 0.5}]"
    done = run(tmp_path, "--set", source, "--set", "validation.enabled=false", "--num-stories", "9", watchdog=20)
    assert done.returncode == 2, done.stderr
    assert "item 3: it did not come within 0.5 s" in done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 3


def test_a_source_that_catches_its_timeout_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("""\
import asyncio

async def prompts(start: int):
    for number in range(start, 3):
        yield f"prompt {number}"
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        return
""")
    source = "sources=[{kind: python, function: 's.py:prompts', timeout: 0.5}]"
    done = run(tmp_path, "--set", source, "--set", "validation.enabled=false", "--set", "num_stories=null", watchdog=20)
    assert done.returncode == 2, done.stderr
    assert "item 3: it did not come within 0.5 s" in done.stderr


def test_a_run_that_was_paused_has_not_stood_still(tmp_path: Path) -> None:
    settings = ("--set", "backend.seconds_per_batch=0.02", "--set", "watchdog=1.5", "--num-stories", "400")
    paused = start("run", *ECHO, *settings, cwd=tmp_path)
    while not (tmp_path / "stories.jsonl").exists() or not records(tmp_path / "stories.jsonl"):
        time.sleep(0.01)
    paused.send_signal(signal.SIGSTOP)
    time.sleep(3)
    paused.send_signal(signal.SIGCONT)
    _, messages = paused.communicate(timeout=60)
    assert paused.returncode == 0, messages


def test_a_watchdog_must_be_more_patient_than_what_it_watches(tmp_path: Path) -> None:
    source = "sources=[{kind: python, function: 'f.py:prompts', timeout: 3600}]"
    done = run(tmp_path, "--set", source, watchdog=600)
    assert (done.returncode, "would end the run before sources[0].timeout (3600)" in done.stderr) == (2, True), (
        done.stderr
    )


def test_who_was_waited_for_is_named(tmp_path: Path) -> None:
    source = "sources=[{kind: python, name: mine, function: 'f.py:prompts', parameters: {end: 9}}]"
    done = run(
        tmp_path, "--set", source, "--set", "validation.enabled=false", "--resume", "auto", "--num-stories", "19"
    )
    assert done.returncode == 75, done.stderr
    assert "(watchdog); waiting for source mine" in done.stderr
    assert "in prompts" in done.stderr
    assert "--resume" not in done.stderr.partition("go on with:")[2], "it might forbid to go on"
