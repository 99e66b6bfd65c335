"""One session of a run: what it tells, what it leaves, and how a failing disk or a moved model ends it."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import asyncgen
from asyncgen.config import EchoBackend
from tests.backends.helpers import make_model
from tests.programs import records

pytestmark = pytest.mark.anyio


def config_for(folder: Path, **changes: object) -> asyncgen.Config:
    settings: dict[str, object] = {
        "backend": EchoBackend(kind="echo", seconds_per_batch=0.01),
        "output_path": folder / "s.jsonl",
        "num_stories": 200,
        "use_k_shot": False,
    }
    return asyncgen.Config.model_validate(settings | changes)


async def test_stop_finishes_what_was_begun_and_says_so(tmp_path: Path) -> None:
    config = config_for(tmp_path, num_stories=2000)
    stop = anyio.Event()

    async def watch(flow: asyncgen.Watched) -> None:
        while flow.snapshot().accepted < 30:  # a view has nothing to wait for: it looks now and then
            await anyio.lowlevel.checkpoint()
        stop.set()

    report = await asyncgen.run(config, stop=stop, watch=watch)
    assert (report.outcome, report.complete) == ("stopped", False)
    assert 30 <= report.snapshot.accepted == len(records(tmp_path / "s.jsonl")) < 2000
    manifest = json.loads((tmp_path / "s.run.json").read_text())
    assert manifest["state"] == "stopped"
    assert manifest["facts"]["last session"]["stories"] == report.snapshot.accepted


async def test_drain_timeout_bounds_a_stop(tmp_path: Path) -> None:
    config = config_for(tmp_path, backend=EchoBackend(kind="echo", seconds_per_batch=3000), drain_timeout=0.2)
    stop = anyio.Event()

    async def stop_soon(flow: asyncgen.Watched) -> None:
        while not flow.snapshot().depths["undecided"]:
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.1)  # the batch is begun
        stop.set()

    with anyio.fail_after(30):
        report = await asyncgen.run(config, stop=stop, watch=stop_soon)
    assert report.outcome == "stopped"


async def test_changed_speed_is_noted_and_changed_records_are_refused(tmp_path: Path) -> None:
    await asyncgen.run(config_for(tmp_path, num_stories=5))
    told: list[str] = []
    more = config_for(tmp_path, num_stories=9, generation={"batch_size": 3})
    report = await asyncgen.run(more, notice=told.append)
    assert report.complete
    assert told == list(report.notices) == ["resumed with another setting: generation.batch_size: was 8, now 3"]
    with pytest.raises(asyncgen.ResumeRefused, match="seed: was 0, now 1"):
        await asyncgen.run(config_for(tmp_path, seed=1))


async def test_a_hub_model_that_moved_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name, another commit: a cache as huggingface_hub lays it out, and offline mode."""
    repository = tmp_path / "hub" / "models--somebody--tiny"
    for number, commit in enumerate(("a" * 40, "b" * 40)):
        make_model(repository / "snapshots" / commit, seed=number)
    (repository / "refs").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = config_for(
        tmp_path,
        model_name="somebody/tiny",
        backend={"kind": "static", "device": "cpu"},
        generation={"batch_size": 2, "max_new_tokens": 8},
        validation={"enabled": False},
        num_stories=2,
    )
    for commit, more in (("a" * 40, 2), ("a" * 40, 3), ("b" * 40, 4)):
        (repository / "refs" / "main").write_text(commit)
        grown = config.model_copy(update={"num_stories": more})
        if commit[0] == "b":
            with pytest.raises(asyncgen.ResumeRefused, match=f"was {'a' * 40}, now {'b' * 40}"):
                await asyncgen.run(grown)
        else:
            assert (await asyncgen.run(grown)).complete
    assert len(records(tmp_path / "s.jsonl")) == 3


async def test_what_carries_its_report_is_not_reported_otherwise(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"prompt": "tell"}\n' * 2)
    config = config_for(tmp_path, num_stories=9, sources=[{"kind": "jsonl", "path": str(tmp_path / "two.jsonl")}])
    told: list[asyncgen.Report] = []
    with pytest.raises(asyncgen.SourcesEnded) as caught:
        await asyncgen.run(config, cut_short=told.append)
    assert caught.value.report.outcome == "sources ended"
    assert not told


async def test_inputs_that_fail_before_anything_was_written_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def items(start: int):\n    raise KeyError('no')\n    yield ''\n")
    source = {"kind": "python", "function": f"{tmp_path / 'mine.py'}:items"}
    config = config_for(tmp_path, num_stories=9, sources=[source])
    with pytest.raises(asyncgen.DataError):
        await asyncgen.run(config)
    assert not (tmp_path / "s.jsonl").exists()
    assert not (tmp_path / "s.run.json").exists()
