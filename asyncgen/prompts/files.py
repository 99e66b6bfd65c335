"""The data files of a template run: vocabulary, story features, example conversation.

Nothing is dropped in silence: what cannot be used is a DataError that names the file, the place, what was found there
and what is allowed. Every file is UTF-8; a BOM and CRLF line ends are accepted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncgen.errors import DataError
from asyncgen.text_files import check_text, found, json_errors, read_text, read_words, refuse_duplicates

__all__ = ["Shot", "check_turn", "read_conversation", "read_features", "read_vocabulary"]

_SPACE = re.compile(r"[ \t\n]*")
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Shot:
    """One example: a question and its answer."""

    question: str
    answer: str


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The words of ``path``, one a line, in its order; see ``read_words``."""
    return read_words(path, "vocabulary")


def read_features(path: Path) -> tuple[tuple[str, ...], ...]:
    """The conditions of ``path``, group by group: JSON ``{group: [text, ...]}``, or ``[text, ...]`` for one group.

    Every group has at least one text, and no text stands twice in a group.
    """
    text = read_text(path, "features")
    with json_errors(str(path)):
        data = json.loads(text, object_pairs_hook=refuse_duplicates)
    allowed = "allowed is {group: [text, ...]} or [text, ...]"
    if isinstance(data, list):
        return (_group(data, f"{path}: the list", allowed),)
    if not isinstance(data, dict):
        raise DataError(f"{path}: found {found(data)}; {allowed}")
    if not data:
        raise DataError(f"{path}: there is no group in it; {allowed}, with at least one text")
    return tuple(_group(texts, f"{path}: group {json.dumps(name)}", allowed) for name, texts in data.items())


def _group(texts: object, place: str, allowed: str) -> tuple[str, ...]:
    if not isinstance(texts, list):
        raise DataError(f"{place}: found {found(texts)}; {allowed}")
    if not texts:
        raise DataError(f"{place} is empty; it must hold at least one text")
    numbers: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}, item {number}: found {found(text)}; {allowed}")
        check_text(text, f"{place}, item {number}")
        first = numbers.setdefault(text, number)
        if first != number:
            raise DataError(f"{place}, item {number}: the same text as item {first}; each may stand once in a group")
    return tuple(texts)


def read_conversation(path: Path) -> tuple[Shot, ...]:
    """The examples of ``path``: one JSON array of alternating user and assistant turns, or several one after another.

    A turn is ``{"role": ..., "content": ...}``, and each array begins with a user's and ends with an assistant's. A
    system turn is refused: the configuration's ``system_prompt`` is its place.
    """
    text = read_text(path, "conversation")
    decoder = json.JSONDecoder(object_pairs_hook=refuse_duplicates)
    shots: list[Shot] = []
    at = _skip(text, 0)
    while at < len(text):
        place = f"{path}:{text.count(chr(10), 0, at) + 1}"
        with json_errors(str(path)):
            turns, end = decoder.raw_decode(text, at)
        shots += _pairs(turns, place)
        at = _skip(text, end)
    if not shots:
        raise DataError(f"{path}: the conversation is empty; allowed is a JSON array of user and assistant turns")
    return tuple(shots)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match
    return match.end()


def _pairs(turns: object, place: str) -> list[Shot]:
    """The examples of one array, which begins at ``place``."""
    if not isinstance(turns, list):
        raise DataError(f"{place}: found {found(turns)}; allowed is a JSON array of user and assistant turns")
    if not turns:
        raise DataError(f"{place}: an empty array; it must hold at least one user and one assistant turn")
    for number, turn in enumerate(turns, 1):
        role = check_turn(turn, f"{place}: turn {number}", _ROLES)
        wanted = _ROLES[(number - 1) % 2]
        if role != wanted:
            raise DataError(
                f"{place}: turn {number}: found role {json.dumps(role)}; turns alternate, and here {wanted!r} is next"
            )
    if len(turns) % 2:
        raise DataError(f"{place}: turn {len(turns)} is a question without an answer; the last turn is the assistant's")
    contents = [turn["content"] for turn in turns]
    return [Shot(question, answer) for question, answer in zip(contents[::2], contents[1::2], strict=True)]


def check_turn(turn: Any, place: str, roles: tuple[str, ...]) -> str:
    """The role of a chat turn, which has exactly ``role``, one of ``roles``, and a ``content`` with text in it."""
    if not isinstance(turn, dict):
        raise DataError(f'{place}: found {found(turn)}; a turn is {{"role": ..., "content": ...}}')
    keys = ", ".join(json.dumps(key) for key in turn) or "none"
    if turn.keys() != {"role", "content"}:
        raise DataError(f'{place}: found the keys {keys}; a turn has "role" and "content"')
    role, content = turn["role"], turn["content"]
    if role not in roles:
        hint = "the system prompt belongs into the configuration: system_prompt" if role == "system" else None
        shown = json.dumps(role) if isinstance(role, str) else found(role)
        raise DataError(f"{place}: found role {shown}; allowed are {', '.join(roles)}", hint=hint)
    if not isinstance(content, str) or not content.strip():
        raise DataError(f"{place}: content is {found(content)}; it must be a text")
    check_text(content, f"{place}: content")
    assert isinstance(role, str)
    return role
