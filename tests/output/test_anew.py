"""An output that holds no story makes way for a changed configuration: nothing is lost, and a kill harms nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asyncgen.config import Config
from asyncgen.errors import OutputFailed, ResumeRefused
from asyncgen.output import Output, open_output, peek, verify
from asyncgen.output import manifest as manifests
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take

pytestmark = pytest.mark.anyio

HOPELESS = [True] * 12
ASIDE = "stories.rejected.1.jsonl"


def mended(folder: Path) -> Config:
    return config_at(folder, validation={"min_words": 5})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def write(config: Config, rejects: list[bool]) -> Output:
    async with open_output(config, INPUTS) as output:
        await output.write(list(records(output.start, rejects=rejects)))
    return output


async def test_without_a_story_a_changed_configuration_begins_anew_and_keeps_the_old_rejects(tmp_path: Path) -> None:
    await write(config_at(tmp_path), HOPELESS)
    old = on_disk(config_at(tmp_path))[1]
    assert peek(mended(tmp_path), INPUTS) is None
    output = await write(mended(tmp_path), [False, True])
    assert (output.resumed, output.accepted, output.rejected) == (False, 1, 1)
    assert (tmp_path / ASIDE).read_bytes() == old == lines_of(records(rejects=HOPELESS))[1]
    (note,) = output.notes
    assert "validation.min_words: was 30, now 5" in note
    assert f"the 12 rejected prompts are kept in {tmp_path / ASIDE}" in note
    assert on_disk(mended(tmp_path)) == lines_of(records(rejects=[False, True]))
    assert verify(mended(tmp_path)).ok
    assert manifests.read(tmp_path / "stories.run.json").notes[0].endswith(note)  # type: ignore[union-attr]


async def test_each_time_under_another_name_and_never_over_a_file(tmp_path: Path) -> None:
    (tmp_path / ASIDE).symlink_to("nowhere")
    for number, words in enumerate((30, 20, 10, 5)):
        await write(config_at(tmp_path, validation={"min_words": words}), HOPELESS[: number + 1])
    kept = {n: (tmp_path / f"stories.rejected.{n}.jsonl").read_bytes().count(b"\n") for n in (2, 3, 4)}
    assert kept == {2: 1, 3: 2, 4: 3}
    assert (tmp_path / ASIDE).is_symlink()


async def test_with_one_story_it_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    await write(config_at(tmp_path), [*HOPELESS, False])
    before = files_of(tmp_path)
    with pytest.raises(ResumeRefused, match="min_words: was"):
        await write(mended(tmp_path), HOPELESS)
    assert files_of(tmp_path) == before


async def test_the_same_configuration_goes_on(tmp_path: Path) -> None:
    await write(config_at(tmp_path), HOPELESS)
    output = await write(config_at(tmp_path), [*HOPELESS, False])
    assert (output.resumed, output.accepted, output.rejected) == (True, 1, 12)


async def test_killed_between_any_two_steps_either_configuration_opens_it_and_no_record_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    await write(config_at(folder), HOPELESS)
    with (folder / "stories.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    old = on_disk(config_at(folder))[1]
    moments: list[dict[str, bytes]] = []

    def look() -> None:
        files = files_of(folder)
        if files not in moments:
            moments.append(files)

    def around(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            look()
            try:
                return function(*args, **more)
            finally:
                look()

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "rename", "unlink"):
            patch.setattr(os, name, around(getattr(os, name)))
        await write(mended(folder), [False, True])
    assert len(moments) > 6
    for number, files in enumerate(moments):
        for which, config_in in (("old", config_at), ("mended", mended)):
            place = tmp_path / f"{number} {which}"
            place.mkdir()
            for name, data in files.items():
                (place / name).write_bytes(data)
            config = config_in(place)
            try:
                async with open_output(config, INPUTS) as output:
                    plan = records(output.start) if output.accepted else records(output.start, rejects=HOPELESS * 2)
                    begun = output.start
                    await output.write(take(plan, 12 - output.start))
            except ResumeRefused:
                assert which == "old"
                assert (place / "stories.jsonl").read_bytes().count(b"\n") == 1, "only stories of another run refuse it"
                continue
            assert begun in ((0, 1, 2) if which == "mended" else (0, 12))
            assert verify(config).ok
            assert any(path.read_bytes().startswith(old) for path in place.glob("stories.rejected*.jsonl"))


@pytest.mark.parametrize("failing", ["rename", "fsync", "replace"])
async def test_a_disk_that_fails_meanwhile_is_one_error_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    await write(config_at(tmp_path), HOPELESS)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OutputFailed, match="Input/output error"):
            await write(mended(tmp_path), [False])
    await write(mended(tmp_path), [False])
    assert on_disk(mended(tmp_path)) == lines_of(records(rejects=[False]))
    assert (tmp_path / ASIDE).read_bytes() == lines_of(records(rejects=HOPELESS))[1]
