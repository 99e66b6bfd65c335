"""Row 22: tokens in the environment or in the configuration are in no artefact, log, traceback or report."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import JsonValue

from asyncgen.config import Config
from asyncgen.config_section import HIDDEN, without_secrets
from tests.programs import asyncgen, environment

CANARY = "hf_canaryCANARY0123456789"
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ASYNCGEN_TEST_SECRET")
MINE = """\
async def prompts(start: int, api_key: str, service: dict, fails: bool = False):
    assert api_key.startswith("hf_canary") and service["password"] == api_key
    for number in range(start, 40):
        if fails and number == 30:
            raise ValueError("the service said no")
        yield f"story {number}"


async def check(completion, hf_token: str):
    assert hf_token.startswith("hf_canary")
"""
STALLS = (
    "--set=watchdog=1",
    "--set=validation.functions[0].timeout=0.9",
    "--set=backend.seconds_per_batch=9",
    f"--set=sources[0].parameters.api_key={CANARY}",
    "--set",
    f"sources[0].parameters.service={{password: {CANARY}}}",
)
"""It ends with the command that goes on."""
CONFIG = """\
num_stories: {stories}
backend: {{kind: echo, bad_share: 0.2}}
validation: {{require_words: false, functions: [{{function: "mine.py:check", parameters: {{hf_token: {canary}}}}}]}}
sources:
- kind: python
  function: mine.py:prompts
  parameters: {{api_key: {canary}, service: {{password: {canary}, name: aurora}}, fails: {fails}}}
"""


def run(folder: Path, *more: str, stories: int = 20, fails: bool = False) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(MINE)
    (folder / "c.yaml").write_text(CONFIG.format(canary=CANARY, stories=stories, fails=str(fails).lower()))
    arguments = ("run", "c.yaml", "--log-level", "debug", "--log-file", "log.txt", *more)
    return asyncgen(*arguments, cwd=folder, env=environment(**dict.fromkeys(VARIABLES, CANARY)))


def leaks(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    return sorted(path.name for path in found if path.name != "c.yaml")


@pytest.mark.parametrize(
    ("more", "fails", "code"),
    [
        ((), False, 0),
        (("--num-stories", "35"), True, 2),
        (("--set", "sources[0].parameters.kind=1"), False, 2),
        (("--set", "generation.temperature=hot"), False, 2),
        (STALLS, False, 75),
    ],
)
def test_no_canary_sings(tmp_path: Path, more: tuple[str, ...], fails: bool, code: int) -> None:
    done = run(tmp_path, *more, fails=fails)
    assert done.returncode == code, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert (f"sources[0].parameters.api_key={HIDDEN}" in done.stderr) == (more is STALLS)
    assert leaks(tmp_path) == []


def test_not_even_where_settings_changed_and_another_key_is_no_change(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    manifest = (tmp_path / "stories.run.json").read_text()
    assert HIDDEN in manifest
    assert "aurora" in manifest
    done = run(tmp_path, "--set", "sources[0].parameters.service.name=borealis", stories=25)
    assert (done.returncode, "borealis" in done.stderr) == (2, True), done.stderr
    assert CANARY not in done.stdout + done.stderr
    done = run(tmp_path, "--set", f"sources[0].parameters.service.password={CANARY}2", stories=25)
    assert done.returncode == 2  # the function compares; the point is that resuming was not refused for the key
    assert "begun with another configuration" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert leaks(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        *((name, True) for name in ("api_key", "APIKEY", "apiKey", "hf_token", "token", "db.password", "clientSecret")),
        *((name, True) for name in ("accessToken", "api_keys", "X-Authorization", "credentials")),
        *((name, False) for name in ("tokens", "max_tokens", "keyword", "key", "monkey", "secretary", "author")),
        *((name, True) for name in ("openaiKey", "dsn", "auth", "pwd", "serviceKeys", "session_cookie")),
        *((name, False) for name in ("end_token", "eosToken", "token_style", "max_token", "sort_key", "cacheKey")),
    ],
)
def test_which_names_are_secret(name: str, hidden: bool) -> None:
    values: tuple[JsonValue, ...] = ("x", 12345678, ["x"], {"user": "me", "key": "x"})
    for value in values:
        found = without_secrets({"a": [{name: value}], "n": {name: None}})
        assert found == {"a": [{name: HIDDEN if hidden else value}], "n": {name: None}}


def test_the_configuration_itself_keeps_them() -> None:
    source = {"kind": "python", "function": "m:f", "parameters": {"api_key": CANARY}}
    config = Config.model_validate({"sources": [source]})
    assert CANARY in config.model_dump_json()
    assert CANARY not in str(config.resolved())


def test_a_hidden_value_is_no_value(tmp_path: Path) -> None:
    done = run(tmp_path, "--set", f"sources[0].parameters.api_key={HIDDEN}")
    assert (done.returncode, "stands where a secret was hidden" in done.stderr) == (2, True), done.stderr
