"""Row 3: either file is cut at every byte of its last three records, texts of several bytes a character included. What
is torn is cut off and made again: 0 of the cuts (300 and more) end in other files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncgen.output import Places, open_output
from asyncgen.output import manifest as manifests
from asyncgen.output.recovery import Mark, examine
from tests.faults.conftest import FULL, Trials
from tests.output.making import (
    INPUTS,
    config_at,
    lines_of,
    longest,
    mark_after,
    on_disk,
    put,
    records,
    take,
    write_until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

COUNT, GOES_ON = 30, 40
NAMES = ["stories.jsonl", "stories.lock", "stories.rejected.jsonl", "stories.run.json"]


def cuts(mark: Mark) -> list[tuple[int, int]]:
    """File and size, for every byte of the last three records of each that is not safe on the disk."""
    found = []
    for which, data in enumerate(lines_of(take(records(), COUNT))):
        begins = len(data) - sum(map(len, data.splitlines(keepends=True)[-3:]))
        found += [(which, size) for size in range(max(begins, (mark.stories, mark.rejected)[which]), len(data))]
    return found


def test_the_records_are_of_several_bytes_a_character() -> None:
    for data in lines_of(take(records(), COUNT)):
        last_three = b"".join(data.splitlines(keepends=True)[-3:])
        assert len(last_three.decode()) < len(last_three)


@pytest.mark.parametrize("synced", [0, 20, 24])
def test_at_every_byte_the_longest_consistent_pair_is_found(memory_path: Path, trials: Trials, synced: int) -> None:
    places = Places.of(memory_path / "stories.jsonl")
    made = take(records(), COUNT)
    files, mark = lines_of(made), mark_after(made, synced)
    chosen = cuts(mark)[:: 1 if os.environ.get(FULL) else 5]
    assert trials(len(chosen), len(chosen)) > 300
    for which, size in chosen:
        torn = [*files]
        torn[which] = torn[which][:size]
        put(places, *torn)
        assert examine(places, mark, seed=0).mark == mark_after(made, longest(made, *map(len, torn)))


@pytest.mark.parametrize(("synced", "step"), [(0, 7), (20, 1)])
async def test_what_goes_on_from_there_ends_in_the_same_bytes(
    memory_path: Path, trials: Trials, synced: int, step: int
) -> None:
    """Of every cut in full, and of some else."""
    config = config_at(memory_path)
    places = Places.of(config.output_path)
    files, whole = lines_of(take(records(), COUNT)), lines_of(take(records(), GOES_ON))
    await write_until(config, synced)
    manifest = manifests.read(places.manifest)
    assert manifest is not None
    assert manifest.mark == mark_after(take(records(), synced), synced)
    killed = manifest.model_copy(update={"state": "running"})
    chosen = cuts(manifest.mark)[:: step if os.environ.get(FULL) else 29]
    assert trials(len(chosen), len(chosen)) > 50
    for which, size in chosen:
        torn = [*files]
        torn[which] = torn[which][:size]
        put(places, *torn)
        manifests.replace(places.manifest, killed)
        async with open_output(config, INPUTS) as output:
            assert output.start >= COUNT - 12
            assert [text for text in output.cuts if "interrupted" not in text] == []
            await output.write(take(records(output.start), GOES_ON - output.start))
        assert on_disk(config) == whole, (which, size)
    assert sorted(os.listdir(memory_path)) == NAMES  # noqa: PTH208  # names are what is compared
