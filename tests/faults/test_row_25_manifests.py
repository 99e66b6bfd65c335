"""Row 25: the manifest is missing, cut at each byte, of a newer format, or holds what no run wrote. What it says is
made up for from the lines, or the run is refused: 0 silent restarts, no record is ever changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncgen.errors import AsyncgenError, OutputDamaged, ResumeRefused
from asyncgen.output import open_output, peek, repair, verify
from tests.faults.conftest import FULL, Trials
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.programs import ECHO, asyncgen

pytestmark = pytest.mark.anyio


async def test_cut_at_every_byte_it_is_refused_and_nothing_changes(memory_path: Path, trials: Trials) -> None:
    config = config_at(memory_path)
    await write_until(config, 10)
    path = memory_path / "stories.run.json"
    whole, files = path.read_bytes(), on_disk(config)
    sizes = range(0, len(whole) - 2, 1 if os.environ.get(FULL) else 31)  # the last two bytes are "}\n"
    assert trials(len(sizes), len(sizes)) > 100
    for size in sizes:
        path.write_bytes(whole[:size])
        with pytest.raises(ResumeRefused, match="not a manifest"):
            peek(config, INPUTS)
        with pytest.raises(ResumeRefused, match="not a manifest"):
            await write_until(config, 20)
        assert on_disk(config) == files
    path.write_bytes(whole[:-1])
    assert (await write_until(config, 12)).start == 12


@pytest.mark.parametrize(
    "content",
    [
        *(b"{}", b"[]", b"7", b'"text"', b"null", b'{"format": 1, "synced": 7}', b"\xff\xfe", bytes(500)),
        *(b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"format": NaN}', b'{"format": true}'),
        b'{"format": 1, "facts": {"what could not be written again": {"\\ud800": {"x": 1}}}}',
        b'{"format": 1, "facts": {"x": ' + b"[" * 500 + b"]" * 500 + b"}}",
    ],
    ids=str,
)
@pytest.mark.parametrize("beside", [0, 10])
async def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes, beside: int) -> None:
    config = config_at(tmp_path)
    await write_until(config, beside)
    files = on_disk(config)
    (tmp_path / "stories.run.json").write_bytes(content)
    with pytest.raises(ResumeRefused, match="not a manifest"):
        await write_until(config, 20)
    assert (tmp_path / "stories.run.json").read_bytes() == content
    assert on_disk(config) == files
    assert any("not a manifest" in problem for problem in verify(config).problems)


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stories.run.json").write_text('{"format": 2, "anything": "else"}')
    with pytest.raises(ResumeRefused, match="format 2"):
        await write_until(config_at(tmp_path), 3)


async def test_a_missing_one_is_refused_beside_records(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    await write_until(config, 10)
    (tmp_path / "stories.run.json").unlink()
    files = on_disk(config)
    for attempt in range(2):
        with pytest.raises(ResumeRefused, match=r"stories\.run\.json.*is not there"):
            await write_until(config, 20)
        assert on_disk(config) == files, attempt
    assert not (tmp_path / "stories.run.json").exists()


async def test_files_deleted_beside_it_are_refused(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    await write_until(config, 10)
    (tmp_path / "stories.jsonl").unlink()
    with pytest.raises(OutputDamaged, match="missing"):
        await write_until(config, 20)
    assert not (tmp_path / "stories.jsonl").exists()
    assert (tmp_path / "stories.rejected.jsonl").stat().st_size > 0


HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 10**30, -(10**30), 1.5, 1e300, "", "x", "7", "moon\n\x00"),
    *([], {}, [[]], {"x": 1}, [None, {"x": []}]),
)


def places_in(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything in a JSON value."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places_in(each, (*at, key))
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from places_in(each, (*at, number))


def changed(manifest: dict[str, Any], at: tuple[str | int, ...], value: object, *, gone: bool = False) -> bytes:
    copy = json.loads(json.dumps(manifest))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    if gone:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return json.dumps(copy).encode()


def changes(manifest: dict[str, Any]) -> Iterator[bytes]:
    for at in places_in(manifest):
        yield changed(manifest, at, None, gone=True)
        for value in HOSTILE:
            yield changed(manifest, at, value)


async def test_whatever_it_says_a_run_goes_on_rightly_or_refuses(memory_path: Path, trials: Trials) -> None:
    """Each value of a manifest in turn is removed, or replaced by what no run writes there."""
    config = config_at(memory_path / "run", num_stories=1000)
    (memory_path / "source.jsonl").write_text("{}")
    inputs = INPUTS | {"sources[0]": memory_path / "source.jsonl"}
    async with open_output(config, inputs) as output:
        await output.write(take(records(), 30))
    begun, whole = on_disk(config), lines_of(take(records(), 40))
    path = memory_path / "run" / "stories.run.json"
    manifest = json.loads(path.read_bytes()) | {"facts": {"may be mended": ["vocabulary"]}, "notes": ["a note"]}
    hostile = list(changes(manifest))
    chosen = hostile[:: 1 if os.environ.get(FULL) else 23]
    assert trials(len(chosen), len(chosen)) > 100
    for number, content in enumerate(chosen):
        path.write_bytes(content)
        for name, data in zip(("stories.jsonl", "stories.rejected.jsonl"), begun, strict=True):
            (path.parent / name).write_bytes(data)
        verify(config)
        target = memory_path / f"{number}.jsonl"
        try:
            salvage = repair(config.output_path, target)
        except AsyncgenError:  # nothing is sound under another seed
            assert not target.exists()
        else:
            assert (target.read_bytes(), salvage.rejected.read_bytes()) == begun
        try:
            async with open_output(config, inputs) as output:
                assert (output.start, output.resumed) == (30, True), content
                assert on_disk(config) == begun
                await output.write(take(records(30), 10))
        except AsyncgenError:
            assert on_disk(config) == begun
            assert path.read_bytes() == content
        else:
            assert on_disk(config) == whole


def test_the_command_line_refuses_with_exit_2(tmp_path: Path) -> None:
    flags = (*ECHO, "--output-path", "s.jsonl", "--num-stories")
    assert asyncgen("run", *flags, "20", cwd=tmp_path).returncode == 0
    manifest = tmp_path / "s.run.json"
    whole, stories = manifest.read_bytes(), (tmp_path / "s.jsonl").read_bytes()
    said = {
        whole[:700]: "s.run.json cannot be read: it is not a manifest of asyncgen",
        whole.replace(b'"format": 1', b'"format": 2'): "s.run.json is of format 2; this asyncgen knows up to 1",
        b"": "s.jsonl is not empty, and s.run.json, which would say what made it, is not there",
    }
    for content, message in said.items():
        manifest.write_bytes(content)
        if not content:
            manifest.unlink()
        done = asyncgen("run", *flags, "30", cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr
        assert (tmp_path / "s.jsonl").read_bytes() == stories
        assert manifest.exists() == bool(content)
