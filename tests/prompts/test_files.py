"""Data files (fault 19): what is accepted, and what each refusal says."""

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


def test_bom_and_crlf_are_accepted(write: Write) -> None:
    assert read_vocabulary(write(b"\xef\xbb\xbfmoon\r\nstar\r\n\r\n")) == ("moon", "star")
    assert read_features(write(b'\xef\xbb\xbf{"a":\r\n["b"]}\r\n')) == (("b",),)
    turns = b'[{"role": "user", "content": "q"},\r\n{"role": "assistant", "content": "a\\r\\nb"}]\r\n'
    assert read_conversation(write(b"\xef\xbb\xbf" + turns)) == (Shot("q", "a\r\nb"),)


def test_composed_and_decomposed_letters_are_one_word(write: Write) -> None:
    assert read_vocabulary(write("e\u0301clair")) == ("\u00e9clair",)
    assert "'\u00e9t\u00e9' stands in line 1 already" in refusal(
        read_vocabulary, write("\u00e9t\u00e9\ne\u0301te\u0301")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"moon\nst\xffar\n",
            "FILE:2: byte 0xff at offset 7 is not UTF-8 (invalid start byte); the file must be UTF-8",
        ),
        (b"\xef\xbb\xbfmoon\nst\xffar\n", "FILE:2: byte 0xff at offset 10 is not UTF-8"),
        (b"caf\xe9", "FILE:1: byte 0xe9 at offset 3 is not UTF-8 (unexpected end of data)"),
        ("moon".encode("utf-16"), "FILE:1: byte 0xff at offset 0 is not UTF-8"),
        (b"", "FILE: the vocabulary is empty; it must hold one word a line"),
        (b"\xef\xbb\xbf", "FILE: the vocabulary is empty"),
        (b" \n\r\n\t\n", "FILE: the vocabulary is empty"),
        (b"moon\nstar\n\nMoon\n", "FILE:4: 'Moon' stands in line 1 already; each word may stand once"),
        (b"moon\nst\x00ar", "FILE:2: 'st\\x00ar' has U+0000 (a control character) at place 3; a word has letters"),
        (b"moon\rstar", "FILE:1: 'moon\\rstar' has U+000D (a control character) at place 5"),
        (b"# words", "FILE:1: '# words' has U+0023 (number sign) at place 1"),
        (b"moon, star", "has U+002C (comma) at place 5; a word has letters, and between them single hyphens"),
        (b"{word1}", "has U+007B (left curly bracket) at place 1"),
        (b"7up", "has U+0037 (digit seven) at place 1"),
        (b"ice  cream", "has U+0020 (space) without a letter before it at place 5"),
        (b"-moon", "has U+002D (hyphen-minus) without a letter before it at place 1"),
        (b"moon-", "'moon-' ends with U+002D (hyphen-minus)"),
        ("mo\u200bon".encode(), "has U+200B (zero width space) at place 3"),
    ],
)
def test_vocabulary_refusals(write: Write, data: bytes, message: str) -> None:
    assert message in refusal(read_vocabulary, write(data))


def test_utf16_is_recognised(write: Write) -> None:
    assert "this looks like UTF-16; save the file as UTF-8" in refusal(read_vocabulary, write("moon".encode("utf-16")))


@pytest.mark.parametrize(
    ("read", "what"),
    [(read_vocabulary, "vocabulary"), (read_features, "features"), (read_conversation, "conversation")],
)
def test_files_that_cannot_be_read(read: Callable[[Path], object], what: str, tmp_path: Path) -> None:
    assert f"{what} file not found: FILE" in refusal(read, tmp_path / "none")
    assert f"{what} file FILE cannot be read: Is a directory" in refusal(read, tmp_path)


