"""Row 29: the wall clock may jump wherever it likes; nothing is computed from it."""

from __future__ import annotations

import random
import time
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from asyncgen.config import Config
from asyncgen.output import opening
from asyncgen.session import run
from tests.flows import config_for
from tests.programs import records

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]


class Jumping(datetime):
    """What the manifest's times are taken from."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Jumping:
        return cls(random.randint(1971, 2200), 1, 1, tzinfo=tz)


def config_at(folder: Path) -> Config:
    settings = {"num_stories": 300, "bad_share": 0.3, "seconds_per_batch": 0.005}
    return config_for(**settings, output_path=folder / "stories.jsonl")


async def test_records_and_durations_do_not_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "still").mkdir()
    (tmp_path / "jumping").mkdir()
    assert (await run(config_at(tmp_path / "still"))).complete
    rng = random.Random(1)
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + rng.choice((-1, 1)) * rng.uniform(0, 1e9))
        patch.setattr(opening, "datetime", Jumping)
        began = time.monotonic()
        report = await run(config_at(tmp_path / "jumping"))
        took = time.monotonic() - began
    assert report.complete
    assert 0 < report.snapshot.seconds <= took
    for name in ("stories.jsonl", "stories.rejected.jsonl"):
        assert records(tmp_path / "jumping" / name) == records(tmp_path / "still" / name)
    lines = records(tmp_path / "jumping" / "stories.jsonl", timings=True)
    assert all(0 <= line["generation_time"] <= took for line in lines)
