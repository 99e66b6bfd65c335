"""``--resume auto|never|require``: whether a run goes on with what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncgen as library
from asyncgen.errors import ResumeRefused
from tests.programs import ECHO, asyncgen, without_torch


def test_each_way_from_nothing_and_from_something(tmp_path: Path) -> None:
    env = without_torch(tmp_path)
    run = ("run", *ECHO, "--num-stories")
    done = asyncgen(*run, "3", "--resume", "require", cwd=tmp_path, env=env)
    assert (done.returncode, "holds no records" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "stories.jsonl").exists()
    assert asyncgen(*run, "3", "--resume", "never", cwd=tmp_path, env=env).returncode == 0
    before = (tmp_path / "stories.jsonl").read_bytes()
    for goal in ("3", "5"):  # complete, and unfinished
        done = asyncgen(*run, goal, "--resume", "never", cwd=tmp_path, env=env)
        assert (done.returncode, "holds records already" in done.stderr) == (2, True), done.stderr
        assert (tmp_path / "stories.jsonl").read_bytes() == before
    assert asyncgen(*run, "5", "--resume", "require", cwd=tmp_path, env=env).returncode == 0
    assert asyncgen(*run, "6", "--resume", "auto", cwd=tmp_path, env=env).returncode == 0
    assert (tmp_path / "stories.jsonl").read_bytes().startswith(before)


def test_another_word_is_refused(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--resume", "maybe", cwd=tmp_path)
    assert done.returncode == 2
    assert "'auto', 'never', 'require'" in done.stderr


@pytest.mark.anyio
async def test_in_a_program(tmp_path: Path) -> None:
    config = library.load_config(None, ["backend.kind=echo", "num_stories=2", f"output_path={tmp_path / 's.jsonl'}"])
    with pytest.raises(ResumeRefused, match="wants some to go on with"):
        await library.run(config, resume="require")
    assert (await library.run(config, resume="never")).complete
    with pytest.raises(ResumeRefused, match="forbids"):
        await library.run(config, resume="never")
