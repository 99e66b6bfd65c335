"""Resume: whatever is in the three files of an output, either nothing is touched, or the plan is finished and no line
that was safe is lost; what a crash can leave is never refused. ``peek``, ``verify`` and ``repair`` only look.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from asyncgen.config import Config
from asyncgen.errors import AsyncgenError, ResumeRefused
from asyncgen.output import Places, manifest, peek, repair, verify
from asyncgen.output.lines import Foreign, Garbled, check_content, decode, encode, place_of
from asyncgen.output.recovery import Mark
from asyncgen.records import Rejection, Story
from tests.fuzz.mutations import any_bytes, mutated, mutated_value
from tests.fuzz.target import ACCEPTED, Target, asked, refused
from tests.output.making import INPUTS, config_at, lines_of, records, take, write_until

__all__ = ["RESUME", "Files", "check_finished", "claims_of", "files_in", "kept_lines", "put", "stories_and_rejected"]

NOTHING = Mark()
END = 20
"""Records of the finished plan."""


@dataclass(frozen=True, slots=True)
class Files:
    """The bytes of an output's files; None for one that is not there."""

    stories: bytes | None
    rejected: bytes | None
    manifest: bytes | None
    of_a_crash: bool = field(default=False, compare=False)
    """Whether a run that was killed can leave exactly that: then it is gone on with."""

    def after(self, crash: Files) -> Files:
        """The same, knowing whether a run can leave it that left ``crash`` if it was killed later: the same manifest,
        and files cut anywhere behind what it says is safe.
        """
        safe = json.loads(crash.manifest or b"")["synced"]
        files = zip(stories_and_rejected(self), stories_and_rejected(crash), ("stories", "rejected"), strict=True)
        cut = all(later.startswith(data) and len(data) >= safe[name] for data, later, name in files)
        return replace(self, of_a_crash=cut and self.manifest == crash.manifest)


def files_in(places: Places) -> Files:
    """What is there now."""
    paths = (places.stories, places.rejected, places.manifest)
    stories, rejected, claims = (path.read_bytes() if path.exists() else None for path in paths)
    return Files(stories, rejected, claims)


def put(places: Places, files: Files) -> None:
    """Lets exactly that be there."""
    for path, data in zip(
        (places.stories, places.rejected, places.manifest), (files.stories, files.rejected, files.manifest), strict=True
    ):
        if data is not None:
            path.write_bytes(data)


def stories_and_rejected(files: Files) -> tuple[bytes, bytes]:
    """Both, empty if not there."""
    return files.stories or b"", files.rejected or b""


def claims_of(places: Places) -> manifest.Manifest | None:
    """The manifest, if it can be read."""
    try:
        return manifest.read(places.manifest)
    except ResumeRefused:
        return None


def check_order(files: Files, end: int, begin: Mark = NOTHING, seed: int = 0) -> list[tuple[int, bytes]]:
    """The lines of both files after ``begin``, by index: each of its indices to ``end`` once, in order, with the right
    counts.
    """
    lines = []
    sizes, counts = (begin.stories, begin.rejected), (begin.accepted, begin.rejections)
    for data, kind, size, count in zip(stories_and_rejected(files), (Story, Rejection), sizes, counts, strict=True):
        assert not data or data.endswith(b"\n")
        indices = []
        for number, line in enumerate(data[size:].splitlines(keepends=True), count + 1):
            record = decode(line)
            assert isinstance(record, kind)
            place = place_of(record, seed)
            assert number == (place.accepted if kind is Story else place.rejected)
            indices.append(place.index)
            lines.append((place.index, line))
        assert indices == sorted(indices)
    assert sorted(index for index, _ in lines) == list(range(begin.index, end)), "an index is lost or doubled"
    return sorted(lines)


def check_finished(before: Files, after: Files, claims: manifest.Manifest | None, end: int) -> list[tuple[int, bytes]]:
    """The same of all lines; but what was damaged before the manifest's mark is only read by ``verify``, and is what it
    was. Gives the lines that were looked at.
    """
    if claims is None:
        return check_order(after, end)
    kept_lines(before, after, claims)
    stories, rejected = stories_and_rejected(before)
    safe = Files(stories[: claims.synced.stories], rejected[: claims.synced.rejected], None)
    try:
        check_order(safe, claims.mark.index)
    except (AssertionError, Garbled, Foreign):
        if safe.stories or safe.rejected:
            return check_order(after, end, claims.mark)
    return check_order(after, end)


def kept_lines(before: Files, after: Files, claims: manifest.Manifest) -> None:
    """What the manifest says is safe is where it was."""
    sizes = claims.synced.stories, claims.synced.rejected
    for was, now, size in zip(stories_and_rejected(before), stories_and_rejected(after), sizes, strict=True):
        assert now[:size] == was[:size], "what was safe is changed"


def _check(files: Files, folder: Path) -> str:
    config = config_at(folder / "run")
    places = Places.of(config.output_path)
    places.stories.parent.mkdir()
    put(places, files)
    _only_looks(config, places, folder, files)
    claims = claims_of(places)
    looked = asked(lambda: peek(config, INPUTS))
    assert files_in(places) == files, "peek changed something"
    output = asked(lambda: asyncio.run(write_until(config, END, group=7)))
    if isinstance(output, AsyncgenError):
        assert not files.of_a_crash, f"a crash can leave this, and it is refused: {output}"
        assert files_in(places) == files, f"refused, but changed: {output}"
        assert type(looked) is type(output), f"peek said {looked!r}, opening {output!r}"
        return refused(output)
    assert not isinstance(looked, AsyncgenError), f"peek refused what can be opened: {looked!r}"
    _went_on(files, files_in(places), claims, places)
    return f"{ACCEPTED} and begun" if looked is None else ACCEPTED


