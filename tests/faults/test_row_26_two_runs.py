"""Row 26: two runs, one output. Of two that begin at the same moment one wins, in 50 of 50 races; the other is refused
with exit 3, in less than a second (the ceiling here is ten times that). A killed one leaves no stale lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from asyncgen.output import verify
from tests.faults.conftest import Trials
from tests.programs import ECHO, asyncgen, environment, start

pytestmark = pytest.mark.timeout(600)

CEILING = 10.0
SLOW = ("--set", "backend={kind: echo, seconds_per_batch: 0.05}", "--num-stories", "100000", "--output-path", "s.jsonl")


def racer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.racing", "run", *SLOW],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    """What it tells first: that it has begun, which it does with the output in its hands."""
    assert process.stderr is not None
    return process.stderr.readline()


def race(folder: Path) -> None:
    """Lets two begin at once; the one that wins is killed."""
    racers = [racer(folder) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        try:
            for each in racers:
                assert each.stdout is not None
                assert each.stdout.readline() == "ready\n"
            began = time.monotonic()
            for each in racers:
                assert each.stdin is not None
                each.stdin.write("\n")
                each.stdin.flush()
            ends = {threads.submit(each.wait): each for each in racers}
            done, running = wait(ends, timeout=3 * CEILING, return_when=FIRST_COMPLETED)
            took = time.monotonic() - began
            assert (len(done), len(running)) == (1, 1), "both run, or none does"
            (loser,), (winner,) = ([ends[end] for end in which] for which in (done, running))
            assert "stories with the echo backend" in first_line(winner)
            assert winner.poll() is None
        finally:
            for each in racers:
                each.kill()
    said = loser.communicate()[1]
    assert loser.returncode == 3, said
    assert f"asyncgen: error: {folder / 's.jsonl'} is being written by another run\n" in said
    assert took < CEILING
    winner.communicate()
    assert winner.returncode == -signal.SIGKILL


def test_of_two_at_the_same_moment_one_wins_and_a_killed_one_leaves_no_lock(tmp_path: Path, trials: Trials) -> None:
    for _ in range(trials(3, 50)):
        race(tmp_path)
    done = asyncgen("run", *SLOW[:-4], "--num-stories", "20", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "s.jsonl").ok


def test_beside_a_run_none_begins_nothing_is_repaired_and_what_is_safe_can_be_verified(tmp_path: Path) -> None:
    first = start("run", *SLOW, cwd=tmp_path)
    try:
        assert "stories with the echo backend" in first_line(first)
        (tmp_path / "link.jsonl").symlink_to("s.jsonl")
        for name in ("s.jsonl", "link.jsonl"):
            second = asyncgen("run", *ECHO, "--num-stories", "100000", "--output-path", name, cwd=tmp_path)
            assert (second.returncode, "is being written by another run" in second.stderr) == (3, True), second.stderr
        repaired = asyncgen("repair", "s.jsonl", cwd=tmp_path)
        assert (repaired.returncode, "is being written by another run" in repaired.stderr) == (3, True), repaired.stderr
        assert not (tmp_path / "s.repaired.jsonl").exists()
        verified = asyncgen("verify", "s.jsonl", cwd=tmp_path)
        assert verified.returncode == 0, verified.stdout
        assert "The run is going on" in verified.stdout
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert asyncgen("run", *ECHO, "--num-stories", "20", "--output-path", "s.jsonl", cwd=tmp_path).returncode == 0


def test_a_lock_does_not_live_on_in_children_that_code_of_yours_has_forked(tmp_path: Path) -> None:
    """A pool of processes, say: killed with the run it is not."""
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from asyncgen.output.lock import Lock\n"
        "from asyncgen.output.places import Places\n"
        "Lock(Places.of(Path('s.jsonl'))).take()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        child = int(killed.stdout.readline())
        killed.wait()
        try:
            done = asyncgen("run", *ECHO, "--num-stories", "3", "--output-path", "s.jsonl", cwd=tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
