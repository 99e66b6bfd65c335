from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.errors import OutputDamaged
from asyncgen.output import Places
from asyncgen.output.lines import encode
from asyncgen.output.places import read_before
from asyncgen.output.recovery import Kept, Mark, cut, examine
from asyncgen.records import Rejection
from tests.output.making import lines_of, longest, mark_after, put, record, records, take


def places_in(folder: Path) -> Places:
    return Places.of(folder / "stories.jsonl")


@given(st.data())
@settings(deadline=None)
def test_any_two_prefixes_are_cut_to_the_longest_consistent_pair(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever was lost, in whatever group, in whichever order the two appends were made."""
    places = places_in(tmp_path_factory.mktemp("pair"))
    pattern = data.draw(st.lists(st.booleans(), max_size=14))
    made = list(records(rejects=pattern))
    stories, rejected = lines_of(made)
    sizes = [data.draw(st.integers(0, len(each))) for each in (stories, rejected)]
    put(places, stories[: sizes[0]], rejected[: sizes[1]])
    count = longest(made, *sizes)
    synced = mark_after(made, data.draw(st.integers(0, count)))

    kept = examine(places, synced, seed=0)
    assert kept.mark == mark_after(made, count)
    new_rejections = [each for each in made[synced.index : count] if isinstance(each, Rejection)]
    assert (
        kept.reasons == Counter({"too short": 2 * len(new_rejections), "word missing": len(new_rejections)}) + Counter()
    )

    assert (places.stories.read_bytes(), places.rejected.read_bytes()) == (stories[: sizes[0]], rejected[: sizes[1]])
    cut(places, kept.mark, synced)
    assert (places.stories.read_bytes(), places.rejected.read_bytes()) == lines_of(made[:count])
    assert examine(places, kept.mark, seed=0) == Kept(kept.mark)


@given(st.data())
@settings(deadline=None)
def test_a_crash_in_the_middle_of_a_group_loses_at_most_that_group(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The writer's own interleaving: whole groups, then one cut off between or within its two appends."""
    places = places_in(tmp_path_factory.mktemp("pair"))
    groups = data.draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5))
    made = list(records(rejects=[rejects for group in groups for rejects in group]))
    before = sum(map(len, groups[:-1]))
    stories, rejected = lines_of(made[:before])
    last_stories, last_rejected = lines_of(made[before:])
    reached = data.draw(st.integers(0, len(last_stories) + len(last_rejected)))
    stories += last_stories[:reached]
    rejected += last_rejected[: max(0, reached - len(last_stories))]
    put(places, stories, rejected)
    assert before <= examine(places, Mark(), seed=0).mark.index == longest(made, len(stories), len(rejected))


@pytest.mark.parametrize(("stories", "rejected"), [(None, None), (b"", b""), (None, b""), (b"", None)])
def test_nothing_there_is_the_beginning(tmp_path: Path, stories: bytes | None, rejected: bytes | None) -> None:
    put(places_in(tmp_path), stories, rejected)
    assert examine(places_in(tmp_path), Mark(), seed=0) == Kept(Mark())


def test_stories_deleted_while_the_rejected_still_stand(tmp_path: Path) -> None:
    made = list(records(rejects=[True, True, False, True]))
    places = places_in(tmp_path)
    put(places, None, lines_of(made)[1])
    assert examine(places, Mark(), seed=0).mark == mark_after(made, 2)
    with pytest.raises(OutputDamaged, match=r"stories\.jsonl: line 1: missing: the file is not there, and \d+ bytes"):
        examine(places, mark_after(made, 4), seed=0)


def test_rejected_deleted_while_the_stories_still_stand(tmp_path: Path) -> None:
    made = list(records(rejects=[False, True, False]))
    places = places_in(tmp_path)
    put(places, lines_of(made)[0], None)
    assert examine(places, Mark(), seed=0).mark == mark_after(made, 1)
    with pytest.raises(OutputDamaged, match=r"rejected\.jsonl: line 1: missing: the file is not there"):
        examine(places, mark_after(made, 3), seed=0)


@pytest.mark.parametrize(
    "mark", [Mark(0, 0, 3, 0), Mark(0, 0, 0, 1), Mark(0, 0, -1, 0), Mark(-5, 0, 1, 0), Mark(9, 0, 0, 0)]
)
def test_a_manifest_that_counts_records_in_no_bytes_is_refused(tmp_path: Path, mark: Mark) -> None:
    """Else their indices would be passed over."""
    for made in ([], take(records(), 9)):
        put(places_in(tmp_path), *lines_of(made))
        with pytest.raises(OutputDamaged, match=r"jsonl: line \d: "):
            examine(places_in(tmp_path), mark, seed=0)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_file_without_a_newline_is_a_torn_first_line(tmp_path: Path, size: int) -> None:
    places = places_in(tmp_path)
    put(places, lines_of(take(records(), 5))[0][:size], None)
    assert examine(places, Mark(), seed=0).mark == Mark()


def test_the_zeros_of_a_power_cut_are_cut(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    made = list(records(rejects=[False] * 6))
    lines = [encode(each) for each in made]
    for whole in (0, 3, 10):
        put(places, lines[0][:whole] + bytes(5000), b"")
        assert examine(places, Mark(), seed=0).mark == Mark()
    put(places, bytes(4) + b"".join(lines)[4:], b"")
    assert examine(places, Mark(), seed=0).mark == Mark()
    put(places, b"".join([*lines[:3], bytes(len(lines[3])), *lines[4:]]), b"")
    assert examine(places, Mark(), seed=0).mark == mark_after(made, 3), "a hole is never hidden by what is after it"


@pytest.mark.parametrize(
    "foreign",
    [
        b'{"text": "the only copy of something"}\n',
        b"Once upon a time\n",
        b"{}\n",
        b"[1, 2]",
        b"PK\x03\x04" + bytes(99),
        encode(record(0, 1, 0, rejects_it=False, seed=7)),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, foreign: bytes) -> None:
    for stories, rejected in ((foreign, b""), (b"", foreign)):
        put(places_in(tmp_path), stories, rejected)
        with pytest.raises(OutputDamaged, match="line 1"):
            examine(places_in(tmp_path), Mark(), seed=0)


@pytest.mark.parametrize(
    "more",
    [
        b'{"text": "somebody else\'s"}\n',
        encode(take(records(), 1)[0]),  # index 0 again
        encode(record(9, 9, 1, rejects_it=False)),  # the due index with wrong counts
        encode(record(9, 5, 5, rejects_it=True)),  # a rejection in the file of stories
    ],
)
def test_whole_lines_that_no_crash_leaves_are_refused(tmp_path: Path, more: bytes) -> None:
    made = list(records(rejects=[False] * 9))
    put(places_in(tmp_path), lines_of(made)[0] + more, b"")
    with pytest.raises(OutputDamaged, match=r"stories\.jsonl: line 10"):
        examine(places_in(tmp_path), mark_after(made, 5), seed=0)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_line_of_any_length_is_read_backwards(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    path = tmp_path_factory.mktemp("long") / "file"
    lines = [bytes([65 + number]) * length + b"\n" for number, length in enumerate(lengths)]
    path.write_bytes(b"".join(lines) + b"torn")
    for count in range(1, len(lines) + 1):
        assert read_before(path, sum(map(len, lines[:count]))) == lines[count - 1]
