"""Sources: prompts by index, ready prompts from a file, and everything that can be wrong said before a model loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.prompts import Plan, check_inputs, input_files, open_source
from asyncgen.prompts.jsonl import CHUNK, LineCutter
from asyncgen.prompts.templates import DEFAULT_TEMPLATE
from asyncgen.resources import data_file
from asyncgen.text_files import BOM

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def jsonl(path: Path, **settings: Any) -> Config:
    return Config(sources=({"kind": "jsonl", "path": path},), **settings)


def write_lines(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"tell {k}", "id": k}) + "\n" for k in range(count)))
    return path


async def test_the_template_never_ends() -> None:
    config = Config()
    plan = Plan(config)
    async with open_source(config) as source:
        assert await source.take(0, 3) == tuple(plan.prompt(index) for index in range(3))
        assert await source.take(10**6, 2) == (plan.prompt(10**6), plan.prompt(10**6 + 1))
        assert await source.take(5, 0) == ()


async def test_a_prompt_from_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    line = {
        "prompt": "Tell of the moon.",
        "selected_words": ["moon", "ice cream"],
        "additional_condition": "calm",
        "id": 77,
        "prepared": {"anything": None},
    }
    path.write_text(json.dumps(line))
    async with open_source(jsonl(path, seed=4, system_prompt="be kind", generation={"max_new_tokens": 77})) as source:
        (prompt,) = await source.take(0, 8)
    assert prompt.messages == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "Tell of the moon."},
    )
    assert prompt.selected_words == {"word1": "moon", "word2": "ice cream"}
    assert (prompt.additional_condition, prompt.shots, prompt.source) == ("calm", (), "jsonl")
    assert (prompt.index, prompt.attempt, prompt.seed) == (0, 1, seeds.sampling_seed(4, 0, 1))
    assert prompt.max_new_tokens == 77


async def test_messages_are_sent_as_they_are(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"messages": turns, "selected_words": {"hero": "owl"}}))
    async with open_source(jsonl(path, system_prompt="not added")) as source:
        (prompt,) = await source.take(0, 1)
    assert list(prompt.messages) == turns
    assert prompt.selected_words == {"hero": "owl"}


@pytest.mark.parametrize("start", [0, 1, 17, 4999, 5000, 6000])
async def test_any_start(tmp_path: Path, start: int) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", 5000)
    texts = []
    async with open_source(jsonl(path)) as source:
        at = start
        while prompts := await source.take(at, 64):
            assert [prompt.index for prompt in prompts] == list(range(at, at + len(prompts)))
            texts += [prompt.messages[-1]["content"] for prompt in prompts]
            at += len(prompts)
    assert texts == [f"tell {k}" for k in range(start, 5000)]


async def test_fewer_than_asked_for_at_the_end_and_going_back(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", 10)
    async with open_source(jsonl(path)) as source:
        assert len(await source.take(0, 8)) == 8
        assert [prompt.index for prompt in await source.take(8, 8)] == [8, 9]
        assert await source.take(10, 8) == ()
        assert [prompt.index for prompt in await source.take(3, 2)] == [3, 4]
        assert [prompt.index for prompt in await source.take(5, 2)] == [5, 6]


async def test_bom_crlf_blank_end_and_no_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n \r\n\n')
    async with open_source(jsonl(path)) as source:
        assert [prompt.messages[0]["content"] for prompt in await source.take(0, 9)] == ["a", "b"]
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}')
    assert check_inputs(jsonl(path))[0].prompts == 2


GOOD = '{"prompt": "x"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "FILE: there is no prompt in it; it must hold one JSON object a line"),
        (b"\n\n", "FILE: there is no prompt in it"),
        (GOOD + "\n" + GOOD, "FILE:2: a blank line; blank lines may only stand at the end"),
        ("\n" + GOOD, "FILE:1: a blank line"),
        (GOOD + "{oops}\n", "FILE:2: column 2: not JSON: Expecting property name enclosed in double quotes, found"),
        (GOOD * 3 + '{"prompt": "x"} x\n', "FILE:4: column 17: not JSON: Extra data"),
        (GOOD + '{"prompt": "x', "FILE:2: column 12: not JSON: Unterminated string"),
        (GOOD + "7\n", 'FILE:2: found a number; a line is an object with "prompt" or "messages"'),
        (GOOD + "[]\n", "FILE:2: found a list"),
        (GOOD + '{"text": "x"}\n', 'FILE:2: found the keys "text"; exactly one of "prompt" and "messages" is allowed'),
        (GOOD + "{}\n", "FILE:2: found the keys none; exactly one"),
        ('{"prompt": "x", "messages": []}', 'FILE:1: found the keys "prompt", "messages"; exactly one'),
        ('{"prompt": "x", "prompt": "y"}', 'FILE:1: the key "prompt" stands twice in one object'),
        ('{"prompt": 3}', "FILE:1: prompt is a number; it must be a text"),
        ('{"prompt": " "}', "FILE:1: prompt is an empty text; it must be a text"),
        ('{"prompt": null}', "FILE:1: prompt is null"),
        ('{"prompt": "\\ud800"}', "FILE:1: prompt: character U+D800 at place 1 is not text"),
        ('{"messages": []}', "FILE:1: messages is an empty list; it must be a list of turns that ends with a user's"),
        ('{"messages": "x"}', 'FILE:1: messages is the text "x"; it must be a list'),
        ('{"messages": ["x"]}', 'FILE:1: messages, turn 1: found the text "x"; a turn is'),
        ('{"messages": [{"role": "tool", "content": "x"}]}', 'turn 1: found role "tool"; allowed are system, user'),
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}',
            "the last turn is the assistant's; it must be a user",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
            "FILE:1: messages, turn 2: found role system; it is allowed as the first turn only",
        ),
        ('{"prompt": "x", "selected_words": "moon"}', 'FILE:1: selected_words is the text "moon"; it must be a list'),
        ('{"prompt": "x", "selected_words": ["moon", 3]}', "FILE:1: selected_words, word2: found a number"),
        ('{"prompt": "x", "selected_words": {"hero": "--"}}', 'selected_words, hero: found the text "--"; it must be'),
        ('{"prompt": "x", "selected_words": ["a\\tb"]}', 'word1: found the text "a\\tb"; control characters'),
        ('{"prompt": "x", "additional_condition": 3}', "FILE:1: additional_condition is a number; it must be a text"),
        (GOOD.encode() + b'{"prompt": "\xff"}\n', "FILE:2: byte 0xff at offset 28 is not UTF-8 (invalid start byte)"),
        (b"\xef\xbb\xbf" + GOOD.encode() + b'{"prompt": "\xff"}', "FILE:2: byte 0xff at offset 31 is not UTF-8"),
        (GOOD + "[" * 100_000, "FILE:2: the JSON is nested too deeply"),
        (GOOD + '{"prompt": "x", "n": ' + "9" * 5000 + "}", "FILE:2: Exceeds the limit"),
    ],
)
async def test_refusals_come_when_the_source_is_opened(tmp_path: Path, data: bytes | str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError) as caught:
        async with open_source(jsonl(path)):
            raise AssertionError("nothing may be handed out")
    assert message in str(caught.value).replace(str(path), "FILE")
    with pytest.raises(DataError) as again:
        check_inputs(jsonl(path))
    assert str(again.value) == str(caught.value)


async def test_the_last_line_is_checked_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", 20_000)
    with path.open("a") as file:
        file.write('{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:20001: prompt is a number"):
        check_inputs(jsonl(path))


async def test_a_file_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", 3)
    async with open_source(jsonl(path)) as source:
        path.write_text(GOOD + "oops\n")
        for _ in range(2):
            with pytest.raises(DataError, match=r"prompts\.jsonl:1: changed while the run goes on, in this line or"):
                await source.take(0, 3)
    async with open_source(jsonl(write_lines(path, 3))) as source:
        path.write_text(GOOD)
        with pytest.raises(DataError, match=r"prompts\.jsonl:1: changed while the run goes on"):
            await source.take(0, 3)


@pytest.mark.parametrize("end", ["", "\n"])
async def test_an_edit_in_place_is_noticed_where_it_is_and_lines_at_the_end_may_be_added(
    tmp_path: Path, end: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Tell of snail {k}."}) for k in range(10_000)]
    path.write_text("\n".join(lines) + end)
    async with open_source(jsonl(path)) as source:
        with path.open("r+b") as file:
            file.seek(5 * CHUNK)
            file.write(b"9")
            file.seek(0, os.SEEK_END)
            file.write(b"\nmore")
        taken = 0
        with pytest.raises(DataError, match=rf"changed while the run goes on.*from {5 * CHUNK} on"):
            while prompts := await source.take(taken, 100):
                assert prompts[0].messages[-1]["content"] == f"Tell of snail {taken}."
                taken += len(prompts)
    assert taken == b"\n".join(line.encode() for line in lines)[: 5 * CHUNK].count(b"\n")
    path.write_text("\n".join(lines) + end)
    async with open_source(jsonl(path)) as source:
        with path.open("a") as file:
            file.write("\nmore\n" if not end else "more\n")
        taken = 0
        while prompts := await source.take(taken, 100):
            taken += len(prompts)
    assert taken == len(lines)


async def test_a_long_check_can_be_cancelled(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", 100_000)
    with anyio.move_on_after(0.05) as scope:
        async with open_source(jsonl(path)):
            raise AssertionError("the check takes a second")
    assert scope.cancelled_caught


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts file not found: .*none"):
        check_inputs(jsonl(tmp_path / "none"))
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        check_inputs(jsonl(tmp_path))
    with pytest.raises(DataError, match=r"system_prompt: character U\+0000"):
        check_inputs(jsonl(write_lines(tmp_path / "prompts.jsonl", 1), system_prompt="\x00"))


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(GOOD.encode() + b'{"prompt": "' + b"x" * (17 << 20))
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: a line of more than 16777216 bytes"):
        check_inputs(jsonl(path))


line_bytes = st.binary(min_size=1).filter(lambda b: b.strip() and b"\n" not in b and not b.startswith(BOM))


@given(st.lists(line_bytes), st.data())
def test_lines_do_not_depend_on_chunks(lines: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(lines)
    whole = LineCutter(Path("x"))
    expected = whole.feed(text) + whole.feed(b"")
    cutter, got, at = LineCutter(Path("x")), [], 0
    while at < len(text):
        size = data.draw(st.integers(1, 7))
        got += cutter.feed(text[at : at + size])
        at += size
    got += cutter.feed(b"")
    assert got == expected
    assert [line.number for line in got] == list(range(1, len(lines) + 1))
    assert all(text[line.offset :].startswith(line.data) for line in got)


def test_what_check_inputs_counts(tmp_path: Path) -> None:
    (found,) = check_inputs(Config())
    assert (found.kind, found.prompts) == ("template", None)
    assert found.words > 3
    assert found.conditions > 3
    assert found.examples >= 8
    assert check_inputs(jsonl(write_lines(tmp_path / "p.jsonl", 7)))[0].prompts == 7


def test_input_files(tmp_path: Path) -> None:
    packaged = {
        "template": DEFAULT_TEMPLATE,
        "vocabulary": data_file("vocabulary.txt"),
        "features": data_file("story_features.json"),
        "conversation": data_file("example_conversation.txt"),
    }
    assert input_files(Config()) == packaged
    assert input_files(Config(sources=({"kind": "template"},))) == packaged
    assert "conversation" not in input_files(Config(use_k_shot=False))
    assert input_files(Config(template="Tell.\n", k_shot_count=0)) == {"template": "Tell."}
    (tmp_path / "t.txt").write_text("Tell of {word1}.\n")
    own = Config(template=str(tmp_path / "t.txt"), vocabulary_path=tmp_path / "v.txt", k_shot_count=0)
    assert input_files(own) == {"template": "Tell of {word1}.", "vocabulary": tmp_path / "v.txt"}
    assert input_files(jsonl(tmp_path / "p.jsonl")) == {"sources[0]": tmp_path / "p.jsonl"}
