"""One record, one line of JSON Lines, and back. Knows nothing about files.

A line is UTF-8 and ends in a newline. It is one line for every reader: what ``str.splitlines`` would also break at
(U+0085, U+2028, U+2029) is escaped, as JSON itself demands for the rest. Half a surrogate pair has no UTF-8 and makes
strict readers (pyarrow, so ``datasets``) refuse the file: U+FFFD replaces it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncgen import seeds
from asyncgen.records import Record, Rejection, Story

__all__ = ["Foreign", "Garbled", "Place", "check_content", "decode", "encode", "kinds_of", "place_of", "read_line"]

_TYPES: dict[str, tuple[type, ...]] = {
    "story_id": (str,),
    "prompt_id": (str,),
    "content": (str,),
    "word_count": (int,),
    "generation_time": (int, float),
    "tokens_generated": (int,),
    "tokens_per_second": (int, float),
    "metadata": (dict,),
}
_BREAKS = re.compile("[\x85\u2028\u2029]")
_LONGEST_NAME = 40
_NAME = re.compile(rf"[\w.-]{{1,{_LONGEST_NAME}}}")
_MOST_NAMED = 10
_MOST = 2**53
"""No count comes near it, and any reader of JSON can hold it."""


class Garbled(ValueError):
    """Not JSON at all: what a crash can leave behind."""


class Foreign(ValueError):
    """JSON, but not a record of ours or not at its place: what no crash can leave behind."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: its index, and the counts up to and including it: ``index + 1 == accepted + rejected``."""

    index: int
    accepted: int
    rejected: int


def encode(record: Record) -> bytes:
    """The line of ``record``. Raises ValueError for a number that JSON does not have (NaN, infinities)."""
    keys = {
        "story_id": record.story_id,
        "prompt_id": record.prompt_id,
        "content": record.content,
        "word_count": record.word_count,
        "generation_time": record.generation_time,
        "tokens_generated": record.tokens_generated,
        "tokens_per_second": record.tokens_per_second,
        "metadata": record.metadata,
    }
    if isinstance(record, Rejection):
        keys["reasons"] = record.reasons
    text = _encoder.encode(keys)
    if not text.isascii():
        text = _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode() + b"\n"


def decode(line: bytes) -> Story | Rejection:
    """The record of one line. Raises Garbled if it is not JSON, Foreign if it is not a record."""
    try:
        keys = _decoder.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise Garbled(f"not JSON: {error}") from error
    if not isinstance(keys, dict):
        raise Foreign("not a JSON object")
    reasons = keys.pop("reasons", None)
    _check(keys)
    if reasons is None:
        return Story(**keys)
    if not _are_reasons(reasons):
        raise Foreign("`reasons` is not a list of lists of texts")
    return Rejection(**keys, reasons=tuple(tuple(attempt) for attempt in reasons))


def place_of(record: Record, seed: int | None = None) -> Place:
    """Where ``record`` stands. Raises Foreign if its counts and ids contradict each other, or belong to another seed
    than ``seed`` (None: any).
    """
    place = Place(*(_count(record.metadata, key) for key in ("index", "accepted", "rejected")))
    if place.index + 1 != place.accepted + place.rejected:
        raise Foreign(f"index {place.index} with {place.accepted} accepted and {place.rejected} rejected")
    if record.prompt_id != seeds.prompt_id(place.index):
        raise Foreign(f"{_shown(record.prompt_id)} is not index {place.index}")
    if seed is not None and record.story_id != seeds.story_id(seed, place.index):
        raise Foreign(f"{_shown(record.story_id)} is not index {place.index} of seed {seed}")
    return place


def read_line(line: bytes, kind: type[Story | Rejection], seed: int | None) -> tuple[Story | Rejection, Place]:
    """The record of a line in a file of this kind, and its place. Raises Garbled, and Foreign as ``place_of`` does."""
    record = decode(line)
    if not isinstance(record, kind):
        raise Foreign(f"a {type(record).__name__.lower()} in this file")
    return record, place_of(record, seed)


def check_content(record: Record, words: Callable[[str], int] | None) -> None:
    """Raises Foreign for what no run writes into a record that stands in its place: numbers below zero, a story
    without a text, another ``word_count`` than ``words(content)`` (None: any will do).
    """
    for key in ("word_count", "generation_time", "tokens_generated", "tokens_per_second"):
        number = getattr(record, key)
        if number < 0:
            raise Foreign(f"`{key}` is {number}, below 0")
    if isinstance(record, Story) and not record.content.strip():
        raise Foreign("a story without a text")
    if words is not None and (count := words(record.content)) != record.word_count:
        raise Foreign(f"`word_count` is {record.word_count}, and the text has {count} words")


def kinds_of(rejection: Rejection) -> list[str]:
    """The kinds of all its reasons: of each the part before the first colon."""
    return [reason.partition(":")[0] for attempt in rejection.reasons for reason in attempt]


def _check(keys: dict[str, Any]) -> None:
    if keys.keys() != _TYPES.keys():
        odd = sorted(keys.keys() ^ _TYPES.keys())
        named = ", ".join(map(_shown, odd[:_MOST_NAMED])) + (", ..." if len(odd) > _MOST_NAMED else "")
        raise Foreign(f"not the keys of a record: {named} missing or too many")
    for key, types in _TYPES.items():
        if not isinstance(keys[key], types) or isinstance(keys[key], bool):
            raise Foreign(f"`{key}` is a {type(keys[key]).__name__}")


def _shown(text: str) -> str:
    """A name as it stands there; what is none is in quotes, short, and does nothing to a terminal."""
    return text if _NAME.fullmatch(text) else json.dumps(text[:_LONGEST_NAME])


def _count(metadata: Mapping[str, object], key: str) -> int:
    number = metadata.get(key)
    if type(number) is not int or not 0 <= number < _MOST:
        raise Foreign(f"`metadata.{key}` is not a count")
    return number


def _are_reasons(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(attempt, list) and all(isinstance(reason, str) for reason in attempt) for attempt in value
    )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, default=_plain)
_decoder = json.JSONDecoder(parse_constant=_no_constant)
