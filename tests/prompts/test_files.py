"""Data files: what is accepted. What is refused, and how: tests/faults/test_row_19_data_files.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncgen.errors import DataError
from asyncgen.prompts.files import Shot, read_conversation, read_features, read_vocabulary
from asyncgen.prompts.templates import load_template
from asyncgen.resources import data_file
from asyncgen.validators import normalise

Write = Callable[[bytes | str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes | str) -> Path:
        path = tmp_path / "data.txt"
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path

    return write


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    return message.replace(str(path), "FILE")


def test_a_vocabulary(write: Write) -> None:
    words = read_vocabulary(write("moon\nice cream\n  teddy-bear \n\nwon't\nGröße\nकहानी\nl’été\n\n"))  # noqa: RUF001
    assert words == ("moon", "ice cream", "teddy-bear", "won't", "Größe", "कहानी", "l’été")  # noqa: RUF001


def test_composed_and_decomposed_letters_are_one_word(write: Write) -> None:
    assert read_vocabulary(write("e\u0301clair")) == ("\u00e9clair",)
    assert "'\u00e9t\u00e9' stands in line 1 already" in refusal(
        read_vocabulary, write("\u00e9t\u00e9\ne\u0301te\u0301")
    )


def test_features(write: Write) -> None:
    assert read_features(write('{"mood": ["sad", "glad"], "end": ["sad"]}')) == (("sad", "glad"), ("sad",))
    assert read_features(write('["sad", "glad"]')) == (("sad", "glad"),)


def user(content: Any = "question") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "answer") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_one_conversation_or_several(write: Write) -> None:
    turns = [user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    expected = (Shot("q1", "a1"), Shot("q2", "a2"))
    assert read_conversation(write(json.dumps(turns))) == expected
    assert read_conversation(write(json.dumps(turns[:2]) + "\n\n" + json.dumps(turns[2:], indent=2) + "\n")) == expected


def test_the_packaged_conversation() -> None:
    shots = read_conversation(data_file("example_conversation.txt"))
    assert len(shots) >= 8
    conditions = {text for group in read_features(data_file("story_features.json")) for text in group}
    vocabulary = set(read_vocabulary(data_file("vocabulary.txt")))
    seen: dict[tuple[str, ...], int] = {}
    for number, shot in enumerate(shots):
        story = normalise(shot.answer).split()
        words = shot.question.split("\n")[1].removeprefix("containing words ").split(" ")
        condition = shot.question.split("\n")[3]
        filled = {f"word{k}": word for k, word in enumerate(words, 1)}
        assert load_template(None).render(filled, condition) == shot.question
        assert len(words) == 3
        assert set(words) <= set(story) & vocabulary
        assert condition in conditions
        assert 70 <= len(shot.answer.split()) <= 130
        for gram in zip(*[story[at:] for at in range(8)], strict=False):
            assert seen.setdefault(gram, number) == number, f"examples {seen[gram]} and {number} share {gram}"
    assert len({shot.answer.split()[0] for shot in shots}) == len(shots)
