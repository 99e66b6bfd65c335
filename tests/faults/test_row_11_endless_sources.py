"""Row 11: a source that never ends, or is slow, ends with the run: at exactly ``num_stories``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import ECHO, asyncgen, records

ENDLESS = """\
import anyio
from itertools import count

async def endless(start: int):
    for number in count(start):
        yield f"prompt {number}"

async def slow(start: int):
    for number in count(start):
        await anyio.sleep(0.02)
        yield f"prompt {number}"
"""


@pytest.mark.parametrize("name", ["endless", "slow"])
@pytest.mark.parametrize("bad_share", [0.0, 0.4])
def test_it_stops_at_n_exactly(tmp_path: Path, name: str, bad_share: float) -> None:
    (tmp_path / "mine.py").write_text(ENDLESS)
    source = f"sources=[{{kind: python, function: 'mine.py:{name}'}}]"
    settings = ("--set", f"backend.bad_share={bad_share}", "--set", "validation.require_words=false")
    done = asyncgen("run", *ECHO, *settings, "--set", source, "--num-stories", "37", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 37
    rejected = len(records(tmp_path / "stories.rejected.jsonl"))
    last = records(tmp_path / "stories.jsonl")[-1]["metadata"]
    assert (last["accepted"], last["rejected"], last["index"]) == (37, rejected, 36 + rejected)
