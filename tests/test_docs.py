"""The documentation is true: links lead somewhere, examples run, outputs are as shown, messages are the code's."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from asyncgen.cli import EXIT_CODES
from asyncgen.cli.watchdog import STALLED
from asyncgen.config_file import load_config
from asyncgen.output.fingerprint import RULES
from asyncgen.prompts.templates import DEFAULT_TEMPLATE
from tests.pages import Example, read_page
from tests.programs import ROOT, environment
from tools.write_docs import command_line, configuration, resuming

DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")] + DOCS
SAYS = "to bring the generated documentation up to date: python -m tools.write_docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in read_page(document).links:
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{document.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in read_page(target).anchors, f"{document.name}: {link}"


def test_every_page_is_listed() -> None:
    listed = set(read_page(ROOT / "docs" / "README.md").links)
    assert {path.name for path in DOCS} - {"README.md"} <= listed


def test_generated_parts_are_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == configuration(), SAYS
    assert (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8") == command_line(), SAYS
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    assert page == resuming(page), SAYS
    assert all(f"`{name}`" in page for name in RULES)


def test_the_template_shown_is_the_built_in_one() -> None:
    examples = read_page(ROOT / "docs" / "templates-and-k-shot.md").examples
    assert DEFAULT_TEMPLATE + "\n" in [example.text for example in examples]


def test_exit_codes_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    named = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for code in row.split(",")}
    assert named == {0, 1, STALLED, 130, 143} | {code for _, code in EXIT_CODES}


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_messages_quoted_in_tables_are_messages_of_the_code(document: Path) -> None:
    """In tables headed "the message says" and "reason"; ``...`` stands for what varies."""
    for head, rows in re.findall(
        r"^\| (the message says|reason) \|.*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text(), re.MULTILINE
    ):
        for row in rows.splitlines():
            for quoted in re.findall(r"`([^`]+)`", row.split("|")[1]):
                parts = [part.strip() for part in quoted.split("...")] if head != "reason" else [f"{quoted}:"]
                assert all(part in texts_of_the_code() for part in parts), f"{document.name}: {quoted}"


@cache
def texts_of_the_code() -> str:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "asyncgen").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(value for value in constants if isinstance(value, str))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ``python`` and ``asyncgen`` that the pages call."""
    folder = tmp_path_factory.mktemp("bin")
    for name, command in (("python", sys.executable), ("asyncgen", f"{sys.executable} -m asyncgen")):
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_a_page_does_what_it_shows(document: Path, programs: Path, tmp_path: Path) -> None:
    """From top to bottom, in one empty folder, as a reader would; what a page leaves running is ended."""
    try:
        _read_aloud(document, programs, tmp_path)
    finally:
        for file in tmp_path.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def _read_aloud(document: Path, programs: Path, tmp_path: Path) -> None:
    said = ""
    for example in read_page(document).examples:
        where = f"{document.name}:{example.line}"
        if "not run" in example.marks:
            assert example.marks["not run"], f"{where}: no reason is given"
        elif "output" in example.marks:
            assert _appears(example.lines, said), (
                f"{where}: expected\n{example.text}\nbut the example before it said\n{said}"
            )
        else:
            said = _use(example, where, tmp_path, programs)


def _use(example: Example, where: str, folder: Path, programs: Path) -> str:
    """Runs or loads an example; what it printed."""
    if "file" in example.marks:
        (folder / example.marks["file"]).write_text(example.text, encoding="utf-8")
    match example.language:
        case "sh":
            return _run(["bash", "-euo", "pipefail", "-c", _runnable(example, where)], example, where, folder, programs)
        case "python":
            return _run([sys.executable, "-c", example.text], example, where, folder, programs)
        case "yaml":
            file = folder / example.marks.get("file", "example.yaml")
            file.write_text(example.text, encoding="utf-8")
            load_config(file)
        case "json":
            json.loads(example.text)
        case "jsonl":
            for line in example.lines:
                json.loads(line)
        case "text":
            pass
        case _:
            pytest.fail(f"{where}: nothing is known of examples in {example.language!r}")
    return ""


def _run(command: list[str], example: Example, where: str, folder: Path, programs: Path) -> str:
    env = environment()
    env["PATH"] = f"{programs}:{env['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == int(example.marks.get("exit", "0")), f"{where}: {done.returncode}\n{done.stdout}"
    return done.stdout


def _runnable(example: Example, where: str) -> str:
    """Without the lines that install something; those name what is there."""
    kept = []
    for line in example.lines:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: {line}"
        elif re.match(r"(\S*/)?pip install ", line):
            extras = re.findall(r"asyncgen\[(.*?)\]", line)
            assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras), (
                f"{where}: {line}"
            )
        else:
            kept.append(line)
    return "\n".join(kept)


def _appears(expected: list[str], said: str) -> bool:
    """Whether the lines occur in this order; ``...`` in a line stands for anything, a line of it for any lines."""
    lines = iter(said.splitlines())
    patterns = [re.compile(".*".join(map(re.escape, line.split("...")))) for line in expected if line != "..."]
    return all(any(pattern.fullmatch(line.rstrip()) for line in lines) for pattern in patterns)