def _went_on(before: Files, after: Files, claims: manifest.Manifest | None, places: Places) -> None:
    """The plan is finished; a line is the plan's, or one that was there and cannot be told from it."""
    aside = places.rejected.with_name("stories.rejected.1.jsonl")
    if aside.exists():
        assert claims is not None
        assert not claims.totals.accepted, "a run with stories made way for another"
        kept_lines(Files(b"", before.rejected, None), Files(b"", aside.read_bytes(), None), claims)
        claims = None
    plan = dict(enumerate(map(encode, take(records(), END))))
    old_lines = {line for data in stories_and_rejected(before) for line in data.splitlines(keepends=True)}
    looked_at = check_finished(before, after, claims, END)
    for index, line in looked_at:
        assert line == plan[index] or line in old_lines
    if len(looked_at) == END:
        report = verify(places.stories)
        assert report.ok, report.text()


def _only_looks(config: Config, places: Places, folder: Path, files: Files) -> None:
    """``verify`` and ``repair``."""
    report = verify(config)
    report.text().encode("utf-8", "surrogateescape")
    saved = asked(lambda: repair(config.output_path, folder / "saved.jsonl"))
    assert files_in(places) == files, "verify or repair changed something"
    if isinstance(saved, AsyncgenError):
        kept: set[int] = set()
    else:
        kept = _sound_indices((folder / "saved.jsonl", folder / "saved.rejected.jsonl"), files)
    claims = claims_of(places)
    if claims is None or claims.seed == 0:
        assert kept >= _whole_indices(files), "repair lost a line that is whole"
    if report.ok:
        assert claims is not None
        check_order(files, report.accepted + report.rejected, seed=claims.seed)


def _sound_indices(paths: Iterable[Path], files: Files) -> set[int]:
    """Of what repair saved, which stood in the old files as it is now."""
    found: list[int] = []
    for path, old in zip(paths, stories_and_rejected(files), strict=True):
        indices = []
        for line in path.read_bytes().splitlines(keepends=True):
            assert line.removesuffix(b"\n") in old, "repair made something up"
            indices.append(place_of(decode(line)).index)
        assert indices == sorted(set(indices))
        found += indices
    assert len(set(found)) == len(found)
    return set(found)


def _whole_indices(files: Files) -> set[int]:
    """Indices that stand on a whole line of their own in the file where they belong."""
    found = set()
    for data, kind in zip(stories_and_rejected(files), (Story, Rejection), strict=True):
        for line in data.split(b"\n"):
            try:
                record = decode(line)
                place = place_of(record, 0)
                check_content(record, None)
            except (Garbled, Foreign):
                continue
            if isinstance(record, kind):
                found.add(place.index)
    return found


@cache
def _manifest_at(index: int) -> bytes:
    """What a run leaves that was stopped before ``index``, as if it had been killed since."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_at(Path(folder))
        asyncio.run(write_until(config, index))
        stopped = Places.of(config.output_path).manifest.read_bytes()
    return stopped.replace(b'"state": "stopped"', b'"state": "running"')


@st.composite
def _outputs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Files:
    """What a killed run leaves, with something done to one, two or all of its files."""
    synced = draw(st.integers(0, 9))
    stories, rejected = lines_of(take(records(), synced + draw(st.integers(0, 6))))
    told = _manifest_at(synced)
    which = draw(st.sampled_from(_WHICH))
    safe = json.loads(told)["synced"]
    files = Files(
        draw(_altered(stories, safe["stories"])) if "stories" in which else stories,
        draw(_altered(rejected, safe["rejected"])) if "rejected" in which else rejected,
        draw(_altered_manifest(told)) if "manifest" in which else told,
    )
    return files.after(Files(stories, rejected, told))


_WHICH = (
    (),
    *(("stories",), ("rejected",), ("stories", "rejected")) * 2,
    ("manifest",),
    ("stories", "manifest"),
    ("stories", "rejected", "manifest"),
)


def _altered(data: bytes, safe: int) -> st.SearchStrategy[bytes | None]:
    """Twice as often only where a crash may leave anything: after the first ``safe`` bytes."""
    after = mutated(data[safe:]).map(lambda rest: data[:safe] + rest)
    return st.one_of(
        after,
        after,
        st.integers(min(safe, len(data)), len(data)).map(lambda size: data[:size]),
        mutated(data),
        mutated(data, 1),
        st.integers(0, len(data)).map(lambda size: data[:size]),
        _edited_lines(data),
        any_bytes(),
        st.none(),
    )


@st.composite
def _edited_lines(draw: Callable[[st.SearchStrategy[Any]], Any], data: bytes) -> bytes:
    """One record changed by somebody who knows JSON, or one of another place put there."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at = draw(st.integers(0, len(lines) - 1))
    if draw(st.booleans()):
        lines[at] = json.dumps(draw(mutated_value(json.loads(lines[at]), most=2))).encode() + b"\n"
    else:
        lines.insert(at, encode(draw(st.sampled_from(take(records(), END)))))
    return b"".join(lines)


def _altered_manifest(data: bytes) -> st.SearchStrategy[bytes | None]:
    value = json.loads(data)
    small = st.integers(-2, 12)
    counts = st.fixed_dictionaries(
        {
            "synced": st.fixed_dictionaries({"stories": small, "rejected": small}) | st.just(value["synced"]),
            "totals": st.fixed_dictionaries({"accepted": small, "rejected": small}),
        }
    ).map(lambda changed: json.dumps(value | changed).encode())
    values = mutated_value(value).map(lambda each: json.dumps(each).encode())
    return st.one_of(values, counts, mutated(data), any_bytes(), st.none())


RESUME = Target(_outputs(), _check, Files(None, None, None))
