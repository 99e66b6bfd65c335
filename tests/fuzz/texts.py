"""Data files: what is read is whole and can be read again, or it is refused, naming the file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from asyncgen.config import Config, EchoBackend
from asyncgen.errors import AsyncgenError, DataError
from asyncgen.prompts.files import read_conversation, read_features, read_vocabulary
from asyncgen.prompts.jsonl import Checked, check_lines, read_items
from asyncgen.prompts.plan import Plan
from asyncgen.records import Prompt
from tests.fuzz.mutations import any_bytes, any_values, json_texts, mutated, mutated_value
from tests.fuzz.target import ACCEPTED, Target, asked, refused

__all__ = ["CONVERSATION", "FEATURES", "PROMPTS", "VOCABULARY"]

_TURNS = [
    {"role": "user", "content": "A story about the moon, please."},
    {"role": "assistant", "content": "The moon slept.\nSo did we — “good night” 星."},
    {"role": "user", "content": "Another one."},
    {"role": "assistant", "content": "Another moon slept."},
]
_FEATURES = {"mood": ["sad", "glad ☾", "calm"], "end": ["with a hug", "sad"]}
_ITEMS = [
    {"prompt": "Tell about the moon.", "selected_words": ["moon", "boat"], "additional_condition": "calm", "id": 7},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A story."}]},
    {"messages": [*_TURNS, {"role": "user", "content": "Ünd ☾?"}], "selected_words": {"word1": "moon"}},
]
_WORDS = "moon\nteddy-bear\nice cream\n\nl’été\nGröße\nwon't\nकहानी\n"  # noqa: RUF001


def _config(**changes: object) -> Config:
    return Config.model_validate({"backend": EchoBackend(kind="echo"), "k_shot_count": 1} | changes)


def _checked(data: bytes, folder: Path, check: Callable[[Path], object]) -> str:
    """Puts the input into a file and lets ``check`` read it."""
    path = folder / "data"
    path.write_bytes(data)
    answer = asked(lambda: check(path))
    assert path.read_bytes() == data
    if not isinstance(answer, AsyncgenError):
        return ACCEPTED
    assert isinstance(answer, DataError)
    assert str(path) in answer.message, f"the file is not named: {answer.message}"
    return refused(answer)


def _can_be_written(prompt: Prompt) -> None:
    """A record of it is UTF-8."""
    data = [prompt.messages, dict(prompt.selected_words), prompt.additional_condition]
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    text.encode()
    assert "\\u0000" not in text
    assert all(message["content"].strip() for message in prompt.messages)


def _conversation(path: Path) -> None:
    shots = read_conversation(path)
    assert shots
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in (("user", shot.question), ("assistant", shot.answer))
    ]
    plan = Plan(_config(conversation_path=path))
    for index in (0, 5):
        _can_be_written(plan.prompt(index))
    again = path.with_name("again")
    again.write_text(json.dumps(turns), encoding="utf-8")
    assert read_conversation(again) == shots


def _features(path: Path) -> None:
    groups = read_features(path)
    assert groups
    assert all(len(set(group)) == len(group) > 0 and all(text.strip() for text in group) for group in groups)
    plan = Plan(_config(features_path=path))
    for index in range(3):
        assert plan.condition(index) in {text for group in groups for text in group}
        _can_be_written(plan.prompt(index))
    again = path.with_name("again")
    again.write_text(json.dumps({str(number): group for number, group in enumerate(groups)}), encoding="utf-8")
    assert read_features(again) == groups


def _vocabulary(path: Path) -> None:
    words = read_vocabulary(path)
    assert words
    assert len({word.casefold() for word in words}) == len(words)
    plan = Plan(_config(vocabulary_path=path, template="{word1}"))
    drawn = [plan.prompt(index) for index in range(len(words))]
    assert sorted(prompt.selected_words["word1"] for prompt in drawn) == sorted(words), "each once before any twice"
    for prompt in drawn:
        _can_be_written(prompt)
    again = path.with_name("again")
    again.write_text("\n".join(words), encoding="utf-8")
    assert read_vocabulary(again) == words


def _prompts(path: Path) -> None:
    config = _config()
    checked = check_lines(path, config)
    items = asyncio.run(_read(path, config, checked, 0))
    assert len(items) == checked.prompts > 0
    for position, item in enumerate(items):
        assert item.position == position
        _can_be_written(item)
    middle = checked.prompts // 2
    assert asyncio.run(_read(path, config, checked, middle)) == items[middle:], "resumed, it goes on where it was"


async def _read(path: Path, config: Config, checked: Checked, position: int) -> list[Prompt]:
    return [item async for item in read_items(path, config, checked, position, source="jsonl")]


def _nearly(base: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(
        json_texts(mutated_value(base)),
        json_texts(mutated_value(base, most=1)),
        mutated(json.dumps(base, ensure_ascii=False, indent=1).encode()),
        json_texts(any_values()),
        any_bytes(),
    )


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
_any_texts = st.one_of(_texts, _texts, _texts, st.sampled_from(("", " ", "\0", "a\ud800", "\udc00\ud800", "\u2028")))
_turn_pairs = st.tuples(_any_texts, _any_texts).map(
    lambda pair: [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
)
_turns = st.lists(_turn_pairs, min_size=1, max_size=4).map(lambda pairs: [turn for pair in pairs for turn in pair])
_groups = st.lists(_any_texts, min_size=1, max_size=4, unique=True)
_words_of_items = st.lists(st.sampled_from(_WORDS.split()), max_size=3)
_items = st.one_of(
    st.fixed_dictionaries({"prompt": _any_texts}, optional={"selected_words": _words_of_items, "id": any_values()}),
    st.builds(
        lambda turns, text: {"messages": [*turns, {"role": "user", "content": text}]}, st.just([]) | _turns, _any_texts
    ),
)
_several = st.lists(st.one_of(_nearly(_TURNS), json_texts(_turns)), min_size=1, max_size=3).map(b"\n".join)
_lines = st.lists(
    st.one_of(*map(_nearly, _ITEMS), *[_items.map(lambda item: json.dumps(item).encode())] * 9), min_size=1, max_size=4
).map(b"\n".join)
_ALL_LINES = b"".join(json.dumps(item).encode() + b"\n" for item in _ITEMS)
_known_lines = st.lists(
    st.sampled_from((*_WORDS.split("\n"), "MOON", "l'e\u0301te\u0301", "star\r", "7up")), max_size=4
).map(lambda each: "\n".join(each).encode())
_word_lines = st.lists(st.text(max_size=8), max_size=6).map(
    lambda each: "\n".join(each).encode("utf-8", "surrogatepass")
)

CONVERSATION = Target(
    st.one_of(_nearly(_TURNS), *[json_texts(_turns)] * 4, _several),
    partial(_checked, check=_conversation),
    json.dumps(_TURNS).encode(),
)
FEATURES = Target(
    st.one_of(
        _nearly(_FEATURES),
        _nearly(_FEATURES["mood"]),
        json_texts(st.dictionaries(_any_texts, _groups, min_size=1, max_size=3)),
        json_texts(_groups),
    ),
    partial(_checked, check=_features),
    json.dumps(_FEATURES).encode(),
)
VOCABULARY = Target(
    st.one_of(mutated(_WORDS.encode()), _word_lines, _known_lines, any_bytes()),
    partial(_checked, check=_vocabulary),
    _WORDS.encode(),
)
PROMPTS = Target(st.one_of(_lines, mutated(_ALL_LINES)), partial(_checked, check=_prompts), _ALL_LINES)
