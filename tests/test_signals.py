"""Signals and terminals that go away, in real processes, with user code that does not let go of the loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, environment, records, start
from tests.terminal import Terminal

BLOCKING = """\
import time
from pathlib import Path

async def sleeps(text):
    Path("there").touch()
    time.sleep(600)

async def spins(text):
    Path("there").touch()
    while True:
        pass
"""
SLOW_IMPORT = """\
import time
from pathlib import Path

Path("there").touch()
time.sleep(600)

def check(text):
    return None
"""
SLOW = "backend={kind: echo, seconds_per_batch: 0.05}"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.02)


def functions(name: str) -> tuple[str, str]:
    return "--set", f"validation.functions=[{{function: 'f.py:{name}'}}]"


@pytest.mark.parametrize("name", ["sleeps", "spins"])
@pytest.mark.parametrize("count", [2, 3])
def test_code_that_blocks_the_loop_does_not_make_a_run_deaf(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "f.py").write_text(BLOCKING)
    run = start("run", *ECHO, "--num-stories", "4", *functions(name), cwd=tmp_path)
    wait_until((tmp_path / "there").exists)
    for _ in range(count):
        run.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two that come together are one
    _, messages = run.communicate(timeout=60)
    assert run.returncode == 143, messages
    assert "Traceback" not in messages


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_what_has_not_begun(tmp_path: Path, command: str, number: signal.Signals, code: int) -> None:
    (tmp_path / "f.py").write_text(SLOW_IMPORT)
    run = start(command, *ECHO, *functions("check"), cwd=tmp_path)
    wait_until((tmp_path / "there").exists)
    run.send_signal(number)
    _, messages = run.communicate(timeout=60)
    assert run.returncode == code, messages
    assert "stopped" in messages
    assert "Traceback" not in messages


def test_one_signal_ends_a_preview(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(SLOW_IMPORT)
    run = start("preview", *ECHO, "--set", "sources=[{kind: python, function: 'f.py:check'}]", cwd=tmp_path)
    wait_until((tmp_path / "there").exists)
    run.send_signal(signal.SIGINT)
    assert "stopped" in run.communicate(timeout=60)[1]
    assert run.returncode == 130


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    command = f"trap '' INT; exec {sys.executable} -m asyncgen run --set '{SLOW}' --num-stories 60"
    run = subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    stories = tmp_path / "stories.jsonl"
    wait_until(lambda: stories.exists() and stories.stat().st_size > 0)
    for _ in range(3):
        run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert len(records(stories)) == 60


@pytest.mark.parametrize("flag", ["--log-level=warning", "--plain", "--quiet"])
def test_a_run_outlives_its_terminal(tmp_path: Path, flag: str) -> None:
    arguments = ("-m", "asyncgen", "run", "--set", SLOW, "--num-stories", "200", "--log-file", "l.txt", flag)
    terminal = Terminal(arguments, tmp_path)
    stories = tmp_path / "stories.jsonl"
    wait_until(lambda: stories.exists() and stories.stat().st_size > 0)
    terminal.vanish()
    os.kill(terminal.process.pid, signal.SIGHUP)  # as the kernel does to the terminal's own programs
    assert terminal.process.wait(60) == 0
    assert len(records(stories)) == 200
    if flag != "--quiet":
        assert f"kill {terminal.process.pid} stops the run" in (tmp_path / "l.txt").read_text()


def test_one_without_a_terminal_is_stopped_by_a_signal(tmp_path: Path) -> None:
    terminal = Terminal(("-m", "asyncgen", "run", "--set", SLOW, "--num-stories", "4000"), tmp_path)
    stories = tmp_path / "stories.jsonl"
    wait_until(lambda: stories.exists() and stories.stat().st_size > 0)
    terminal.vanish()
    os.kill(terminal.process.pid, signal.SIGHUP)
    terminal.process.terminate()
    assert terminal.process.wait(60) == 143
    assert '"state": "stopped"' in (tmp_path / "stories.run.json").read_text()
    assert asyncgen("verify", "stories.jsonl", cwd=tmp_path).returncode == 0
