"""The soak in a few seconds, so that it cannot rot; and that it can fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.soak.__main__ import table
from benchmarks.soak.content import content_of, first_difference
from benchmarks.soak.plan import Scale
from benchmarks.soak.run import Result, soak
from benchmarks.soak.samples import Sample, growth
from tests.output.making import lines_of, records, take
from tests.programs import ROOT, environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the soak reads /proc")

SMALL = Scale(
    seconds=2.4,
    longest=0.8,
    timeout=1.0,
    hangs=0.005,
    raises=0.004,
    fails=0.004,
    too_long=0.02,
    pace=0.04,
    window=256,
    kills_at_the_end=1,
    look=0.05,
    most_growth=64 * 2**20,  # nothing is warm yet
)


def test_a_soak_of_some_seconds_passes(tmp_path: Path) -> None:
    said: list[str] = []
    result = soak(tmp_path, SMALL, 7, said.append)
    assert result.passed, table(result)
    assert len(result.verdicts) == 13
    assert result.injected["SIGKILL"] >= 2, table(result)
    for kind in ("fsync", "write", "clock", "check delayed", "poison: prompt", "poison: gen", "raises", "hangs"):
        assert sum(count for what, count in result.injected.items() if kind in what), f"no {kind}: {table(result)}"
    json.dumps(result.as_json())


def sessions_of(program: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(program).children():
        with suppress(psutil.Error):  # it is gone
            found += [child] if "tests.faults.soaking" in child.cmdline() else []
    return found


def test_interrupted_it_leaves_nothing_running(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--seed", "1"],
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        while not (sessions := sessions_of(program.pid)):
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        _, messages = program.communicate(timeout=60)
    assert program.returncode == 130, messages
    assert "Traceback" not in messages
    assert not psutil.wait_procs(sessions, timeout=10)[1]
    assert not list(tmp_path.iterdir())


def files(folder: Path, made: list[bytes], rejected: bytes) -> tuple[Path, Path]:
    paths = folder / "s.jsonl", folder / "r.jsonl"
    paths[0].write_bytes(b"".join(made))
    paths[1].write_bytes(rejected)
    return paths


def test_what_is_lost_doubled_or_other_than_it_was_is_found(tmp_path: Path) -> None:
    stories, rejected = (
        data.replace(b'"metadata": {', b'"metadata": {"attempt": 1, ') for data in lines_of(take(records(), 20))
    )
    lines = stories.splitlines(keepends=True)
    whole = content_of(*files(tmp_path, lines, rejected))
    assert whole.stories + whole.rejected == 20
    wrong_ones: list[list[bytes]] = [lines[:3] + lines[4:], [*lines, lines[-1]], [lines[1], lines[0], *lines[2:]]]
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match="lost or doubled"):
            content_of(*files(tmp_path, wrong, rejected))
    other = [*lines[:-1], lines[-1].replace(b'"word_count": 4', b'"word_count": 5')]
    changed = content_of(*files(tmp_path, other, rejected))
    assert changed.stories_sha256 != whole.stories_sha256
    assert changed.rejected_sha256 == whole.rejected_sha256
    (tmp_path / "was.jsonl").write_bytes(b"".join(lines))
    assert first_difference(tmp_path / "was.jsonl", tmp_path / "s.jsonl") == f"line {len(lines)}: word_count: 4 and 5"
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:-2]))
    more = f"line {len(lines) - 1}: only {tmp_path / 'was.jsonl'} goes on, with 2 more"
    assert first_difference(tmp_path / "was.jsonl", tmp_path / "cut.jsonl") == more
    assert first_difference(tmp_path / "cut.jsonl", tmp_path / "was.jsonl") == more
    timed = [line.replace(b'"generation_time": 0.25', b'"generation_time": 0.5') for line in lines]
    assert content_of(*files(tmp_path, timed, rejected)) == whole


def test_what_leaks_grows() -> None:
    still = [Sample(50_000_000 + 4096 * (number % 3), 9, 5 + number % 2) for number in range(100)]
    flat = growth(still, 0)
    assert (abs(flat.rss) <= 8192, flat.descriptors, flat.threads) == (True, 0, 0)
    leaking = growth([Sample(50_000_000 + 100_000 * n, 9 + n // 20, 5 + n // 10) for n in range(100)], 0)
    assert leaking.rss > 5_000_000
    assert leaking.descriptors > 0
    assert leaking.threads > 3
    known = growth([Sample(50_000_000 + 9 * 1000 * n, 9, 5) for n in range(100)], 100_000)
    assert abs(known.rss) < 50_000, "what each story is known to cost is no leak"
    with pytest.raises(ValueError, match="too few"):
        growth(still[:9], 0)


def test_nothing_that_was_asked_is_no_pass() -> None:
    nothing, good, bad = Result(), Result(), Result()
    for result in (good, bad):
        result.ask("a", "b", passed=True)
    bad.ask("c", "d", passed=False)
    assert [nothing.passed, good.passed, bad.passed] == [False, True, False]
