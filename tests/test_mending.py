"""What the hints of a run that stopped promise is what the next session does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.programs import ECHO, records
from tests.programs import asyncgen as program

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


def test_a_run_that_may_be_hopeless_says_so_once_long_before_it_stops(tmp_path: Path) -> None:
    settings = ("--set", "backend={kind: echo, bad_share: 1.0}", "--num-stories", "900", "--set", "max_attempts=1")
    done = program("run", *settings, "--batch-size", "4", "--set", "window=8", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("; the run stops at 181 of 200\n") == 1
    (line,) = [line for line in done.stderr.splitlines() if line.endswith("the run stops at 181 of 200")]
    assert re.match(r"\d+ of the last \d+ prompts were rejected, most for: .*too short \(\d+\)", line)
    assert 20 <= int(line.split()[0]) <= 60
    done = program("run", *ECHO, "--num-stories", "60", "--output-path", "good.jsonl", cwd=tmp_path)
    assert "the run stops at" not in done.stderr


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


def test_a_source_that_raises_says_at_which_line_and_the_run_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "items.py").write_text(
        "async def items(start):\n    for k in range(start, 99):\n        yield f'tell {k // (41 - k)}'\n"
    )
    (tmp_path / "c.yaml").write_text(f"{SETTINGS}sources: [{{kind: python, function: 'items.py:items'}}]\n")
    done = program("run", "c.yaml", "--log-level", "debug", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "item 41: the function raised ZeroDivisionError: integer division or modulo by zero (items.py:3)" in (
        done.stderr
    )
    assert "Traceback (most recent call last)" in done.stderr
    assert "failed: 41 of 150 stories, 41 of them made now" in done.stderr
    assert f"stories   {tmp_path / 'stories.jsonl'}" in done.stderr
    assert "Traceback" not in program("run", "c.yaml", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("function", "more", "said"),
    [
        ("check", "", "raised ValueError: my bug (checks.py:5)"),
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
    assert "then run again" in done.stderr
    facts = json.loads((tmp_path / "stories.run.json").read_text())["facts"]
    assert facts["may be mended"] == ["validation.functions[1]"]
    kept = (tmp_path / "stories.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") <= 100

    (tmp_path / "other.py").write_text("def other(completion): return\n")
    refused = program("run", "c.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "validation.functions[0].function: content changed" in refused.stderr
    (tmp_path / "other.py").write_text("def other(completion): pass\n")

    (tmp_path / "checks.py").write_text(f"def {function}(completion): pass\n")
    done = program("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "validation.functions[1].function: content changed" in done.stderr
    assert (tmp_path / "stories.jsonl").read_bytes().startswith(kept)
    assert len(records(tmp_path / "stories.jsonl")) == 150

    (tmp_path / "checks.py").write_text(f"def {function}(completion): return\n")
    refused = program("run", "c.yaml", "--num-stories", "160", cwd=tmp_path)
    assert refused.returncode == 2, "it did not fail in the last session"
