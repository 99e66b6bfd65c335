"""What two outputs have in common: their records without timings, as SHA-256; and that no index is lost or doubled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

__all__ = ["Content", "content_of", "first_difference"]

_TIMINGS = ("generation_time", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class Content:
    """What an output holds."""

    stories: int
    rejected: int
    stories_sha256: str
    rejected_sha256: str
    attempts: int
    """All of them, those that were rejected included."""
    reasons: dict[str, int]
    """Of the rejections, by kind."""


def content_of(stories: Path, rejected: Path) -> Content:
    """Reads both files. Raises ValueError unless each index from 0 on is in exactly one of them, in order."""
    digests = {path: sha256() for path in (stories, rejected)}
    counts = Counter[Path]()
    reasons = Counter[str]()
    attempts = 0
    waiting = {path: _records(path) for path in (stories, rejected)}
    heads = {path: next(records, None) for path, records in waiting.items()}
    index = 0
    while any(heads.values()):
        path = next((path for path, head in heads.items() if head and head["metadata"]["index"] == index), None)
        if path is None:
            found = [head["metadata"]["index"] for head in heads.values() if head]
            raise ValueError(f"index {index} is lost or doubled: the next ones are {found}")
        record = heads[path]
        assert record is not None
        counts[path] += 1
        _check_counts(record, counts[stories], counts[rejected])
        digests[path].update(json.dumps(record, sort_keys=True).encode() + b"\n")
        attempts += record["metadata"]["attempt"]
        reasons.update(reason.partition(":")[0] for attempt in record.get("reasons", ()) for reason in attempt)
        heads[path] = next(waiting[path], None)
        index += 1
    return Content(
        counts[stories],
        counts[rejected],
        digests[stories].hexdigest(),
        digests[rejected].hexdigest(),
        attempts,
        dict(reasons.most_common()),
    )


def first_difference(one: Path, other: Path) -> str:
    """Where two files of records first differ, in words; empty if they do not."""
    lines = zip_longest(_records(one), _records(other))
    for number, (left, right) in enumerate(lines, 1):
        if left is None or right is None:
            longer, more = (other if left is None else one), 1 + sum(1 for _ in lines)
            return f"line {number}: only {longer} goes on, with {more} more"
        if left != right:
            keys = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
            shown = "; ".join(f"{key}: {left.get(key)!r} and {right.get(key)!r}" for key in sorted(keys))
            return f"line {number}: {shown[:2000]}"
    return ""


def _check_counts(record: dict[str, Any], accepted: int, rejected: int) -> None:
    data = record["metadata"]
    if (data["accepted"], data["rejected"]) != (accepted, rejected):
        raise ValueError(f"index {data['index']} counts {data['accepted']} and {data['rejected']}: wrong")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            for key in _TIMINGS:
                del record[key]
            yield record
