from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.errors import OutputDamaged
from asyncgen.output import Seen
from asyncgen.output.repeats import seen_stories
from asyncgen.records import Story
from tests.output.making import lines_of, records, take

hashes = st.one_of(st.integers(0, 5), st.integers(2**64 - 3, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(st.lists(hashes))
def test_seen_is_a_set(numbers: list[int]) -> None:
    seen, model = Seen(), set[int]()
    for number in numbers:
        assert (number in seen) == (number in model)
        assert seen.add(number) == (number not in model)
        model.add(number)
        assert number in seen
    assert len(seen) == len(model)


def test_seen_needs_about_eight_bytes_each() -> None:
    draw = random.Random(1)
    tracemalloc.start()
    try:
        seen = Seen()
        empty = tracemalloc.get_traced_memory()[0]
        for _ in range(200_000):
            seen.add(draw.getrandbits(64))
        each = (tracemalloc.get_traced_memory()[0] - empty) / len(seen)
    finally:
        tracemalloc.stop()
    assert each < 10


def test_seen_stories_are_those_of_the_file(tmp_path: Path) -> None:
    made = take(records(), 50)
    path = tmp_path / "stories.jsonl"
    path.write_bytes(lines_of(made)[0])
    texts = [each.content for each in made if isinstance(each, Story)]
    for count in (0, 1, len(texts) - 1, len(texts)):
        assert list(seen_stories(path, count, 0)) == texts[:count]
    assert list(seen_stories(tmp_path / "absent.jsonl", 0, 0)) == []


@pytest.mark.parametrize(
    "damage", [lambda lines: [*lines[:3], b"\0" * 9 + b"\n", *lines[3:]], lambda lines: lines[:3] + lines[4:]]
)
def test_damage_in_the_middle_is_found(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "stories.jsonl"
    lines = lines_of(take(records(), 20))[0].splitlines(keepends=True)
    path.write_bytes(b"".join(damage(lines)))  # type: ignore[operator]
    with pytest.raises(OutputDamaged, match="line 4"):
        list(seen_stories(path, 20, 0))
