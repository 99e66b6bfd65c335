"""Whatever was done to the files, each record that nothing was done to is saved, and the old files stay as they are."""

from __future__ import annotations

import errno
import json
import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.errors import InputError, OutputInUse
from asyncgen.output import open_output, repair, verify
from asyncgen.output.lines import encode
from asyncgen.records import Story
from tests.faults.disk import FailAt, shown
from tests.output.making import INPUTS, config_at, lines_of, records, take

COUNT = 30
PLAN = take(records(), COUNT)
STORIES, REJECTED = (data.splitlines(keepends=True) for data in lines_of(PLAN))
MANIFEST = json.dumps({"format": 1, "fingerprint": {"seed": 0}})

Damage = tuple[Literal["flip", "drop", "twice", "join", "garbage"], int, int]
damages = st.lists(
    st.tuples(st.sampled_from(("flip", "drop", "twice", "join", "garbage")), st.integers(0, 99), st.integers(0, 400)),
    max_size=6,
)


def damaged(lines: list[bytes], how: list[Damage]) -> tuple[bytes, set[bytes]]:
    """A file, and the lines that nothing was done to."""
    parts: list[tuple[bytes, bool]] = [(line, True) for line in lines]
    for kind, where, more in how:
        if not parts:
            break
        place = where % len(parts)
        line, whole = parts[place]
        if kind == "flip":
            at = more % (len(line) - 1)
            parts[place] = (line[:at] + bytes([line[at] ^ 0x80]) + line[at + 1 :], False)
        elif kind == "drop":
            del parts[place]
        elif kind == "twice":
            parts.append((line, whole))
        elif kind == "join":
            parts[place] = (line.rstrip(b"\n"), whole)
        else:
            parts.insert(place, (b'{"story_id": 7}\n', False))
    return b"".join(line for line, _ in parts), {line.rstrip(b"\n") for line, whole in parts if whole}


