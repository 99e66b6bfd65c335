"""Whatever was done to the files, each record that nothing was done to is saved, and the old files stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.errors import InputError
from asyncgen.output import repair
from asyncgen.output.lines import encode
from asyncgen.records import Story
from tests.output.making import lines_of, records, take

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
