"""A path at which no output can be made is bad input, and a run that is refused leaves nothing half made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, without_torch


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file/s.jsonl", "is not a folder"),
        ("file/deeper/s.jsonl", "is not a folder"),
        ("x" * 300 + ".jsonl", "File name too long"),
        (".", "not a regular file"),
        ("loop.jsonl", "loop"),
    ],
)
def test_a_path_that_cannot_be_is_exit_2_and_names_the_flag(
    tmp_path: Path, command: str, path: str, expected: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    done = asyncgen(command, *ECHO, "--output-path", path, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"asyncgen: error: --output-path {path[:100]}")
    assert ": output_path: " in done.stderr
    assert expected in done.stderr
    assert "committed" not in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "loop.jsonl", "poison"]


def test_a_folder_that_turns_read_only_is_exit_2_until_something_is_there(tmp_path: Path) -> None:
    """A lock that is a folder stands for whatever only shows when files are made; root may write anywhere."""
    (tmp_path / "s.lock").mkdir()
    flags = (*ECHO, "--output-path", "s.jsonl", "--num-stories")
    done = asyncgen("run", *flags, "5", cwd=tmp_path, env=without_torch(tmp_path))
    assert (done.returncode, "output_path: " in done.stderr) == (2, True), done.stderr
    (tmp_path / "s.lock").rmdir()
    assert asyncgen("run", *flags, "5", cwd=tmp_path).returncode == 0
    (tmp_path / "s.lock").unlink()
    (tmp_path / "s.lock").mkdir()
    done = asyncgen("run", *flags, "9", cwd=tmp_path)
    assert (done.returncode, "what was committed is safe" in done.stderr) == (74, True), done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, a folder in which no file can be made")
def test_a_folder_that_takes_no_files_is_not_taken_for_another_run(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--output-path", "/proc/s.jsonl", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "output_path: /proc/s.jsonl cannot be written: No such file" in done.stderr
    assert "another run" not in done.stderr


def test_folders_that_were_not_there_are_told(tmp_path: Path) -> None:
    flags = ("--num-stories", "1", "--output-path", "new/sub/s.jsonl")
    for told in (True, False):
        done = asyncgen("run", *ECHO, *flags, cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 0, done.stderr
        assert (f"made the folder {tmp_path / 'new' / 'sub'}\n" in done.stderr) == told
    for told in (True, False):
        done = asyncgen("init", "configs/a.yaml", "--force", cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 0, done.stderr
        assert ("made the folder configs\n" in done.stdout) == told


def test_a_model_that_fails_to_load_leaves_no_empty_files(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "")):
        (tmp_path / "m" / name).write_text(text)
    done = asyncgen("run", "--model-name", "m", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert [path.name for path in tmp_path.glob("stories*")] == ["stories.lock"]
    (tmp_path / "stories.jsonl").touch()
    assert asyncgen("run", "--model-name", "m", cwd=tmp_path).returncode == 2
    assert (tmp_path / "stories.jsonl").exists(), "what was there before is not ours to remove"
