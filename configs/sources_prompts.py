"""The Python source of ``sources.yaml``: an async generator function that begins at any item."""

from __future__ import annotations

from collections.abc import AsyncIterator

SEASONS = ("spring", "summer", "autumn", "winter")
TEXT = """\
Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old
containing words {}

keep story coherent and gramatically correct"""


async def seasons(start: int, words: list[str]) -> AsyncIterator[dict[str, object]]:
    """Prompts without end: item k depends on k alone, so a resumed run goes on where it stopped."""
    item = start
    while True:
        chosen = [words[item % len(words)], "bed", "friend"]
        yield {
            "prompt": TEXT.format(" ".join(chosen)),
            "selected_words": chosen,
            "additional_condition": f"it is {SEASONS[item // len(words) % len(SEASONS)]}",  # recorded, not sent
        }
        item += 1
