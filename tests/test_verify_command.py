"""``asyncgen verify``: what is sound is called so, and damage is named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, without_torch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "c.yaml").write_text("backend: {kind: echo, bad_share: 0.5}\noutput_path: s.jsonl\nnum_stories: 40\n")
    done = asyncgen("run", "c.yaml", "--set", "max_attempts=2", cwd=folder, env=without_torch(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "s.rejected.jsonl").read_bytes().count(b"\n") > 2
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    for path in made.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["c.yaml", "s.jsonl", "s.run.json", "s.rejected.jsonl"])
def test_any_name_of_a_sound_run_is_exit_0(folder: Path, name: str) -> None:
    text = (folder / "c.yaml").read_text()
    (folder / "c.yaml").write_text(text.replace("s.jsonl", f"{folder}/s.jsonl"))
    before = {path.name: path.read_bytes() for path in folder.glob("s.*")}
    done = asyncgen("verify", folder / name, cwd=folder.parent, env=without_torch(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("sound: ")
    assert "40 stories" in done.stdout
    assert before == {path.name: path.read_bytes() for path in folder.glob("s.*")}


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("s.jsonl", lambda lines: [*lines[:4], b'{"torn": \n', *lines[5:]], "s.jsonl:5: not JSON"),
        ("s.jsonl", lambda lines: [*lines[:4], *lines[5:]], "s.jsonl:5: index"),
        (
            "s.rejected.jsonl",
            lambda lines: [lines[0].replace(b"reasons", b"raisons"), *lines[1:]],
            "s.rejected.jsonl:1",
        ),
        ("s.jsonl", lambda lines: [lines[0], lines[1].replace(b'"content": "', b'"content": 3, "x": "')], "s.jsonl:2"),
        ("s.run.json", lambda _: [b"{}"], "s.run.json cannot be read"),
    ],
)
def test_damage_is_exit_2_and_named(
    folder: Path, file: str, damage: Callable[[list[bytes]], list[bytes]], expected: str
) -> None:
    path = folder / file
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    done = asyncgen("verify", "s.jsonl", cwd=folder, env=without_torch(folder))
    assert done.returncode == 2
    assert done.stdout.startswith("damaged: ")
    assert expected in done.stdout
    assert "Traceback" not in done.stderr


def test_a_story_that_stands_twice_but_for_its_spelling_is_found(folder: Path) -> None:
    path = folder / "s.jsonl"
    first, second, *rest = path.read_text().splitlines()
    changed = json.loads(second) | {"content": json.loads(first)["content"].upper()}
    path.write_text("\n".join([first, json.dumps(changed), *rest]) + "\n")
    done = asyncgen("verify", "s.jsonl", cwd=folder, env=without_torch(folder))
    assert "s.jsonl:2: repeats an earlier story" in done.stdout


@pytest.mark.parametrize("name", ["none.jsonl", "none.yaml", "none.run.json"])
def test_nothing_there_is_exit_2(tmp_path: Path, name: str) -> None:
    done = asyncgen("verify", name, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2
    assert "none." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_gone_is_said_to_be(folder: Path) -> None:
    """And not line by line what is missing of it."""
    (folder / "s.jsonl").unlink()
    done = asyncgen("verify", "s.rejected.jsonl", cwd=folder, env=without_torch(folder))
    assert done.returncode == 2
    assert f"{folder / 's.jsonl'}: it is not there" in done.stdout + done.stderr
    assert "is due" not in done.stdout + done.stderr
    done = asyncgen("run", "c.yaml", "--num-stories", "100", cwd=folder)
    assert done.returncode == 2
    assert "s.jsonl: line 1: missing: the file is not there, and " in done.stderr


def test_the_output_of_a_killed_run_says_so(folder: Path) -> None:
    manifest = folder / "s.run.json"
    manifest.write_text(manifest.read_text().replace('"state": "complete"', '"state": "running"'))
    done = asyncgen("verify", "s.jsonl", cwd=folder, env=without_torch(folder))
    assert done.returncode == 0
    assert "The run was killed" in done.stdout


def test_a_run_and_its_verification_agree(tmp_path: Path) -> None:
    asyncgen("run", *ECHO, "--num-stories", "5", cwd=tmp_path)
    assert asyncgen("verify", "stories.jsonl", cwd=tmp_path).returncode == 0


def test_what_is_sound_of_a_damaged_run_can_be_saved(folder: Path) -> None:
    stories = folder / "s.jsonl"
    lines = stories.read_bytes().splitlines(keepends=True)
    lines[20] = lines[20][:50] + b"\n"
    stories.write_bytes(b"".join(lines))
    assert asyncgen("verify", stories, cwd=folder, env=without_torch(folder)).returncode == 2
    done = asyncgen("repair", stories, cwd=folder, env=without_torch(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("saved: 39 stories in ")
    assert (folder / "s.repaired.jsonl").read_bytes() == b"".join([*lines[:20], *lines[21:]])
    done = asyncgen("repair", stories, cwd=folder, env=without_torch(folder))
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    done = asyncgen("repair", stories, "--to", "more/new.jsonl", cwd=folder, env=without_torch(folder))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "more").iterdir()) == ["new.jsonl", "new.rejected.jsonl"]
    (folder / "notes.txt").write_text("hello\n")
    done = asyncgen("repair", "notes.txt", cwd=folder, env=without_torch(folder))
    assert (done.returncode, "there is no sound record" in done.stderr) == (2, True)
    assert not (folder / "notes.txt.repaired.jsonl").exists()
