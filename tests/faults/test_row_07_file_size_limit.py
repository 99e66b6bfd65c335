"""Row 7: a limit of the file size (RLIMIT_FSIZE) shortens a write, then refuses all. As with a full disk the run stops
with exit 74, no file is invalid, and without the limit the same run goes on.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from asyncgen.output import verify
from tests.faults.conftest import FULL, Trials
from tests.output.child import child
from tests.programs import ECHO, asyncgen, records, shell


def test_at_any_byte_the_files_stay_valid_and_the_run_goes_on(tmp_path: Path, trials: Trials) -> None:
    """The manifest itself, of some thousand bytes, runs into the smallest ones."""
    draw = random.Random(7)
    sizes = [1, 700, 5_000, 20_011, 70_003, *(draw.randrange(100, 200_000) for _ in range(20))]
    sizes = sizes[: trials(5, len(sizes))]
    with child("limited", tmp_path, *sizes) as process:
        answers = json.loads(process.communicate(timeout=100)[0])
    for size, said in zip(sizes, answers, strict=True):
        assert "File too large" in said["why"], size
        assert said["equal"], size


@pytest.mark.parametrize("blocks", [60, 100, 150][: 3 if os.environ.get(FULL) else 1])
def test_the_command_line_says_so_and_goes_on(tmp_path: Path, blocks: int) -> None:
    flags = "--set 'backend={kind: echo, seconds_per_batch: 0.05}' --num-stories 300 --output-path s.jsonl"
    limited = shell(f"trap '' XFSZ; ulimit -f {blocks}; {sys.executable} -m asyncgen run {flags}", cwd=tmp_path)
    assert limited.returncode == 74, limited.stderr
    assert f"{tmp_path / 's.jsonl'} cannot be written: File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    kept = records(tmp_path / "s.jsonl")
    assert [record["metadata"]["index"] for record in kept] == list(range(len(kept)))
    assert 0 < len(kept) < 300
    done = asyncgen("run", *ECHO, "--num-stories", "300", "--output-path", "s.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [record["metadata"]["index"] for record in records(tmp_path / "s.jsonl")] == list(range(300))
    assert verify(tmp_path / "s.jsonl").ok
