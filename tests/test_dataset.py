"""What lands on disk is what ``datasets`` reads, and what the brief promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.programs import ECHO, ROOT, asyncgen, environment

PAIRS = """
import sys
from datasets import load_dataset
for name in ("s.jsonl", "s.rejected.jsonl"):
    stories = load_dataset("json", data_files=name, split="train", cache_dir=sys.argv[1])
    for metadata in stories["metadata"]:
        roles = [message["role"] for message in metadata["messages"]]
        assert roles == ["user", "assistant"] * 2 + ["user"], roles
        assert set(metadata["selected_words"].values()) <= set(metadata["messages"][-1]["content"].split())
    print(name, stories.num_rows)
"""
PROGRAM = """
import sys
from datasets import load_dataset
stories = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
assert stories.num_rows == 30, stories
print(sorted(stories.column_names))
"""


def test_datasets_reads_both_files(tmp_path: Path) -> None:
    settings = ("--set", "backend={kind: echo, bad_share: 0.6}", "--set", "max_attempts=1")
    done = asyncgen("run", *settings, "--num-stories", "30", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "s.jsonl"), str(tmp_path / "cache")],
        env=environment(HF_DATASETS_OFFLINE="1", HF_HOME=str(tmp_path / "home")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    assert "'content'" in read.stdout


def test_datasets_reads_the_conversations_of_both_files(tmp_path: Path) -> None:
    settings = (
        "--set",
        "backend={kind: echo, bad_share: 0.6}",
        "--set",
        "max_attempts=1",
        "--set",
        "record_messages=true",
    )
    done = asyncgen("run", *settings, "--num-stories", "30", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = subprocess.run(
        [sys.executable, "-c", PAIRS, str(tmp_path / "cache")],
        env=environment(HF_DATASETS_OFFLINE="1", HF_HOME=str(tmp_path / "home")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    assert "s.jsonl 30" in read.stdout


def test_an_independent_script_has_no_complaints(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--num-stories", "200", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_stories.py"), str(tmp_path / "s.jsonl"), "200"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([lines[1], lines[0], lines[0]]))
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_stories.py"), str(tmp_path / "bad.jsonl"), "200"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 1
    assert "3 lines instead of 200" in check.stdout
    assert "not in index order" in check.stdout
    assert "content is not unique" in check.stdout
