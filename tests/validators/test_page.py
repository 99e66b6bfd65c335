"""docs/validators.md: every row refuses what it says for the reason it says. Its snippets are run with all pages'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from asyncgen.config import Config, QualityWeights, Readability, Validation
from asyncgen.records import Completion, Prompt
from asyncgen.resources import data_file
from asyncgen.text_files import read_words
from asyncgen.validators import KINDS, open_validators
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "validators.md").read_text(encoding="utf-8")
WORDS = {"word1": "moon", "word2": "dance"}
SHOT = "Once upon a time a small owl could not sleep."
OFF = {
    "min_words": 0,
    "max_words": 10_000,
    "require_words": False,
    "require_ending": False,
    "max_repetition": 1.0,
    "copy_words": 0,
    "min_quality": 0.0,
}


def table(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with ``first``."""
    (found,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found.splitlines()]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


ROWS = table("setting")


def completion(text: str) -> Completion:
    return Completion(Prompt(0, (), selected_words=WORDS, shots=(SHOT,)), text, 5, 0.1, "stop")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_check_refuses_what_its_row_says(row: list[str]) -> None:
    setting, _, text, reason = row
    settings: dict[str, Any] = {} if setting == "any" else yaml.safe_load(setting.strip("`"))
    validators = open_validators(Config.model_validate({"validation": OFF | settings}))
    assert validators.judge(completion(text)).reasons == (reason,)
    off = open_validators(Config.model_validate({"validation": OFF}))
    assert off.judge(completion(text)).accepted == (setting != "any"), "it is this setting that refuses it"


def test_every_kind_of_reason_and_every_setting_is_on_the_page() -> None:
    shown = {row[3].partition(":")[0] for row in ROWS}
    assert set(KINDS) - shown == {"slow pattern"}
    assert "slow pattern: " in PAGE
    for section in (Validation, Readability):
        assert [name for name in section.model_fields if name not in PAGE] == []


def test_defaults_are_what_the_page_says() -> None:
    for setting, default, *_ in ROWS[:6] + [row for row in ROWS if row[0].startswith("`min_quality")]:
        name = setting.strip("`").partition(":")[0]
        assert getattr(Validation(), name) == yaml.safe_load(default)
    weights = {name.strip("`"): float(default) for name, default, _ in table("`weights`") if name[0] == "`"}
    assert weights == QualityWeights().model_dump()
    words = read_words(data_file("known_words.txt"), "known-word list")
    assert f"({len(words):,} words" in PAGE


@pytest.mark.anyio
async def test_an_answer_reads_as_the_page_says(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "checks.py").write_text(code)
    functions = [_placed(each, tmp_path) for each in yaml.safe_load(blocks("yaml")[0])["validation"]["functions"]]
    validators = open_validators(Config.model_validate({"validation": OFF | {"functions": functions}}))
    assert validators.functions is not None
    for text, reasons in (("A stupid moon dances.", ("kind: says stupid",)), ("The moon dances.", ())):
        verdict = await validators.functions.ask(validators.judge(completion(text)), lambda *_: None)
        assert verdict.reasons == reasons


def _placed(function: dict[str, Any], folder: Path) -> dict[str, Any]:
    return function | {"function": str(folder / function["function"])}
