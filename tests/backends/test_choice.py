"""Which engine a run has: what ``auto`` becomes, what the user and the manifest are told, what may be exchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import asyncgen
from asyncgen.config import LocalModel, SlotsBackend
from tests import programs
from tests.backends.helpers import make_model
from tests.programs import records

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that the in-flight engine refuses."""
    window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    return make_model(tmp_path_factory.mktemp("windowed"), "qwen2", **window)


def config_for(model: Path, folder: Path, kind: str, stories: int, **changes: Any) -> asyncgen.Config:
    return asyncgen.Config.model_validate(
        {
            "model_name": str(model),
            "backend": {"kind": kind} | ({} if kind == "echo" else {"device": "cpu"}),
            "output_path": folder / "s.jsonl",
            "num_stories": stories,
            "use_k_shot": False,
            "template": "Sing of {word1}",
            "generation": {"max_new_tokens": 8, "batch_size": 4},
            "validation": {"enabled": False},
        }
        | changes
    )


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "s.run.json").read_text())
    return manifest


async def test_auto_takes_slots_where_it_can_and_the_manifest_says_so(llama: Path, tmp_path: Path) -> None:
    report = await asyncgen.run(config_for(llama, tmp_path, "auto", 6))
    assert report.complete
    assert report.notices == ()
    assert report.snapshot.slots == 4
    assert manifest_of(tmp_path)["facts"]["engine"] == "slots"


async def test_auto_falls_back_with_one_sentence_and_slots_refuses(windowed: Path, tmp_path: Path) -> None:
    report = await asyncgen.run(config_for(windowed, tmp_path, "auto", 2))
    assert report.complete
    why = "its attention is limited to a sliding window of 16 tokens"
    [notice] = report.notices
    assert notice == f"generating in batches (static), for the in-flight engine cannot run this model: {why}"
    assert manifest_of(tmp_path)["facts"]["engine"] == "static"
    assert manifest_of(tmp_path)["facts"]["why not slots"] == why
    with pytest.raises(
        asyncgen.ModelError, match=r"the slots backend cannot run .* (?s:sliding window .*static works)"
    ):
        await asyncgen.run(config_for(windowed, tmp_path, "slots", 4))
    assert len(records(tmp_path / "s.jsonl")) == 2


def test_the_command_line_shows_the_sentence(windowed: Path, tmp_path: Path) -> None:
    settings = {"backend": {"device": "cpu"}, "generation": {"max_new_tokens": 8, "batch_size": 2}}
    plain = settings | {"validation": {"enabled": False}, "use_k_shot": False, "num_stories": 2}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(plain | {"model_name": str(windowed), "output_path": "s.jsonl"}))
    for command in (["run"], ["preview", "-n", "1", "--generate"]):
        done = programs.asyncgen(*command, str(file), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("cannot run this model: its attention is limited to a sliding window") == 1


async def test_engines_of_the_same_model_may_be_exchanged(llama: Path, tmp_path: Path) -> None:
    told: list[str] = []
    for stories, kind in enumerate(("static", "slots", "auto", "static", "auto"), 1):
        assert (await asyncgen.run(config_for(llama, tmp_path, kind, stories), notice=told.append)).complete
    kept = [line for line in told if not line.startswith("load")]
    setting = "resumed with another setting: backend.kind: "
    assert kept == [
        setting + 'was "static", now "slots"',
        setting + 'was "slots", now "auto"',
        setting + 'was "auto", now "static"',
        setting + 'was "static", now "auto"',
        setting + "auto was static, is now slots",
    ]
    notes = [note.partition("backend.kind: ")[2] for note in manifest_of(tmp_path)["notes"]]
    assert notes == [line.removeprefix(setting) for line in kept]
    assert [record["metadata"]["index"] for record in records(tmp_path / "s.jsonl")] == list(range(5))
    with pytest.raises(asyncgen.ResumeRefused, match=r"backend\.kind"):
        await asyncgen.run(config_for(llama, tmp_path, "echo", 6))


async def test_another_engine_behind_auto_is_told_and_noted(llama: Path, tmp_path: Path) -> None:
    """An output whose sessions so far fell back, with a version of asyncgen or transformers that knew less."""
    await asyncgen.run(config_for(llama, tmp_path, "auto", 1))
    manifest = manifest_of(tmp_path)
    manifest["facts"]["engine"] = "static"
    (tmp_path / "s.run.json").write_text(json.dumps(manifest))
    report = await asyncgen.run(config_for(llama, tmp_path, "auto", 2))
    change = "backend.kind: auto was static, is now slots"
    assert report.notices == (f"resumed with another setting: {change}",)
    assert manifest_of(tmp_path)["notes"] == [f"index 1: {change}"]
    assert manifest_of(tmp_path)["facts"]["engine"] == "slots"
    assert manifest_of(tmp_path)["facts"]["why not slots"] is None


def test_slots_has_the_settings_of_every_local_engine() -> None:
    fields = set(LocalModel.model_fields) | {"kind"}
    assert set(SlotsBackend.model_fields) == fields