@given(stories=damages, rejected=damages, told=st.booleans())
@settings(deadline=None)
def test_what_nothing_was_done_to_is_saved(stories: list[Damage], rejected: list[Damage], told: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        kept = []
        for file, lines, how in (("s.jsonl", STORIES, stories), ("s.rejected.jsonl", REJECTED, rejected)):
            data, whole = damaged(lines, how)
            (folder / file).write_bytes(data)
            kept.append(whole)
        if told:
            (folder / "s.run.json").write_text(MANIFEST)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        if not any(kept):
            return
        salvage = repair(folder / "s.jsonl")
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
    new = {file: after.pop(file) for file in ("s.repaired.jsonl", "s.repaired.rejected.jsonl")}
    assert after == before
    for data, whole, all_lines in zip(new.values(), kept, (STORIES, REJECTED), strict=True):
        saved = data.splitlines(keepends=True)
        assert whole <= {line.rstrip(b"\n") for line in saved}
        # A flipped byte inside a text leaves another record, whose line is not among these.
        ours = [line for line in saved if line in all_lines]
        assert ours == [line for line in all_lines if line in ours]
    indices = [json.loads(line)["metadata"]["index"] for data in new.values() for line in data.splitlines()]
    assert len(set(indices)) == len(indices) == salvage.kept + salvage.rejections
    assert {i for gap in salvage.missing for i in gap} == set(range(max(indices, default=-1) + 1)) - set(indices)
    assert not list(folder.glob("*.new"))


def test_the_report_names_what_was_lost(tmp_path: Path) -> None:
    lines = [*STORIES]
    lines[4] = lines[4].replace(b'"word_count"', b'"word_count')
    lines[9] = lines[8]
    (tmp_path / "s.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "s.rejected.jsonl").write_bytes(b"".join(REJECTED))
    text = repair(tmp_path / "s.jsonl", tmp_path / "new.jsonl").text()
    stories = [record for record in PLAN if isinstance(record, Story)]
    lost = [int(str(stories[place].metadata["index"])) for place in (4, 9)]
    again = stories[8].metadata["index"]
    assert text.splitlines()[0] == (
        f"saved: {len(STORIES) - 2} stories in {tmp_path / 'new.jsonl'}, "
        f"{len(REJECTED)} rejections in {tmp_path / 'new.rejected.jsonl'}"
    )
    assert "not kept: 2 lines:" in text
    assert f"{tmp_path / 's.jsonl'}:5: not JSON" in text
    assert f"{tmp_path / 's.jsonl'}:10: index {again} once more" in text
    assert f"missing: 2 indices: {lost[0]}, {lost[1]}" in text


def test_a_tail_that_is_gone_is_missed(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"".join(STORIES[:10]))
    (tmp_path / "s.rejected.jsonl").write_bytes(b"".join(REJECTED[:2]))
    told = {"format": 1, "fingerprint": {"seed": 0}, "totals": {"accepted": len(STORIES), "rejected": len(REJECTED)}}
    (tmp_path / "s.run.json").write_text(json.dumps(told))
    salvage = repair(tmp_path / "s.jsonl")
    assert (salvage.kept, salvage.rejections, salvage.losses) == (10, 2, [])
    assert sum(map(len, salvage.missing)) == COUNT - 12
    assert salvage.missing[-1].stop == COUNT


def test_another_runs_stories_are_not_kept_if_the_manifest_tells(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"".join(encode(each) for each in take(records(seed=5, rejects=[False] * 4), 4)))
    assert repair(tmp_path / "s.jsonl", tmp_path / "a.jsonl").kept == 4
    (tmp_path / "s.run.json").write_text(MANIFEST)
    with pytest.raises(InputError, match="no sound record"):
        repair(tmp_path / "s.jsonl", tmp_path / "b.jsonl")
    (tmp_path / "s.run.json").write_text("{")
    salvage = repair(tmp_path / "s.jsonl", tmp_path / "c.jsonl")
    assert (salvage.kept, "cannot be read" in salvage.losses[0]) == (4, True)


@pytest.mark.parametrize("name", ["s.repaired.jsonl", "s.repaired.rejected.jsonl"])
def test_nothing_is_overwritten_and_nothing_half_made_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"".join(STORIES))
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        repair(tmp_path / "s.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"s.jsonl", name})
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename"])
def test_whichever_operation_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, links: bool
) -> None:
    for path, lines in ((tmp_path / "s.jsonl", STORIES), (tmp_path / "s.rejected.jsonl", REJECTED)):
        path.write_bytes(b"".join(lines))
    before = sorted(tmp_path.iterdir())
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for at in count(1):
        fail = FailAt(operation, at, errno.EIO)
        with shown(tmp_path, fail):
            try:
                assert repair(tmp_path / "s.jsonl").kept == len(STORIES)
            except OSError:
                assert sorted(tmp_path.iterdir()) == before
            else:
                assert not fail.reached
                break
    assert at > 2 or (operation == "rename" and links)


@pytest.mark.parametrize("name", ["s.repaired.jsonl", "s.repaired.rejected.jsonl"])
def test_a_file_that_somebody_makes_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where there are links, and where there are none."""
    (tmp_path / "s.jsonl").write_bytes(b"".join(STORIES))

    def make(operation: str, path: Path, _: int) -> None:
        if operation == "fsync" and path.name.startswith(f"{name}."):
            (tmp_path / name).write_bytes(b"mine")

    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(FileExistsError), shown(tmp_path, make):
            repair(tmp_path / "s.jsonl")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"s.jsonl", name})
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
        monkeypatch.undo()


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_record_may_hold_what_looks_like_one(tmp_path: Path) -> None:
    """Placeholders may be called ``story_id``; glued to the next line or not, such a record is one."""
    inside = b'"metadata": {"words": {"story_id": "story_moon", "more": [{"story_id": "story_x"}]}, '
    lines = [line.replace(b'"metadata": {', inside) for line in STORIES]
    assert all(inside in line for line in lines)
    glued = [line.rstrip(b"\n") if number % 3 == 0 else line for number, line in enumerate(lines)]
    torn = lines[4][: lines[4].index(b"moon")]
    glued[4] = torn
    (tmp_path / "s.jsonl").write_bytes(b"".join(glued))
    salvage = repair(tmp_path / "s.jsonl")
    assert (tmp_path / "s.repaired.jsonl").read_bytes() == b"".join([*lines[:4], *lines[5:]])
    assert len(salvage.losses) == 2, "the beginning of the torn one, and what was in it"


@pytest.mark.parametrize("index", [10**20, 2**63, 2**53])
def test_an_index_beyond_all_counts_is_no_record(tmp_path: Path, index: int) -> None:
    record = json.loads(STORIES[0]) | {"prompt_id": f"prompt_{index + 1}"}
    record["metadata"] |= {"index": index, "accepted": index + 1, "rejected": 0}
    (tmp_path / "s.jsonl").write_bytes(b"".join([*STORIES, json.dumps(record).encode(), b"\n"]))
    text = repair(tmp_path / "s.jsonl").text()
    assert f"s.jsonl:{len(STORIES) + 1}: `metadata.index` is not a count" in text
    assert "missing: " in text


def test_a_gap_of_any_length_can_be_said(tmp_path: Path) -> None:
    index = 2**53 - 2
    record = json.loads(STORIES[0]) | {"prompt_id": f"prompt_{index + 1}"}
    record["metadata"] |= {"index": index, "accepted": index + 1, "rejected": 0}
    (tmp_path / "s.jsonl").write_bytes(json.dumps(record).encode() + b"\n")
    assert f"missing: {index} indices: 0 to {index - 1}" in repair(tmp_path / "s.jsonl").text()


@pytest.mark.parametrize("name", ["s", "s.lock", "s.run.json"])
def test_what_is_saved_shares_no_file_with_what_was_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"".join(STORIES))
    with pytest.raises(InputError, match="with the damaged output"):
        repair(tmp_path / "s.jsonl", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_a_target_that_is_no_file_is_refused_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"".join(STORIES))
    for name in (".", "new.rejected.jsonl"):
        with pytest.raises(InputError, match=r"^--to: "):
            repair(tmp_path / "s.jsonl", tmp_path / name)


@pytest.mark.anyio
async def test_while_a_run_writes_nothing_is_repaired(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    async with open_output(config, INPUTS) as output:
        await output.write(take(records(), 20))
        with pytest.raises(OutputInUse, match="is being written by another run"):
            repair(config.output_path)
    assert repair(config.output_path).kept == output.accepted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"word_count": -1}, "`word_count` is -1, below 0"),
        ({"tokens_generated": -5}, "`tokens_generated` is -5, below 0"),
        ({"generation_time": -0.5}, "`generation_time` is -0.5, below 0"),
        ({"content": " \n"}, "a story without a text"),
        ({"word_count": 5}, "`word_count` is 5, and the text has"),
    ],
)
def test_a_record_that_no_run_writes_is_a_problem_and_not_kept(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    words = len(STORIES[2])  # of every text, but for the comparison
    lines = [json.dumps(json.loads(line) | {"word_count": words}).encode() + b"\n" for line in STORIES]
    lines[2] = json.dumps(json.loads(lines[2]) | change).encode() + b"\n"
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join(lines))
    assert any(f"{path}:3: {why}" in problem for problem in verify(path, words=lambda _: words).problems)
    salvage = repair(path, words=lambda _: words)
    assert (salvage.kept, len(salvage.losses)) == (len(lines) - 1, 1)
    assert f"{path}:3: {why}" in salvage.losses[0]
