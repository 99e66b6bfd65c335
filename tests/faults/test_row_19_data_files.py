"""Row 19: vocabularies, features and conversations that are not UTF-8, not JSON, empty, doubled or malformed are
refused within a second, before torch, by file, line and byte. A BOM and CRLF line ends are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncgen.errors import DataError
from asyncgen.prompts.files import Shot, read_conversation, read_features, read_vocabulary
from asyncgen.resources import data_file
from tests.faults.conftest import Trials
from tests.programs import ECHO, asyncgen, records, without_torch

CEILING = 10.0
"""Ten times the second that is promised."""
READ: dict[str, Callable[[Path], object]] = {
    "vocabulary": read_vocabulary,
    "features": read_features,
    "conversation": read_conversation,
}


def user(content: Any = "question") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "answer") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


Case = tuple[bytes | str, str]
VOCABULARIES: list[Case] = [
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
    ("moon".encode("utf-16"), "this looks like UTF-16; save the file as UTF-8"),
]
FEATURES: list[Case] = [
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
    (b'["a",\n"\xe9"]', "FILE:2: byte 0xe9 at offset 7 is not UTF-8"),
]
CONVERSATIONS: list[Case] = [
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
    (b'[{"role": "user",\n"content": "\xff"}]', "FILE:2: byte 0xff at offset 30 is not UTF-8"),
]
CASES = [
    *(("vocabulary", *case) for case in VOCABULARIES),
    *(("features", *case) for case in FEATURES),
    *(("conversation", *case) for case in CONVERSATIONS),
]
"""What the file is for, what is in it, what is said."""


def encoded(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    return message.replace(str(path), "FILE")


@pytest.mark.parametrize(("what", "data", "message"), CASES, ids=[f"{each[0]} {at}" for at, each in enumerate(CASES)])
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, what: str, data: bytes | str, message: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(encoded(data))
    assert message in refusal(READ[what], path)


@pytest.mark.parametrize("what", READ)
def test_files_that_cannot_be_read(what: str, tmp_path: Path) -> None:
    assert f"{what} file not found: FILE" in refusal(READ[what], tmp_path / "none")
    assert f"{what} file FILE cannot be read: Is a directory" in refusal(READ[what], tmp_path)
    assert f"{what} file FILE cannot be read: File name too long" in refusal(READ[what], tmp_path / ("x" * 300))


@pytest.mark.timeout(300)
def test_the_command_line_refuses_them_before_torch(tmp_path: Path, trials: Trials) -> None:
    env = without_torch(tmp_path)
    path = tmp_path / "data.txt"
    count = trials(6, 24)
    for what, data, message in CASES[:: len(CASES) // count][:count]:
        path.write_bytes(encoded(data))
        (tmp_path / "c.yaml").write_text(f"num_stories: 3\n{what}_path: data.txt\n")
        done = asyncgen("run", "c.yaml", cwd=tmp_path, env=env, timeout=CEILING)
        assert (done.returncode, done.stdout) == (2, ""), (data, done.stderr)
        assert done.stderr.startswith(f"asyncgen: error: c.yaml:2: {what}_path: ")
        assert message in done.stderr.replace(str(path), "FILE"), data
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("stories*"))


def test_bom_and_crlf_are_accepted(tmp_path: Path) -> None:
    def write(data: bytes) -> Path:
        path = tmp_path / "data.txt"
        path.write_bytes(data)
        return path

    assert read_vocabulary(write(b"\xef\xbb\xbfmoon\r\nstar\r\n\r\n")) == ("moon", "star")
    assert read_features(write(b'\xef\xbb\xbf{"a":\r\n["b"]}\r\n')) == (("b",),)
    turns = b'[{"role": "user", "content": "q"},\r\n{"role": "assistant", "content": "a\\r\\nb"}]\r\n'
    assert read_conversation(write(b"\xef\xbb\xbf" + turns)) == (Shot("q", "a\r\nb"),)


def test_and_change_nothing(tmp_path: Path) -> None:
    """A run from files as another system writes them is the run from files as ours does."""
    names = {
        "vocabulary": "vocabulary.txt",
        "features": "story_features.json",
        "conversation": "example_conversation.txt",
    }
    made = []
    for folder, before, end in ((tmp_path / "plain", b"", b"\n"), (tmp_path / "other", b"\xef\xbb\xbf", b"\r\n")):
        folder.mkdir()
        for name in names.values():
            (folder / name).write_bytes(before + data_file(name).read_bytes().replace(b"\n", end))
        settings = [argument for what, name in names.items() for argument in ("--set", f"{what}_path={name}")]
        settings += ["--set", "record_messages=true", "--num-stories", "20"]
        done = asyncgen("run", *ECHO, *settings, cwd=folder)
        assert done.returncode == 0, done.stderr
        made.append(records(folder / "stories.jsonl"))
    assert made[0] == made[1]
