"""A source and a validator of one's own, for ``animals.yaml``: prompts made in Python, answers judged by it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from asyncgen import Completion

ANIMALS = ("fox", "owl", "hedgehog", "mole", "otter", "wren")
PLACES = ("wood", "river", "snow", "garden")
TEXT = """\
Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old
containing words {animal} {place} friend



keep story coherent and gramatically correct"""


async def animals(start: int) -> AsyncIterator[dict[str, object]]:
    """Prompts without end, from item ``start`` on. Item k depends on k alone, so a resumed run goes on where it was."""
    item = start
    while True:
        animal, place = ANIMALS[item % len(ANIMALS)], PLACES[item // len(ANIMALS) % len(PLACES)]
        yield {"prompt": TEXT.format(animal=animal, place=place), "selected_words": [animal, place]}
        item += 1


async def calm(completion: Completion, most: int) -> str | None:
    """The reason against a text, or None. An async function may ask a server or another model meanwhile."""
    shouts = completion.text.count("!")
    return f"{shouts} exclamation marks, at most {most}" if shouts > most else None
