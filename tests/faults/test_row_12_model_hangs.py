"""Row 12: a model that hangs. A run that comes to a standstill says where it stands and ends with 75, whatever hangs;
one that is only slow does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import FULL
from tests.programs import ECHO, asyncgen, environment, records, start

IN_FULL = FULL in os.environ
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


def hanging(folder: Path, hang: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A run in which that hangs."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.hanging", "run", "--set", "watchdog=1", *options],
        cwd=folder,
        env=environment(ASYNCGEN_HANG=hang),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("kind", ["c", "python"] if IN_FULL else ["c"])
def test_a_model_that_hangs_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, kind: str) -> None:
    options = (*ECHO, "--set", "generation.batch_size=4", "--num-stories", "40")
    done = hanging(tmp_path, f"step:{kind}:6", *options)
    assert done.returncode == 75, done.stderr
    assert "stalled: no token, verdict or record for 1.0 s (watchdog); the model was at work and gave nothing" in (
        done.stderr
    )
    assert "anyio/_backends/_asyncio.py" in done.stderr, "the thread that hangs is shown"
    made = records(tmp_path / "stories.jsonl")
    assert 0 < len(made) <= 20
    done = asyncgen("run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "stories.jsonl")[: len(made)] == made


def test_a_model_that_hangs_while_it_is_loaded(tmp_path: Path) -> None:
    done = hanging(tmp_path, "load:c:1", "--set", "backend.kind=static")
    assert done.returncode == 75, done.stderr
    assert "stalled while loading the model: no sign of life for 1.0 s (watchdog)" in done.stderr
    assert "in load" in done.stderr
    assert "go on with: python -m tests.faults.hanging" not in done.stderr
    assert "stopped; what was decided is on disk; go on with: " in done.stderr


def test_a_disk_that_hangs_when_the_output_is_closed(tmp_path: Path) -> None:
    done = hanging(tmp_path, "fsync:python:1", *ECHO, "--num-stories", "4")
    assert done.returncode == 75, done.stderr
    assert "stalled while closing the output: no sign of life for 1.0 s (watchdog)" in done.stderr
    assert "thread asyncgen-output" in done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 4
    assert asyncgen("run", *ECHO, "--num-stories", "4", cwd=tmp_path).returncode == 0


ELSEWHERE = [
    ("CLEANING = 600", "closing the sources"),
    ("time.sleep(600)", "opening the sources"),
    ("atexit.register(time.sleep, 600)", "ending"),
]


@pytest.mark.parametrize(("code", "phase"), ELSEWHERE if IN_FULL else ELSEWHERE[:1])
def test_code_that_hangs_before_or_after_the_generating(tmp_path: Path, code: str, phase: str) -> None:
    (tmp_path / "s.py").write_text(f"""\
import atexit, time

CLEANING = 0
{code}

async def prompts(start: int):
    try:
        for number in range(start, 99):
            yield f"prompt {{number}}"
    finally:
        time.sleep(CLEANING)
""")
    source = ("--set", "sources=[{kind: python, function: 's.py:prompts'}]", "--set", "validation.enabled=false")
    done = asyncgen("run", *ECHO, "--set", "watchdog=1", *source, "--num-stories", "4", cwd=tmp_path)
    assert done.returncode == 75, done.stderr
    assert f"stalled while {phase}: no sign of life for 1.0 s (watchdog)" in done.stderr
    assert "s.py" in done.stderr or "ending" in phase, "what hangs is shown"
    assert "Traceback" not in done.stderr
    if "opening" not in phase:
        assert len(records(tmp_path / "stories.jsonl")) == 4


def test_who_reads_has_not_stood_still(tmp_path: Path) -> None:
    """A large model on a slow disk, say."""
    (tmp_path / "f.py").write_text("""\
import time

with open("/dev/zero", "rb") as disk:
    for _ in range(12):
        time.sleep(0.3)
        disk.read(2_000_000)

async def check(text):
    return None
""")
    check = ("--set", "validation.functions=[{function: 'f.py:check', timeout: 0.9}]")
    done = asyncgen("run", *ECHO, "--set", "watchdog=1", *check, "--num-stories", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_where_it_stands_is_told_even_if_no_file_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("""\
import resource, time

async def check(text):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    time.sleep(600)
""")
    check = ("--set", "validation.functions=[{function: 'f.py:check', timeout: 0.9}]")
    done = asyncgen("run", *ECHO, "--set", "watchdog=1", *check, "--num-stories", "4", cwd=tmp_path)
    assert done.returncode == 75, done.stderr
    assert "line 5 in check" in done.stderr
    assert "go on with" in done.stderr


@pytest.mark.parametrize("name", ["sleeps", "spins", "in_c"] if IN_FULL else ["spins"])
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
    assert 0 < len(made) <= 40, "but for the last ones, which the blocked loop could not write"
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


def test_a_source_that_makes_its_first_items_again_has_not_stood_still(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("""\
import asyncio
from pathlib import Path

async def prompts():
    for number in range(60):
        if Path("slow").exists() and number < 40:
            await asyncio.sleep(0.05)
        yield f"prompt {number}"
""")
    source = ("--set", "sources=[{kind: python, function: 's.py:prompts'}]", "--set", "validation.enabled=false")
    first = run(tmp_path, *source, "--num-stories", "40", watchdog=20)
    assert first.returncode == 0, first.stderr
    (tmp_path / "slow").touch()
    done = run(tmp_path, *source, "--num-stories", "44")
    assert done.returncode == 0, done.stderr
    assert "its first 40 items are made again and let go" in done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 44


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
