"""A mix of sources, killed and resumed, equals the mix left alone: whatever ends, is slow, raises or never ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.programs import asyncgen, environment, records, start
from tests.trials import Trials

pytestmark = pytest.mark.timeout(600)

FUNCTIONS = """
import asyncio
import os
from pathlib import Path

HERE = Path(__file__).parent


async def early(start: int, items: int):
    for k in range(start, items):
        yield {"prompt": f"early {k}", "selected_words": ["moon"]}


async def slow(start: int):
    k = start
    while True:
        await asyncio.sleep(float(os.environ.get("SLOW", "0")))
        yield f"slow {k}"
        k += 1


async def raising():
    k = 0
    while True:
        if k == 37 and not (HERE / "mended").exists():
            raise ConnectionError("the server is gone")
        yield {"messages": [{"role": "user", "content": f"raising {k}"}]}
        k += 1


async def endless(start: int):
    while True:
        yield f"endless {start}"
        start += 1
"""

CONFIG = """
num_stories: 700
backend: {kind: echo, bad_share: 0.3, distinct: 6000}
max_attempts: 2
window: 64
k_shot_count: 1
sources:
  - {kind: template, weight: 3}
  - {kind: jsonl, path: lines.jsonl, weight: 4}
  - {kind: python, name: early, function: "functions.py:early", parameters: {items: 40}}
  - {kind: python, name: slow, function: "functions.py:slow", weight: 1}
  - {kind: python, name: raising, function: "functions.py:raising", weight: 1}
  - {kind: python, name: endless, function: "functions.py:endless", weight: 2}
"""


def lay_out(folder: Path, lines: int = 150) -> Path:
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "lines.jsonl").write_text("".join(json.dumps({"prompt": f"line {k}"}) + "\n" for k in range(lines)))
    path = folder / "mix.yaml"
    path.write_text(CONFIG)
    return path


def run_whole(path: Path) -> list[dict[str, Any]]:
    done = asyncgen("run", path, "--output-path", "whole.jsonl", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return everything(path.parent, "whole")


def everything(folder: Path, name: str) -> list[dict[str, Any]]:
    both = [*records(folder / f"{name}.jsonl"), *records(folder / f"{name}.rejected.jsonl")]
    return sorted(both, key=lambda record: record["metadata"]["index"])


def test_a_mix_killed_again_and_again_equals_the_whole_one(tmp_path: Path, trials: Trials) -> None:
    """Each kill comes when a random number of stories is on disk."""
    kills = trials(8, 100)
    path = lay_out(tmp_path)
    (tmp_path / "mended").touch()
    whole = run_whole(path)
    assert_well_mixed(whole)
    (tmp_path / "mended").unlink()
    assert ends_of(tmp_path, "whole").keys() == {1, 2}
    rng = random.Random(11)
    slowed = ("--set", "backend.seconds_per_batch=0.04", "--output-path", "killed.jsonl")
    killed = raised = 0
    grown = False
    targets = sorted(rng.randint(-1, 660) for _ in range(kills))
    while True:
        run = start("run", path, *slowed, cwd=tmp_path, env=environment(SLOW="0.02"))
        if targets:
            kill_when(run, tmp_path / "killed.jsonl", targets.pop(0), rng)
        _, messages = run.communicate(timeout=300)
        check_ends_are_recorded(tmp_path)
        if run.returncode == 2:
            assert "item 37: the function raised ConnectionError: the server is gone" in messages
            assert "Traceback" not in messages
            (tmp_path / "mended").touch()
            raised += 1
        elif run.returncode == 0:
            break
        else:
            assert run.returncode == -signal.SIGKILL, messages
            killed += 1
        if not grown and 1 in ends_of(tmp_path, "killed"):
            with (tmp_path / "lines.jsonl").open("a") as file:
                file.write('{"prompt": "too late"}\n')
            grown = True
    assert killed >= 0.75 * kills, f"only {killed} kills"
    assert (raised, grown) == (1, True)
    assert everything(tmp_path, "killed") == whole
    more = asyncgen("run", path, "--num-stories", "705", "--output-path", "killed.jsonl", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "source 'jsonl' ended after 150 prompts" in more.stderr
    assert "the 1 that were added since are not used" in more.stderr
    assert everything(tmp_path, "killed")[: len(whole)] == whole


def kill_when(run: subprocess.Popen[str], stories: Path, lines: int, rng: random.Random) -> None:
    """Kills the run shortly after the file has more than ``lines`` lines; none at all are wanted for -1."""
    while run.poll() is None and (stories.read_bytes().count(b"\n") if stories.exists() else -1) <= lines:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.15))
    run.kill()


def assert_well_mixed(whole: list[dict[str, Any]]) -> None:
    assert [record["metadata"]["index"] for record in whole] == list(range(len(whole)))
    items: dict[str, list[int]] = {}
    for record in whole:
        items.setdefault(record["metadata"]["source"], []).append(record["metadata"]["position"])
    assert set(items) == {"template", "jsonl", "early", "slow", "raising", "endless"}
    assert all(positions == list(range(len(positions))) for positions in items.values())
    assert (len(items["jsonl"]), len(items["early"])) == (150, 40)
    assert len(items["raising"]) > 38
    assert len({tuple(record["metadata"]) for record in whole}) == 1, "the same keys whatever the source"
    assert len({tuple(map(type, record["metadata"].values())) for record in whole}) == 1


def ends_of(folder: Path, name: str) -> dict[int, int]:
    """What the manifest knows: source -> the index from which others have its places."""
    path = folder / f"{name}.run.json"
    facts = json.loads(path.read_text())["facts"] if path.exists() else {}
    return {end["source"]: end["index"] for end in facts.get("sources ended", [])}


def check_ends_are_recorded(folder: Path) -> None:
    """A record at or beyond an end is on disk only if the manifest has that end."""
    path = folder / "killed.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    last = max((json.loads(line)["metadata"]["index"] for line in lines if line.endswith(b"\n")), default=-1)
    known = ends_of(folder, "killed")
    for source, index in ends_of(folder, "whole").items():
        assert known.get(source, index) == index
        assert source in known or last < index, f"source {source}: index {last} is there, and its end is not known"
