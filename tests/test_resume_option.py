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


def test_require_never_begins_anew(tmp_path: Path) -> None:
    """Neither what a changed configuration would begin anew, nor a first record that is torn."""
    env = without_torch(tmp_path)
    hopeless = ("run", "--set", "backend={kind: echo, bad_share: 1.0}", "--set", "max_attempts=1")
    assert asyncgen(*hopeless, cwd=tmp_path, env=env).returncode == 4
    before = {path.name: path.read_bytes() for path in tmp_path.glob("stories.*")}
    done = asyncgen("run", *ECHO, "--resume", "require", cwd=tmp_path, env=env)
    assert (done.returncode, "would begin anew, and resume require" in done.stderr) == (2, True), done.stderr
    assert "backend.bad_share: was 1.0, now 0.0" in done.stderr
    (tmp_path / "stories.run.json").write_text('{"format": 1}')
    (tmp_path / "stories.rejected.jsonl").write_bytes(before["stories.rejected.jsonl"][:40])
    done = asyncgen("run", *ECHO, "--resume", "require", cwd=tmp_path, env=env)
    assert (done.returncode, "would begin anew, and resume require" in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "stories.rejected.jsonl").stat().st_size == 40
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    assert asyncgen(*hopeless, "--resume", "require", cwd=tmp_path, env=env).returncode == 4
