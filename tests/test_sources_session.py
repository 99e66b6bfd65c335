"""Sessions of a run with sources: code that fails and is mended, code that changes, a disk that fails at an end."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncgen
from asyncgen.prompts import End, open_source
from tests.programs import ECHO, ROOT, records
from tests.programs import asyncgen as program

pytestmark = pytest.mark.anyio

GOOD = """
async def items(start: int):
    for k in range(start, 200):
        yield f"tell {k}"


async def few(start: int):
    for k in range(start, 20):
        yield f"few {k}"
"""
BAD = GOOD.replace("        yield f", "        if k == 41:\n            k = 1 / 0\n        yield f")
DOCUMENT = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")


def config_for(folder: Path, code: str, *functions: str, **changes: object) -> asyncgen.Config:
    """Each call writes the code under another name: a module is loaded once per process, and names do not count."""
    number = len(list(folder.glob("code*.py")))
    (folder / f"code{number}.py").write_text(code)
    sources = [{"kind": "python", "name": name, "function": f"{folder}/code{number}.py:{name}"} for name in functions]
    settings: dict[str, Any] = {
        "backend": {"kind": "echo", "bad_share": 0.3},
        "output_path": folder / "s.jsonl",
        "num_stories": 60,
        "sources": sources or [{"kind": "python", "function": f"{folder}/code{number}.py:items"}],
        **changes,
    }
    return asyncgen.Config.model_validate(settings)


def lines(path: Path) -> list[dict[str, Any]]:
    both = [*records(path), *records(path.with_suffix(".rejected.jsonl"))]
    return sorted(both, key=lambda record: record["metadata"]["index"])


async def test_what_is_before_a_failing_item_is_finished_and_the_mended_code_goes_on(tmp_path: Path) -> None:
    whole = config_for(tmp_path, GOOD, output_path=tmp_path / "whole.jsonl")
    await asyncgen.run(whole)
    with pytest.raises(asyncgen.DataError, match="item 41: the function raised ZeroDivisionError") as caught:
        await asyncgen.run(config_for(tmp_path, BAD))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert lines(tmp_path / "s.jsonl") == lines(tmp_path / "whole.jsonl")[:41]
    told: list[str] = []
    report = await asyncgen.run(config_for(tmp_path, GOOD), notice=told.append)
    assert report.complete
    assert told == ["resumed with another setting: sources[0].function: content changed"]
    assert lines(tmp_path / "s.jsonl") == lines(tmp_path / "whole.jsonl")
    assert json.loads((tmp_path / "s.run.json").read_text())["facts"]["may be mended"] is None


@pytest.mark.parametrize(
    ("fewer", "replaced"), [("few", ("start, 20)", "start, 12)")), ("items", ("start, 200)", "start, 12)"))]
)
async def test_a_function_that_gives_fewer_items_than_before_is_an_error(
    tmp_path: Path, fewer: str, replaced: tuple[str, str]
) -> None:
    """Its code is the same and what it reads is not: before the end that the manifest has, it had more."""
    config = config_for(tmp_path, GOOD.replace(*replaced), "items", "few")
    had = 20 if fewer == "few" else 21
    async with open_source(config) as source:
        source.resume([End(1, 41)], _nobody)
        with pytest.raises(asyncgen.DataError, match=f"'{fewer}' gave at least {had} items before .* only 12 now"):
            start = 10
            while prompts := await source.take(start, 8):
                start += len(prompts)
    assert start in (24, 25)


async def _nobody(_: object) -> None:
    """Records nothing."""


async def test_code_that_did_not_fail_stays_as_it_is(tmp_path: Path) -> None:
    await asyncgen.run(config_for(tmp_path, GOOD, num_stories=10))
    for code, name in ((GOOD + "\n# changed", "items"), (GOOD, "few")):
        with pytest.raises(asyncgen.ResumeRefused, match=r"sources\[0\]\.function: content changed"):
            await asyncgen.run(config_for(tmp_path, code, name, sources=config_for(tmp_path, code, name).sources))
    assert (await asyncgen.run(config_for(tmp_path, GOOD, num_stories=12))).complete


@pytest.mark.parametrize("failing", range(3, 7))  # 3 to 5 are of the end: a file, the manifest, its folder
async def test_a_disk_that_fails_when_an_end_is_recorded_is_one_error_and_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    await asyncgen.run(config_for(tmp_path, GOOD, "items", "few", output_path=tmp_path / "whole.jsonl"))
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with anyio.fail_after(60), pytest.raises(asyncgen.OutputFailed, match="Input/output error"):
            await asyncgen.run(config_for(tmp_path, GOOD, "items", "few"))
    assert (await asyncgen.run(config_for(tmp_path, GOOD, "items", "few"))).complete
    assert lines(tmp_path / "s.jsonl") == lines(tmp_path / "whole.jsonl")
    manifest = json.loads((tmp_path / "s.run.json").read_text())
    assert manifest["facts"]["sources ended"] == [{"source": 1, "index": 41}]


async def test_a_pipeline_of_your_own_finds_the_ends_again(tmp_path: Path) -> None:
    config = config_for(tmp_path, GOOD, "items", "few", max_attempts=5)
    async with asyncgen.open_pipeline(config) as stories:
        whole = [story async for story in stories]
    kept = whole[:45]
    assert kept[-1].index > 41
    texts = [story.content for story in kept]
    async with asyncgen.open_pipeline(config, start=kept[-1].index + 1, kept=texts) as stories:
        rest = [story async for story in stories]
    assert [(each.content, each.metadata) for each in kept + rest] == [(s.content, s.metadata) for s in whole]


def test_the_shipped_example_runs_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("sources.yaml", "sources_prompts.jsonl", "sources_prompts.py"):
        shutil.copy(ROOT / "configs" / name, tmp_path)
    done = program("run", tmp_path / "sources.yaml", *ECHO, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    made = [record["metadata"] for record in lines(tmp_path / "sources-stories.jsonl")]
    names = [metadata["source"] for metadata in made]
    assert [names[:12].count(name) for name in ("template", "jsonl", "seasons")] == [6, 4, 2]
    assert names.count("jsonl") == 12, "the file is used up, and the others have its places"
    assert made[3]["selected_words"] == {"word1": "snow", "word2": "bed", "word3": "friend"}


def test_what_the_document_shows_runs(tmp_path: Path) -> None:
    def blocks(language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)

    (prompts,), (code,) = blocks("jsonl"), blocks("python")
    (tmp_path / "prompts.jsonl").write_text(prompts)
    (tmp_path / "prompts.py").write_text(code)
    wanted = {0: 3, 1: 20, 2: 60}
    configurations = blocks("yaml")
    assert len(configurations) == len(wanted)
    for number, text in enumerate(configurations):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"{text}\nbackend: {{kind: echo}}\noutput_path: {number}.jsonl\n")
        done = program("run", path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(records(tmp_path / f"{number}.jsonl")) == wanted[number]
    for target in re.findall(r"\]\(([^)#]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists()


@pytest.mark.parametrize(
    "ends",
    [
        "text",
        [{"source": 1}],
        [{"source": 1, "index": 41}] * 2,
        [{"source": 9, "index": 41}],
        [{"source": 1, "index": -1}],
        [{"source": 1, "index": 41}, {"source": 0, "index": 50}],
        [{"source": 1, "index": 41}, {"source": 0, "index": 3}],
    ],
    ids=str,
)
async def test_ends_that_no_run_wrote_are_refused(tmp_path: Path, ends: object) -> None:
    """Doubled, of no source, of none that is left, out of order."""
    await asyncgen.run(config_for(tmp_path, GOOD, "items", "few"))
    path = tmp_path / "s.run.json"
    manifest = json.loads(path.read_text())
    assert manifest["facts"]["sources ended"] == [{"source": 1, "index": 41}]
    path.write_text(json.dumps(manifest | {"facts": manifest["facts"] | {"sources ended": ends}}))
    before = lines(tmp_path / "s.jsonl")
    with pytest.raises(asyncgen.ResumeRefused, match="'sources ended' under `facts` is not what a run wrote there"):
        await asyncgen.run(config_for(tmp_path, GOOD, "items", "few", num_stories=120))
    assert lines(tmp_path / "s.jsonl") == before
