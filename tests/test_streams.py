"""What surrounds the program: its streams, its locale, its environment and files that are none, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, environment, records
from tests.terminal import Terminal

FEW = (*ECHO, "--num-stories", "3")


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    whole = f'asyncgen() {{ {sys.executable} -m asyncgen "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", whole],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(("name", "why"), [("pipe", "it is not a regular file"), ("folder", "Is a directory")])
def test_a_log_file_must_be_a_file(tmp_path: Path, name: str, why: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    done = asyncgen("run", *FEW, "--log-file", name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{name}: the log cannot be written: {why}" in done.stderr


@pytest.mark.parametrize(
    "name", ["s.jsonl", "s.rejected.jsonl", "s.run.json", "s.lock", "config.yaml", "v.txt", "link.txt"]
)
def test_a_log_is_not_written_into_a_file_of_the_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text("output_path: s.jsonl\nvocabulary_path: v.txt\n")
    (tmp_path / "v.txt").write_text("moon\nstar\ntree\nboat\n")
    (tmp_path / "link.txt").symlink_to("v.txt")
    done = asyncgen("run", "config.yaml", *FEW, "--log-file", name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--log-file {name}: that is a file of the run itself" in done.stderr
    assert (tmp_path / "v.txt").read_text() == "moon\nstar\ntree\nboat\n"


def test_rejects_need_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stories.rejected.jsonl")
    done = asyncgen("run", *FEW, cwd=tmp_path)
    assert done.returncode == 2
    assert "stories.rejected.jsonl is not a regular file" in done.stderr


@pytest.mark.parametrize(
    "variable", ["TQDM_DISABLE=1", "TQDM_ASCII=1", "TQDM_NCOLS=zz", "TQDM_MININTERVAL=zz", "TQDM_POSITION=x"]
)
def test_variables_of_tqdm_do_not_end_a_run(tmp_path: Path, variable: str) -> None:
    name, _, value = variable.partition("=")
    terminal = Terminal(("-m", "asyncgen", "run", *FEW), tmp_path, env={name: value})
    terminal.follow()
    assert terminal.wait() == 0, terminal.lines
    assert len(records(tmp_path / "stories.jsonl")) == 3


def test_what_is_shown_never_fails_for_its_characters(tmp_path: Path) -> None:
    shown = shell("asyncgen preview --set 'template=Über {word1}' --no-tokens -n 1", tmp_path, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert "\\xdcber " in shown.stdout
    checked = shell("asyncgen check --set backend.kind=echo --output-path ü.jsonl", tmp_path, PYTHONIOENCODING="ascii")
    assert checked.returncode == 0, checked.stderr


def test_names_that_are_not_utf_8_are_refused_as_what_they_are(tmp_path: Path) -> None:
    done = shell("asyncgen init $'a\\xff.yaml'", tmp_path)
    assert done.returncode == 2
    assert "a\\udcff.yaml: the name is not UTF-8" in done.stderr
    assert not list(tmp_path.iterdir())
    done = shell("mkdir $'n\\xff' && cd $'n\\xff' && asyncgen check --set backend.kind=echo", tmp_path)
    assert done.returncode == 2
    assert "n?: the name is not UTF-8" in done.stderr


def test_a_locale_that_cannot_name_a_file_is_said(tmp_path: Path) -> None:
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("asyncgen run --set backend.kind=echo --output-path ü.jsonl", tmp_path, **bare)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "PYTHONUTF8=1" in done.stderr


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("asyncgen --help >/dev/full", 1),
        ("asyncgen --version >/dev/full", 1),
        ("asyncgen rnu 2>&-", 2),
        ("asyncgen rnu 2>/dev/full", 2),
        ("asyncgen run --nothing 2>&-", 2),
        ("asyncgen --version >&- 2>&-", 0),
    ],
)
def test_streams_that_fail_or_are_closed(tmp_path: Path, command: str, code: int, buffered: str) -> None:
    done = shell(command, tmp_path, PYTHONUNBUFFERED=buffered)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["sed: 3\nnum_storys: 1\n", "a: [\n", None])
def test_a_check_as_json_is_json_whatever_is_wrong(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    done = asyncgen("check", "c.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    sound = json.loads(asyncgen("check", *ECHO, "--json", cwd=tmp_path).stdout)
    assert found.keys() == sound.keys()
    assert not found["ok"]
    assert len(found["problems"]) == (2 if text and "storys" in text else 1)
    assert all("c.yaml" in problem["message"] for problem in found["problems"])
