"""Whole sessions on an output that is not as it was left: sources that ended, repeats to know, facts to believe."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio
from hypothesis import strategies as st

from asyncgen.config import Config
from asyncgen.errors import AsyncgenError
from asyncgen.output import Places
from asyncgen.output.lines import decode, kinds_of, place_of
from asyncgen.records import Rejection
from asyncgen.session import finished_on_disk, run
from tests.flows import config_for
from tests.fuzz.mutations import mutated, mutated_value
from tests.fuzz.outputs import Files, check_finished, claims_of, files_in, kept_lines, put, stories_and_rejected
from tests.fuzz.target import ACCEPTED, Target, asked, refused

__all__ = ["SESSION"]

GOAL = 14
_PROMPTS = b"".join(b'{"prompt": "Tell number %d."}\n' % number for number in range(3))


def _config(folder: Path) -> Config:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_bytes(_PROMPTS)
    return config_for(
        num_stories=GOAL,
        output_path=folder / "stories.jsonl",
        bad_share=0.4,
        max_attempts=2,
        sources=[{"kind": "template"}, {"kind": "jsonl", "path": prompts}],
    )


@cache
def _finished() -> Files:
    """What the run leaves that nobody disturbed: all that is made here is cut from it."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        anyio.run(partial(run, config))
        return files_in(Places.of(config.output_path))


@cache
def _lines_at(stories: int) -> tuple[bytes, bytes]:
    """Both files when they had so many stories, and everything before the last of these."""
    accepted, rejected = (data.splitlines(keepends=True) for data in stories_and_rejected(_finished()))
    last = _index(accepted[stories - 1])
    return b"".join(accepted[:stories]), b"".join(line for line in rejected if _index(line) < last)


@cache
def _killed_at(stories: int) -> bytes:
    """The manifest of a run that was killed after so many; where a source ends is in it before anything else is."""
    accepted, rejected = _lines_at(stories)
    reasons = Counter(kind for line in rejected.splitlines() for kind in kinds_of(_rejection(line)))
    changed = {
        "state": "running",
        "synced": {"stories": len(accepted), "rejected": len(rejected)},
        "totals": {"accepted": stories, "rejected": rejected.count(b"\n"), "reasons": reasons},
    }
    return json.dumps(json.loads(_finished().manifest or b"") | changed).encode()


def _index(line: bytes) -> int:
    return place_of(decode(line)).index


def _rejection(line: bytes) -> Rejection:
    record = decode(line)
    assert isinstance(record, Rejection)
    return record


def _check(files: Files, folder: Path) -> str:
    config = _config(folder)
    places = Places.of(config.output_path)
    put(places, files)
    claims = claims_of(places)
    done = asked(lambda: finished_on_disk(config))
    assert files_in(places) == files, "looking changed something"
    if isinstance(done, AsyncgenError):
        assert not files.of_a_crash, f"a crash can leave this, and it is refused: {done}"
        return refused(done)
    if done is not None:
        return f"{ACCEPTED}: nothing to do"
    report = asked(lambda: anyio.run(partial(run, config)))
    after = files_in(places)
    made_way = (folder / "stories.rejected.1.jsonl").exists()
    if claims is None and isinstance(report, AsyncgenError):
        assert after == files, "refused, but changed"
    elif claims is not None and not made_way:
        kept_lines(files, after, claims)
    if isinstance(report, AsyncgenError):
        assert not files.of_a_crash, f"a crash can leave this, and it is refused: {report}"
        return refused(report)
    assert report.complete
    stories, rejected = stories_and_rejected(after)
    check_finished(files, after, None if made_way else claims, (stories + rejected).count(b"\n"))
    assert stories.count(b"\n") == GOAL
    told = claims_of(places)
    assert told is not None
    assert told.state == "complete"
    if files.manifest in [_killed_at(each) for each in _BEFORE]:
        assert _lines(after) <= _lines(_finished()) | _lines(files), "it went on with another plan"
    return ACCEPTED


def _lines(files: Files) -> set[str]:
    """The records of both files, timings aside."""
    found = set()
    for line in ((files.stories or b"") + (files.rejected or b"")).split(b"\n"):
        try:
            record = json.loads(line)
            found.add(json.dumps({key: record[key] for key in record if key not in _TIMINGS}, sort_keys=True))
        except (ValueError, TypeError, RecursionError):
            continue
    return found


_BEFORE = (1, 6, 10)
_TIMINGS = ("generation_time", "tokens_per_second")


@st.composite
def _outputs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Files:
    """A manifest that is older than the lines, and something done to it, or to them."""
    before = draw(st.sampled_from(_BEFORE))
    stories, rejected = _lines_at(draw(st.sampled_from([each for each in (*_BEFORE, GOAL) if each >= before])))
    manifest = _killed_at(before)
    crash = Files(stories, rejected, manifest)
    told = json.loads(manifest)
    match draw(st.sampled_from(("nothing", "cut", "cut", "ends", "manifest", "facts", "stories", "rejected", "all"))):
        case "cut":
            stories = stories[: draw(st.integers(told["synced"]["stories"], len(stories)))]
            rejected = rejected[: draw(st.integers(told["synced"]["rejected"], len(rejected)))]
        case "ends":
            ends = draw(mutated_value(told["facts"]["sources ended"], most=2))
            manifest = json.dumps(told | {"facts": told["facts"] | {"sources ended": ends}}).encode()
        case "manifest":
            manifest = json.dumps(draw(mutated_value(told))).encode()
        case "facts":
            manifest = json.dumps(told | {"facts": draw(mutated_value(told["facts"], most=2))}).encode()
        case "stories":
            stories = draw(mutated(stories))
        case "rejected":
            rejected = draw(mutated(rejected))
        case "all":
            stories, rejected = draw(mutated(stories, 1)), draw(mutated(rejected, 1))
            manifest = draw(mutated(manifest, 1))
    return Files(stories, rejected, manifest).after(crash)


SESSION = Target(_outputs(), _check, Files(None, None, None))