def test_features(write: Write) -> None:
    assert read_features(write('{"mood": ["sad", "glad"], "end": ["sad"]}')) == (("sad", "glad"), ("sad",))
    assert read_features(write('["sad", "glad"]')) == (("sad", "glad"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "FILE:1: column 1: not JSON: Expecting value, found the end"),
        ('{"a": ["b"],\n "c" ["d"]}', 'FILE:2: column 6: not JSON: Expecting \':\' delimiter, found "[\\"d\\"]}"'),
        ('["a"] x', "FILE:1: column 7: not JSON: Extra data"),
        ("moon", "not JSON: Expecting value, found"),
        ("7", "FILE: found a number; allowed is {group: [text, ...]} or [text, ...]"),
        ("null", "FILE: found null; allowed is"),
        ('"moon"', 'FILE: found the text "moon"; allowed is'),
        ("{}", "FILE: there is no group in it"),
        ("[]", "FILE: the list is empty; it must hold at least one text"),
        ('{"mood": []}', 'FILE: group "mood" is empty; it must hold at least one text'),
        ('{"mood": "sad"}', 'FILE: group "mood": found the text "sad"; allowed is'),
        ('{"mood": {"x": ["y"]}}', 'FILE: group "mood": found an object; allowed is'),
        ('{"mood": ["sad", 3]}', 'FILE: group "mood", item 2: found a number'),
        ('["sad", ["glad"]]', "FILE: the list, item 2: found a list"),
        ('["sad", true]', "FILE: the list, item 2: found true or false"),
        ('["sad", " "]', "FILE: the list, item 2: found an empty text"),
        ('["sad", "glad", "sad"]', "FILE: the list, item 3: the same text as item 1; each may stand once in a group"),
        ('{"a": ["b"], "a": ["c"]}', 'FILE: the key "a" stands twice in one object; each may stand once'),
        ('["\\ud800"]', "FILE: the list, item 1: character U+D800 at place 1 is not text"),
        ("[" * 100_000, "FILE: the JSON is nested too deeply"),
        ("9" * 5000, "FILE: Exceeds the limit"),
    ],
)
def test_features_refusals(write: Write, data: str, message: str) -> None:
    assert message in refusal(read_features, write(data))


def test_not_utf8_features(write: Write) -> None:
    assert "FILE:2: byte 0xe9 at offset 7 is not UTF-8" in refusal(read_features, write(b'["a",\n"\xe9"]'))


def user(content: Any = "question") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "answer") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_one_conversation_or_several(write: Write) -> None:
    turns = [user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    expected = (Shot("q1", "a1"), Shot("q2", "a2"))
    assert read_conversation(write(json.dumps(turns))) == expected
    assert read_conversation(write(json.dumps(turns[:2]) + "\n\n" + json.dumps(turns[2:], indent=2) + "\n")) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "FILE: the conversation is empty; allowed is a JSON array of user and assistant turns"),
        ("\n\n", "FILE: the conversation is empty"),
        ("[]", "FILE:1: an empty array; it must hold at least one user and one assistant turn"),
        ("user: hello", 'FILE:1: column 1: not JSON: Expecting value, found "user: hello"'),
        (f"{json.dumps([user(), assistant()])}\n\n[{{]", "FILE:3: column 3: not JSON: Expecting property name"),
        (f"{json.dumps([user(), assistant()])},", 'FILE:1: column 86: not JSON: Expecting value, found ","'),
        ("\n{}", "FILE:2: found an object; allowed is a JSON array of user and assistant turns"),
        ("[7]", 'FILE:1: turn 1: found a number; a turn is {"role": ..., "content": ...}'),
        ('[{"role": "user"}]', 'FILE:1: turn 1: found the keys "role"; a turn has "role" and "content"'),
        ('[{"role": "user", "content": "x", "name": "y"}]', 'turn 1: found the keys "role", "content", "name"'),
        ('[{"role": "user", "role": "user", "content": "x"}]', 'FILE: the key "role" stands twice in one object'),
        (
            json.dumps([assistant(), user()]),
            "turn 1: found role \"assistant\"; turns alternate, and here 'user' is next",
        ),
        (json.dumps([user(), user()]), "FILE:1: turn 2: found role \"user\"; turns alternate, and here 'assistant'"),
        (json.dumps([user(), assistant(), user()]), "turn 3 is a question without an answer"),
        (json.dumps([{"role": "system", "content": "x"}]), 'found role "system"; allowed are user, assistant'),
        (json.dumps([{"role": "system", "content": "x"}]), "system_prompt"),
        (json.dumps([{"role": 7, "content": "x"}]), "turn 1: found role a number"),
        (json.dumps([{"role": [], "content": "x"}]), "turn 1: found role a list"),
        (json.dumps([user(["parts"])]), "FILE:1: turn 1: content is a list; it must be a text"),
        (json.dumps([user(), assistant(" ")]), "FILE:1: turn 2: content is an empty text; it must be a text"),
        (json.dumps([user("\ud800")]), "FILE:1: turn 1: content: character U+D800 at place 1 is not text"),
    ],
)
def test_conversation_refusals(write: Write, data: str, message: str) -> None:
    assert message in refusal(read_conversation, write(data))


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
