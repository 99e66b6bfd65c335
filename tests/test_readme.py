"""README's commands and snippets are run; its links and its record are true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from asyncgen.cli import EXIT_CODES
from asyncgen.cli.watchdog import STALLED
from asyncgen.config_file import load_config
from asyncgen.dashboard.figures import Memory, figures
from asyncgen.metrics import Snapshot
from asyncgen.prompts.templates import load_template
from asyncgen.resources import bundled_model
from tests.programs import ECHO, ROOT, asyncgen, environment, records

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_dashboard_shown_has_the_figures_of_the_dashboard() -> None:
    (block,) = [block for block in blocks("text") if "generator " in block]
    shown = [line.split(" ")[0] for line in block.splitlines()[2:] if line[0] != " "]
    known = [figure.label for figure in figures(Snapshot(reasons={"missing words": 4}), memory=Memory(1, 1))]
    assert shown == known


def test_the_commands_for_your_own_stories(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("sh") if "my.yaml" in block]
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        assert command[:3] == ["python", "-m", "asyncgen"]
        done = asyncgen(*command[3:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if command[3] == "init":
            path = tmp_path / "my.yaml"
            # The same file, with the backend that needs no model and fewer stories.
            text = re.sub(r"backend:\n(  .*\n)+", "backend: {kind: echo}\n", path.read_text())
            path.write_text(text)
        if command[3] == "run":
            assert len(records(tmp_path / "my.jsonl")) == int(command[-1])


def test_the_template_shown_is_the_built_in_one() -> None:
    (block,) = [block for block in blocks("text") if "{word1}" in block]
    assert block.rstrip("\n") == load_template(None).text


def test_the_configuration_shown_loads(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "c.yaml").write_text(block)
    assert load_config(tmp_path / "c.yaml").generation.batch_size == "auto"


def test_the_record_shown_has_the_keys_of_a_record(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--num-stories", "1", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "s.jsonl", timings=True)
    (block,) = blocks("json")
    shown = json.loads(block)
    assert list(shown) == list(record)
    assert list(shown["metadata"]) == list(record["metadata"])
    assert {key: type(value) for key, value in shown.items()} == {key: type(value) for key, value in record.items()}


def test_exit_codes_are_those_of_the_program() -> None:
    (line,) = re.findall(r"Exit codes: (.*?)\n\n", README, re.DOTALL)
    named = {int(number) for number in re.findall(r"(?<![\d/])(\d+)(?=[ /])", line)} | {143}
    assert named == {0, 1, STALLED, 130, 143} | {code for _, code in EXIT_CODES}


def test_help_names_every_flag_that_the_readme_uses() -> None:
    known = "".join(asyncgen(command, "--help", cwd=ROOT).stdout for command in ("run", "init", "check"))
    used = set(re.findall(r"`(--[a-z][a-z-]+)", README)) | set(re.findall(r" (--[a-z][a-z-]+)", blocks("sh")[-1]))
    assert used
    assert all(flag in known for flag in used), used


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_the_embedding_snippet_prints_five_stories() -> None:
    (block,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{'word1': ") == 5
