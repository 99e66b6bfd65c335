from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from asyncgen.output import Places, open_output
from asyncgen.output import manifest as manifests
from asyncgen.output.manifest import Manifest
from tests.output.making import INPUTS, config_at, lines_of, records, take, write_until

pytestmark = pytest.mark.anyio


def manifest_of(folder: Path) -> Manifest:
    found = manifests.read(folder / "stories.run.json")
    assert found is not None
    return found


async def test_it_says_what_made_the_output_and_how_far_it_is(tmp_path: Path) -> None:
    config = config_at(tmp_path, seed=0)
    async with open_output(config, INPUTS, versions={"torch": "9.9"}, hardware={"gpu": "none"}) as output:
        assert manifest_of(tmp_path).state == "running"
        await output.write(take(records(), 10))
        output.describe({"speed": {"tokens_per_second": 5.0}})
        with pytest.raises(ValueError, match="JSON"):
            output.describe({"speed": float("nan")})
        output.note("slots are not for this model")
    found = manifest_of(tmp_path)
    stories, rejected = lines_of(take(records(), 10))
    assert found.state == "stopped"
    assert (found.synced.stories, found.synced.rejected) == (len(stories), len(rejected))
    assert (found.totals.accepted, found.totals.rejected) == (stories.count(b"\n"), rejected.count(b"\n"))
    assert found.totals.reasons == {"too short": 2 * rejected.count(b"\n"), "word missing": rejected.count(b"\n")}
    assert found.versions["torch"] == "9.9"
    assert "python" in found.versions
    assert found.hardware["gpu"] == "none"
    assert found.facts == {"speed": {"tokens_per_second": 5.0}}
    assert found.notes == ["slots are not for this model"]
    assert found.config == config.resolved()
    assert found.timings.runs == 1
    assert found.timings.seconds > 0
    assert str(tmp_path) not in json.dumps(found.fingerprint)


async def test_totals_go_on_over_runs_and_kills(tmp_path: Path) -> None:
    """The reasons after the last manifest are counted from the lines themselves."""
    config = config_at(tmp_path)
    await write_until(config, 10)
    stale = (tmp_path / "stories.run.json").read_bytes()
    await write_until(config, 25)
    (tmp_path / "stories.run.json").write_bytes(stale)  # as a kill leaves it
    output = await write_until(config, 40)
    rejections = lines_of(take(records(), 40))[1].count(b"\n")
    assert (
        manifest_of(tmp_path).totals.reasons
        == output.reasons
        == {
            "too short": 2 * rejections,
            "word missing": rejections,
        }
    )
    assert manifest_of(tmp_path).timings.runs == 3 - 1  # the stale one had forgotten a run


@pytest.mark.parametrize(("goal", "state"), [(3, "complete"), (1000, "stopped"), (None, "stopped")])
async def test_the_last_state(tmp_path: Path, goal: int | None, state: str) -> None:
    await write_until(config_at(tmp_path, num_stories=goal), 8)
    assert manifest_of(tmp_path).state == state


async def test_the_run_may_say_that_it_is_complete(tmp_path: Path) -> None:
    async with open_output(config_at(tmp_path), INPUTS) as output:
        await output.write(take(records(), 5))
        await output.close("complete")
        await output.close("stopped")
    assert manifest_of(tmp_path).state == "complete"


async def test_an_exception_leaves_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_output(config_at(tmp_path), INPUTS) as output:
            await output.write(take(records(), 5))
            raise ZeroDivisionError
    assert manifest_of(tmp_path).state == "stopped"
    assert manifest_of(tmp_path).mark.index == 5


async def test_where_nothing_was_decided_another_configuration_may_begin(tmp_path: Path) -> None:
    await write_until(config_at(tmp_path), 0)
    await write_until(config_at(tmp_path, max_attempts=7), 5)
    assert manifest_of(tmp_path).config["max_attempts"] == 7


def test_replacing_fails_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.run.json"
    manifests.replace(path, Manifest(state="stopped"))
    old = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        manifests.replace(path, Manifest(state="complete"))
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_names_derive_from_the_output_path(tmp_path: Path) -> None:
    places = Places.of(tmp_path / "tales.jsonl")
    assert [path.name for path in (places.stories, places.rejected, places.manifest, places.lock)] == [
        "tales.jsonl",
        "tales.rejected.jsonl",
        "tales.run.json",
        "tales.lock",
    ]
    assert Places.of(tmp_path / "tales.json").manifest.name == "tales.json.run.json"
    assert Places.of(tmp_path / ".jsonl").manifest.name == ".jsonl.run.json"
