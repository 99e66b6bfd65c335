"""Looks at a finished stories file with other eyes: none of asyncgen's own code is used here.

    python tools/check_stories.py stories.jsonl 100

Ends with exit code 1 and a list of complaints if the file is not what the brief promises; prints what no rule decides.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

KEYS = {
    "story_id": str,
    "prompt_id": str,
    "content": str,
    "word_count": int,
    "generation_time": float,
    "tokens_generated": int,
    "tokens_per_second": float,
    "metadata": dict,
}
METADATA = {"selected_words": dict, "additional_condition": str, "k_shot_count": int}


def complaints(records: list[dict[str, Any]], expected: int, most_words: int = 150) -> list[str]:
    """Everything about ``records`` that is not as promised."""
    found = [f"{len(records)} lines instead of {expected}"] if len(records) != expected else []
    for line, record in enumerate(records, 1):
        if {key: type(value) for key, value in record.items()} != KEYS:
            found.append(f"line {line}: keys or types differ: {sorted(record)}")
            continue
        metadata = record["metadata"]
        found += [
            f"line {line}: {key} is not {kind.__name__}"
            for key, kind in METADATA.items()
            if type(metadata.get(key)) is not kind
        ]
        words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", record["content"].lower())  # noqa: RUF001  # the typographic apostrophe is meant
        if len(words) > most_words:
            found.append(f"line {line}: {len(words)} words")
        found += [
            f"line {line}: {word!r} is missing"
            for word in metadata["selected_words"].values()
            if not _occurs(word, words)
        ]
    indices = [record["metadata"]["index"] for record in records]
    if any(after <= before for before, after in pairwise(indices)):
        found.append("the lines are not in index order")
    for name in ("story_id", "prompt_id", "content"):
        if len({record[name] for record in records}) != len(records):
            found.append(f"{name} is not unique")
    return found


def _occurs(word: str, words: list[str]) -> bool:
    """Whether a word of the text begins like ``word``: the same word or a form of it (dance, danced, dancing)."""
    word = word.lower()
    if word in words or " ".join(words).find(word) >= 0:
        return True
    stem = re.sub(r"(e|y)$", "", word)
    return any(other.startswith(stem) and len(other) <= len(word) + 4 for other in words)


def main() -> None:
    """Reads, complains, prints."""
    path, expected = Path(sys.argv[1]), int(sys.argv[2])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = complaints(records, expected)
    openings = {tuple(record["content"].lower().split()[:5]) for record in records}
    lengths = sorted(record["word_count"] for record in records)
    print(f"{len(records)} stories of {lengths[0]} to {lengths[-1]} words, half up to {lengths[len(lengths) // 2]}")
    print(f"distinct five-word openings: {len(openings) / len(records):.0%}")
    print("\n".join(found) or "no complaints")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
