"""What the hints of a run that stopped promise is what the next session does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.programs import asyncgen as program
from tests.programs import records

CHECK = """
def check(completion):
    if completion.prompt.index >= 100:
        raise ValueError("my bug")

def later(completion):
    if completion.prompt.index >= 100:
        time.sleep(3600)
"""
SETTINGS = "backend: {kind: echo}\nnum_stories: 150\nmax_attempts: 1\n"


def test_a_hopeless_run_without_a_story_is_mended_and_begins_anew(tmp_path: Path) -> None:
    settings = ("--set", "backend.kind=echo", "--num-stories", "20", "--set", "max_attempts=1")
    done = program("run", *settings, "--set", "validation.min_words=140", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "no story was accepted yet, so it begins anew" in done.stderr
    done = program("run", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "begins anew with the changed configuration (validation.min_words: was 140, now 30)" in done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 20
    assert len(records(tmp_path / "stories.rejected.1.jsonl")) == 200
    assert not records(tmp_path / "stories.rejected.jsonl")


def test_a_hopeless_run_with_stories_says_what_can_be_done(tmp_path: Path) -> None:
    settings = ("--set", "backend={kind: echo, bad_share: 0.7}", "--set", "max_attempts=1", "--num-stories", "90")
    done = program("run", *settings, "--set", "max_rejection_rate=0.5", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "raise max_rejection_rate to go on" in done.stderr
    assert "another output_path" in done.stderr
    changed = program("run", *settings, "--set", "validation.min_words=29", cwd=tmp_path)
    assert changed.returncode == 2
    done = program("run", *settings, "--set", "max_rejection_rate=0.9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("function", "more", "said"),
    [
        ("check", "", "raised ValueError: my bug"),
        ("later", ", timeout: 0.3, concurrency: 4", "calls that took longer than 0.3 s"),
    ],
)
def test_a_check_that_stopped_the_run_may_be_mended_and_another_may_not(
    tmp_path: Path, function: str, more: str, said: str
) -> None:
    (tmp_path / "checks.py").write_text("import time\n" + CHECK)
    (tmp_path / "other.py").write_text("def other(completion): pass\n")
    functions = f"[{{function: 'other.py:other'}}, {{function: 'checks.py:{function}'{more}}}]"
    (tmp_path / "c.yaml").write_text(f"{SETTINGS}validation:\n  functions: {functions}\n")
    done = program("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert said in done.stderr
    assert "then run again; what was decided is kept" in done.stderr
    facts = json.loads((tmp_path / "stories.run.json").read_text())["facts"]
    assert facts["may be mended"] == ["validation.functions[1]"]
    kept = (tmp_path / "stories.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") <= 100

    (tmp_path / "other.py").write_text("def other(completion): return\n")
    refused = program("run", "c.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "inputs.validation.functions[0]: content changed" in refused.stderr
    (tmp_path / "other.py").write_text("def other(completion): pass\n")

    (tmp_path / "checks.py").write_text(f"def {function}(completion): pass\n")
    done = program("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "inputs.validation.functions[1]: content changed" in done.stderr
    assert (tmp_path / "stories.jsonl").read_bytes().startswith(kept)
    assert len(records(tmp_path / "stories.jsonl")) == 150

    (tmp_path / "checks.py").write_text(f"def {function}(completion): return\n")
    refused = program("run", "c.yaml", "--num-stories", "160", cwd=tmp_path)
    assert refused.returncode == 2, "it did not fail in the last session"
