"""A ready prompt: an object of a JSON Lines file, or what a Python source yields, into a ``Prompt``. No I/O.

The object has

- ``prompt``, a text, or ``messages``, a list of ``{"role": ..., "content": ...}`` (system only as the first, user or
  assistant, at the end a user's turn);
- optionally ``selected_words``: a mapping of names to words, or a list of words, which are then word1, word2 ...; a
  story must contain them as it must contain those of a template;
- optionally ``additional_condition``, a text that is recorded and not sent.

Other keys are left alone: the record's ``metadata.position`` is the item's number in its source, from 0, to join them
by. No k-shot examples are added; the configured system prompt is put in front of a ``prompt``, not of ``messages``.
"""

from __future__ import annotations

import json
from typing import Any

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.prompts.files import check_turn
from asyncgen.records import Message, Prompt
from asyncgen.text_files import check_text, found

__all__ = ["KEYS", "ready_prompt"]

KEYS = ("prompt", "messages", "selected_words", "additional_condition")
"""What is looked at."""
_ROLES = ("system", "user", "assistant")


def ready_prompt(data: dict[str, Any], place: str, config: Config, position: int, source: str) -> Prompt:
    """The first attempt at item ``position`` of ``source``, as if it were the only source. DataError, which begins
    with ``place``, if the object is malformed.
    """
    return Prompt(
        index=position,
        messages=_messages(data, place, config.system_prompt),
        seed=seeds.sampling_seed(config.seed, position, 1),
        max_new_tokens=config.generation.max_new_tokens,
        selected_words=_selected_words(data.get("selected_words"), place),
        additional_condition=_condition(data.get("additional_condition"), place),
        source=source,
        position=position,
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
