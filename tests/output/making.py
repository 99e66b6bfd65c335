"""A finished run made from nothing but (seed, index), and what tests do with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from asyncgen import seeds
from asyncgen.config import Config, EchoBackend
from asyncgen.output import Output, Places, open_output
from asyncgen.output.lines import encode
from asyncgen.output.recovery import Mark
from asyncgen.records import Rejection, Story

INPUTS: dict[str, Path | str] = {"vocabulary": "moon\ndance\nhappy\n"}
TEXTS = ("The moon was happy.", "Ünïcödé — 星の子 🌙 slept.", "A line\nand\u2028another\x85one \\ “quoted”.")


def config_at(folder: Path, **changes: object) -> Config:
    values = {"output_path": folder / "stories.jsonl", "backend": EchoBackend(kind="echo"), "num_stories": None}
    return Config.model_validate(values | changes)


def is_rejected(index: int) -> bool:
    return seeds.draw(0, "test", index) % 3 == 0


def records(start: int = 0, seed: int = 0, rejects: Iterable[bool] | None = None) -> Iterator[Story | Rejection]:
    """The plan from ``start`` on, without end or as long as ``rejects``; the same at every call."""
    pattern = (is_rejected(i) for i in range(1 << 40)) if rejects is None else rejects
    accepted = rejected = 0
    for index, rejects_it in enumerate(pattern):
        accepted, rejected = accepted + (not rejects_it), rejected + rejects_it
        if index >= start:
            yield record(index, accepted, rejected, rejects_it=rejects_it, seed=seed)


def record(index: int, accepted: int, rejected: int, *, rejects_it: bool, seed: int = 0) -> Story | Rejection:
    values = {
        "story_id": seeds.story_id(seed, index),
        "prompt_id": seeds.prompt_id(index),
        "content": f"{TEXTS[index % 3]} {index}",
        "word_count": 4,
        "generation_time": 0.25,
        "tokens_generated": 6,
        "tokens_per_second": 24.0,
        "metadata": {"index": index, "accepted": accepted, "rejected": rejected, "selected_words": {"word1": "moon"}},
    }
    if rejects_it:
        return Rejection(**values, reasons=(("too short: 4 words",), ("word missing: 月", "too short: 4 words")))  # type: ignore[arg-type]
    return Story(**values)  # type: ignore[arg-type]


def take(source: Iterator[Story | Rejection], count: int) -> list[Story | Rejection]:
    return list(islice(source, count))


def lines_of(made: Iterable[Story | Rejection]) -> tuple[bytes, bytes]:
    """The two finished files."""
    made = list(made)
    return (
        b"".join(encode(each) for each in made if isinstance(each, Story)),
        b"".join(encode(each) for each in made if isinstance(each, Rejection)),
    )


def on_disk(config: Config) -> tuple[bytes, bytes]:
    places = Places.of(config.output_path)
    return tuple(path.read_bytes() if path.exists() else b"" for path in (places.stories, places.rejected))  # type: ignore[return-value]


async def write_until(config: Config, end: int, group: int = 3) -> Output:
    """Opens, goes on up to index ``end``, closes."""
    async with open_output(config, INPUTS) as output:
        plan = records(output.start)
        while output.start < end:
            await output.write(take(plan, min(group, end - output.start)))
    return output


def put(places: Places, stories: bytes | None, rejected: bytes | None) -> None:
    for path, data in ((places.stories, stories), (places.rejected, rejected)):
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)


def mark_after(made: list[Story | Rejection], count: int) -> Mark:
    stories, rejected = lines_of(made[:count])
    accepted = sum(isinstance(each, Story) for each in made[:count])
    return Mark(len(stories), len(rejected), accepted, count - accepted)


def longest(made: list[Story | Rejection], stories: int, rejected: int) -> int:
    """By definition: the most first records whose lines all are within so many bytes of their files."""
    left = [stories, rejected]
    for count, each in enumerate(made):
        which = isinstance(each, Rejection)
        left[which] -= len(encode(each))
        if left[which] < 0:
            return count
    return len(made)
