"""Refusals on the command line: the cause that there is, all of it, under the configuration's own keys and lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import asyncgen, without_torch

SOURCE = """
async def items(start):
    for number in range(start, 100):
        if number == 20:
            with open("tmpl.txt", "w") as file:
                file.write("edited {wrod1}")
            raise KeyError("no such thing")
        yield f"tell story {number}"
"""
CONFIG = """\
backend: {kind: echo}
num_stories: 90
use_k_shot: false
vocabulary_path: w.txt
template: tmpl.txt
output_path: out/s.jsonl
sources:
- {kind: template}
- kind: python
  function: mine.py:items
- kind: jsonl
  path: p.jsonl
validation:
  banned_words_path: b.txt
  functions:
  - {function: check.py:check}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "tmpl.txt": "a {word1}",
        "w.txt": "moon\nstar\n",
        "mine.py": SOURCE.replace("if number == 20", "if False"),
        "p.jsonl": '{"prompt": "a"}\n' * 40,
        "b.txt": "gun\n",
        "check.py": "def check(completion): return True\n",
        "c.yaml": CONFIG,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("command", [("run",), ("preview", "-n", "100", "--no-tokens")])
def test_a_failure_in_the_middle_is_told_although_a_file_was_edited_meanwhile(
    folder: Path, command: tuple[str, ...]
) -> None:
    (folder / "mine.py").write_text(SOURCE)
    done = asyncgen(command[0], "c.yaml", *command[1:], cwd=folder, env=without_torch(folder))
    assert done.returncode == 2
    assert "item 20: the function raised KeyError: 'no such thing'" in done.stderr
    assert "wrod1" not in done.stderr


@pytest.mark.parametrize(
    ("name", "line", "key"),
    [
        ("w.txt", 4, "vocabulary_path"),
        ("tmpl.txt", 5, "template"),
        ("mine.py", 10, "sources[1].function"),
        ("p.jsonl", 12, "sources[2].path"),
        ("b.txt", 14, "validation.banned_words_path"),
        ("check.py", 16, "validation.functions[0].function"),
    ],
)
def test_an_edited_input_is_refused_under_the_key_and_line_that_name_it(
    folder: Path, name: str, line: int, key: str
) -> None:
    assert asyncgen("run", "c.yaml", "--num-stories", "5", cwd=folder).returncode == 0
    edited = folder / name
    edited.write_text(edited.read_text().replace("a", "e", 1).replace("moon", "sun").replace("gun", "axe"))
    if name.endswith(".py"):
        edited.write_text((CHECK if name == "check.py" else SOURCE.replace("== 20", "== 21")) + "# edited\n")
    for command in ("run", "check"):
        done = asyncgen(command, "c.yaml", cwd=folder, env=without_torch(folder))
        assert done.returncode == 2
        assert f"c.yaml:{line}: {key}: content changed" in done.stderr
        assert "inputs" not in done.stderr
        assert "output_path: " not in done.stderr


CHECK = "def check(completion): return True\n"


def test_all_that_is_wrong_with_the_checks_is_found(folder: Path) -> None:
    (folder / "v.yaml").write_text("""\
validation:
  forbid_patterns: ["(", "fine", "[a"]
  require_patterns: ["*"]
  banned_words: ["...", "gun", "--"]
  banned_words_path: none.txt
  functions:
  - {function: "nope:f"}
  - {function: "neither:g"}
  - {function: "check.py:check"}
  - {function: "check.py:check"}
""")
    done = asyncgen("check", "v.yaml", cwd=folder, env=without_torch(folder))
    assert done.returncode == 2
    for key in (
        "2: validation.forbid_patterns[0]: ",
        "2: validation.forbid_patterns[2]: ",
        "3: validation.require_patterns[0]: ",
        "4: validation.banned_words[0]: ",
        "4: validation.banned_words[2]: ",
        "5: validation.banned_words_path: ",
        "7: validation.functions[0].function: there is no module 'nope'",
        "8: validation.functions[1].function: there is no module 'neither'",
        "10: validation.functions[3]: another one is called 'check' too",
    ):
        assert done.stderr.count(f"v.yaml:{key}") == 1, (key, done.stderr)
    assert "9 problems" in done.stderr


@pytest.mark.parametrize("device", ["cudda", "cuda:x", "cpu:1x", "meta", ""])
def test_a_mistyped_device_is_found_by_check_too(tmp_path: Path, device: str) -> None:
    (tmp_path / "c.yaml").write_text(f"backend:\n  kind: auto\n  device: {device!r}\n")
    for command in ("check", "run"):
        done = asyncgen(command, "c.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert f"c.yaml:3: backend.device: found {device!r}, allowed: auto, cpu, cuda" in done.stderr
        assert not (tmp_path / "c.lock").exists()


def test_what_only_a_loading_model_finds_has_its_place_too(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("num_stories: 3\nbackend:\n  device: cuda:99\n")
    done = asyncgen("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "c.yaml:3: backend.device: 'cuda:99' is not there" in done.stderr
    done = asyncgen("run", "--set", "backend.device=cuda:99", cwd=tmp_path)
    assert "--set backend.device=cuda:99: backend.device: 'cuda:99' is not there" in done.stderr


@pytest.mark.parametrize(
    ("setting", "key", "package"),
    [
        ("{quantization: 8bit}", "backend.quantization", "bitsandbytes"),
        ("{device_map: auto}", "backend.device_map", "accelerate"),
    ],
)
def test_a_missing_package_is_the_fault_of_the_key_that_needs_it(
    tmp_path: Path, setting: str, key: str, package: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"num_stories: 3\nbackend: {setting}\n")
    for command in ("check", "run"):
        done = asyncgen(command, "c.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert f"c.yaml:2: {key}: " in done.stderr
        assert f"needs the package {package}" in done.stderr


@pytest.mark.parametrize(
    ("asked", "written"), [("sub/c.yaml", "sub/c.yaml"), ("sub/c.json", "sub/c.yaml"), ("my c.yml", "'my c.yml'")]
)
def test_the_file_that_is_to_be_written_is_the_one_that_was_asked_for(tmp_path: Path, asked: str, written: str) -> None:
    done = asyncgen("run", asked, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(
        f"{asked}: no such file\n  hint: write one with: python -m asyncgen init {written}"
    )


def test_a_check_that_yields_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def check(completion):\n    yield 1\n")
    (tmp_path / "c.yaml").write_text("backend: {kind: echo}\nvalidation:\n  functions: [{function: 'mine.py:check'}]\n")
    for command in ("check", "run"):
        done = asyncgen(command, "c.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert "c.yaml:3: validation.functions[0].function: is a generator function; a check returns" in done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("template: ''", "template: found an empty text"),
        ("validation: {readability: {known_words_path: no.txt}}", "validation.readability.known_words_path: "),
    ],
)
def test_what_would_not_be_used_must_be_there_all_the_same(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"backend: {{kind: echo}}\n{setting}\n")
    for command in ("check", "run"):
        done = asyncgen(command, "c.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert f"c.yaml:2: {message}" in done.stderr
