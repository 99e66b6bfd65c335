"""What a run opens before its model: inputs that verdicts depend on, and errors that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncgen.config import Config
from asyncgen.resources import data_file
from asyncgen.validators import validator_files
from tests.programs import asyncgen


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, set()),
        ({"banned_words_path": "/b.txt"}, {"validation.banned_words"}),
        ({"readability": {"known_words_path": "/k.txt"}}, set()),
        ({"readability": {"known_words_path": "/k.txt", "min_known_words": 0.5}}, {"validation.known_words"}),
        ({"readability": {"max_grade": 4}}, set()),
        ({"enabled": False, "banned_words_path": "/b.txt", "readability": {"min_known_words": 0.5}}, set()),
    ],
)
def test_inputs_are_the_files_in_use(settings: dict[str, Any], names: set[str]) -> None:
    assert set(validator_files(Config.model_validate({"validation": settings}))) == names


def test_the_packaged_list_is_an_input_too() -> None:
    config = Config.model_validate({"validation": {"readability": {"min_known_words": 0.5}}})
    assert validator_files(config) == {"validation.known_words": data_file("known_words.txt")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("banned_words=['...']", "validation.banned_words[0]: there is no word in '...'"),
        ("banned_words_path=none.txt", "banned-word list file not found: "),
        ("forbid_patterns=['a(']", "validation.forbid_patterns[0]: 'a(' is not a regular expression"),
        ("readability={max_grade: 4, language: en_UK}", "did you mean 'en"),
        ("readability={min_known_words: 0.9, known_words_path: none.txt}", "known-word list file not found: "),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_cannot_be_used_is_refused_before_a_model_loads(
    tmp_path: Path, command: str, setting: str, message: str
) -> None:
    done = asyncgen(command, "--set", f"validation.{setting}", "--set", "backend.device=cpu", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_changed_list_is_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "banned.txt").write_text("gun\n")
    settings = ("--set", "backend.kind=echo", "--set", "validation.banned_words_path=banned.txt")
    run = ("run", *settings, "--output-path", "s.jsonl", "--num-stories")
    assert asyncgen(*run, "5", cwd=tmp_path).returncode == 0
    (tmp_path / "banned.txt").write_text("gun\nboat\n")
    done = asyncgen(*run, "9", cwd=tmp_path)
    assert done.returncode == 2
    assert ": validation.banned_words_path: content changed" in done.stderr
