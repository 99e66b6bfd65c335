"""Row 2: SIGKILL at named points of commit, recovery, truncation and manifest replacement. Resumed, the files are those
of an uninterrupted run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncgen.output.points import POINTS
from tests.faults.conftest import FULL
from tests.programs import asyncgen, environment, records

SETTINGS = (
    *("--set", "backend={kind: echo, bad_share: 0.4, distinct: 4000}", "--set", "max_attempts=2"),
    *("--set", "generation.batch_size=4", "--set", "window=8"),  # so that there are groups enough with a rejection
)
ENOUGH = 120
HOPELESS = ("--set", "backend={kind: echo, bad_share: 1.0}", "--set", "max_attempts=1")
TIMES = range(1, 4) if os.environ.get(FULL) else (1,)
MAKING_WAY = ("manifest claims nothing", "moved aside")


def run(folder: Path, stories: int, *settings: str, crash: str = "") -> subprocess.CompletedProcess[str]:
    arguments = ["run", *(settings or SETTINGS), "--num-stories", str(stories), "--output-path", "s.jsonl"]
    if not crash:
        return asyncgen(*arguments, cwd=folder)
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.crashing", *arguments],
        cwd=folder,
        env=environment(ASYNCGEN_CRASH=crash),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def both(folder: Path) -> list[list[dict[str, object]]]:
    return [records(folder / name) for name in ("s.jsonl", "s.rejected.jsonl")]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with some records, so that opening it has something to recover."""
    folder = tmp_path_factory.mktemp("begun")
    assert run(folder, 20).returncode == 0
    with (folder / "s.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, object]]]:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, ENOUGH).returncode == 0
    return both(folder)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("point", [point for point in POINTS if point not in MAKING_WAY])
def test_killed_there_it_goes_on_to_the_same_files(
    tmp_path: Path, begun: Path, whole: list[list[dict[str, object]]], point: str, times: int
) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    once = point in ("locked", "recovered", "stories cut", "rejected cut", "opened")
    for _ in range(times if once else 1):  # what happens once a session is met in several
        done = run(tmp_path, ENOUGH, crash=f"{point}:{1 if once else times}")
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(tmp_path, ENOUGH)
    assert done.returncode == 0, done.stderr
    assert both(tmp_path) == whole
    assert asyncgen("verify", "s.jsonl", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl", "s.lock", "s.rejected.jsonl", "s.run.json"]


@pytest.mark.parametrize("point", MAKING_WAY)
def test_killed_while_rejections_make_way_for_a_mended_run(
    tmp_path: Path, whole: list[list[dict[str, object]]], point: str
) -> None:
    assert run(tmp_path, ENOUGH, *HOPELESS).returncode == 4
    rejected = (tmp_path / "s.rejected.jsonl").read_bytes()
    done = run(tmp_path, ENOUGH, crash=f"{point}:1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(tmp_path, ENOUGH)
    assert done.returncode == 0, done.stderr
    assert both(tmp_path) == whole
    assert (tmp_path / "s.rejected.1.jsonl").read_bytes() == rejected
