"""Ready prompts from a JSON Lines file: cutting bytes into lines, and a line into a prompt. No I/O but ``check_lines``.

A line is an object with

- ``prompt``, a text, or ``messages``, a list of ``{"role": ..., "content": ...}`` (system only as the first, user or
  assistant, at the end a user's turn);
- optionally ``selected_words``: a mapping of names to words, or a list of words, which are then word1, word2 ...; a
  story must contain them as it must contain those of a template;
- optionally ``additional_condition``, a text that is recorded and not sent.

Other keys are left alone: the record's ``metadata.index`` is the line's number, from 0, to join them by. No k-shot
examples are added; the configured system prompt is put in front of a ``prompt``, not of ``messages``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.prompts.files import check_turn
from asyncgen.records import Message, Prompt
from asyncgen.text_files import BOM, check_text, decode, found, json_errors, refuse_duplicates

__all__ = ["CHUNK", "Line", "LineCutter", "check_lines", "read_prompt"]

CHUNK = 1 << 16
"""Bytes read at once: a few milliseconds of parsing."""
_LONGEST = 1 << 24
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file and where it stands."""

    number: int
    """From 1."""
    offset: int
    """Of its first byte, from 0."""
    data: bytes


class LineCutter:
    """Cuts chunks of a file into lines; blank ones are let go at the end of the file and refused within it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._number = 0
        self._offset = 0
        self._blank = 0

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that ``chunk`` completes; an empty chunk is the end of the file and completes the last one."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        if not chunk and rest:
            whole, rest = [rest], b""
        self._rest = rest
        if len(rest) > _LONGEST:
            raise DataError(f"{self._path}:{self._number + 1}: a line of more than {_LONGEST} bytes")
        return [line for data in whole if (line := self._line(data)) is not None]

    def _line(self, data: bytes) -> Line | None:
        self._number += 1
        offset = self._offset
        self._offset += len(data) + 1
        if self._number == 1 and data.startswith(BOM):
            data, offset = data.removeprefix(BOM), len(BOM)
        if not data.strip():
            self._blank = self._blank or self._number
            return None
        if self._blank:
            raise DataError(f"{self._path}:{self._blank}: a blank line; blank lines may only stand at the end")
        return Line(self._number, offset, data)


def check_lines(path: Path, config: Config, tick: Callable[[], object] = lambda: None) -> int:
    """Reads the whole file, keeping nothing, and returns its number of prompts; calls ``tick`` now and then.

    Raises DataError naming file and line for the first thing that is wrong, and for a file without prompts.
    """
    cutter = LineCutter(path)
    count = 0
    try:
        with path.open("rb") as file:
            chunk = b"-"
            while chunk:
                tick()
                chunk = file.read(CHUNK)
                for line in cutter.feed(chunk):
                    read_prompt(line, path, config)
                    count += 1
    except FileNotFoundError as error:
        raise DataError(f"prompts file not found: {path}") from error
    except OSError as error:
        raise DataError(f"prompts file {path} cannot be read: {error.strerror or error}") from error
    if not count:
        raise DataError(f"{path}: there is no prompt in it; it must hold one JSON object a line")
    return count


def read_prompt(line: Line, path: Path, config: Config) -> Prompt:
    """The first attempt at the prompt of ``line``, whose index is its number, from 0; DataError if it is malformed."""
    text = decode(line.data, str(path), line=line.number, offset=line.offset)
    with json_errors(str(path), line.number):
        data = json.loads(text, object_pairs_hook=refuse_duplicates)
    place = f"{path}:{line.number}"
    if not isinstance(data, dict):
        raise DataError(f'{place}: found {found(data)}; a line is an object with "prompt" or "messages"')
    index = line.number - 1
    return Prompt(
        index=index,
        messages=_messages(data, place, config.system_prompt),
        seed=seeds.sampling_seed(config.seed, index, 1),
        max_new_tokens=config.generation.max_new_tokens,
        selected_words=_selected_words(data.get("selected_words"), place),
        additional_condition=_condition(data.get("additional_condition"), place),
        source="jsonl",
    )


def _messages(data: dict[str, Any], place: str, system_prompt: str | None) -> tuple[Message, ...]:
    if ("prompt" in data) == ("messages" in data):
        keys = ", ".join(json.dumps(key) for key in list(data)[:8]) or "none"
        raise DataError(f'{place}: found the keys {keys}; exactly one of "prompt" and "messages" is allowed')
    if "messages" in data:
        return _conversation(data["messages"], f"{place}: messages")
    text = data["prompt"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: prompt is {found(text)}; it must be a text")
    user: Message = {"role": "user", "content": check_text(text, f"{place}: prompt")}
    return (user,) if system_prompt is None else ({"role": "system", "content": system_prompt}, user)


def _conversation(turns: object, place: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else found(turns)
        raise DataError(f"{place} is {what}; it must be a list of turns that ends with a user's")
    role = ""
    for number, turn in enumerate(turns, 1):
        role = check_turn(turn, f"{place}, turn {number}", _ROLES)
        if role == "system" and number > 1:
            raise DataError(f"{place}, turn {number}: found role system; it is allowed as the first turn only")
    if role != "user":
        raise DataError(f"{place}: the last turn is the {role}'s; it must be a user's")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)


def _selected_words(value: object, place: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, list):
        value = {f"word{number}": word for number, word in enumerate(value, 1)}
    if not isinstance(value, dict):
        raise DataError(f"{place}: selected_words is {found(value)}; it must be a list of words or {{name: word}}")
    for name, word in value.items():
        where = f"{place}: selected_words, {name}"
        if not isinstance(word, str) or not any(char.isalnum() for char in word):
            raise DataError(f"{where}: found {found(word)}; it must be a text with a letter or digit in it")
        if not word.isprintable():
            raise DataError(f"{where}: found {found(word)}; control characters are not allowed in a word")
    return value


def _condition(value: object, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: additional_condition is {found(value)}; it must be a text")
    return check_text(value, f"{place}: additional_condition")
