from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen import seeds
from asyncgen.output.lines import Foreign, Garbled, Place, decode, encode, kinds_of, place_of
from asyncgen.records import Rejection, Story
from tests.output.making import records, take

BRIEF = ["story_id", "prompt_id", "content", "word_count", "generation_time", "tokens_generated", "tokens_per_second"]
STORY, REJECTION = (next(each for each in take(records(), 20) if isinstance(each, kind)) for kind in (Story, Rejection))
HARD = ("a\ud800b", "\ud83c\udf19", "a\u2028b\x85c", "")
texts = st.text(st.characters(), max_size=40)  # surrogates included


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(encode(STORY)) | changes).encode() + b"\n"


def test_a_story_has_exactly_the_keys_of_the_brief() -> None:
    assert list(json.loads(encode(STORY))) == [*BRIEF, "metadata"]


def test_a_rejection_adds_its_reasons() -> None:
    assert list(json.loads(encode(REJECTION))) == [*BRIEF, "metadata", "reasons"]
    assert isinstance(REJECTION, Rejection)
    assert kinds_of(REJECTION) == ["too short", "word missing", "too short"]


@pytest.mark.parametrize("made", take(records(), 12))
def test_there_and_back(made: Story | Rejection) -> None:
    assert decode(encode(made)) == made


@given(texts, texts, st.dictionaries(texts, texts, max_size=3))
def test_any_text_is_one_line_of_utf8_for_every_reader(content: str, word: str, more: dict[str, str]) -> None:
    line = encode(replace(STORY, content=content, metadata={**STORY.metadata, "word": word, "more": more}))
    text = line.decode()
    assert text.endswith("\n")
    assert text.splitlines() == text.split("\n")[:-1] == [text[:-1]]
    assert len(io.StringIO(text, newline=None).readlines()) == 1
    whole = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert decode(line).content == whole
    assert not any("\ud800" <= character <= "\udfff" for character in whole)


def test_what_other_readers_break_at_is_escaped() -> None:
    assert b"a\\u2028b\\u2029c\\u0085d" in encode(replace(STORY, content="a\u2028b\u2029c\x85d"))


def test_a_mapping_of_any_kind_is_an_object() -> None:
    frozen = MappingProxyType({**STORY.metadata, "selected_words": MappingProxyType({"word1": "moon"})})
    assert encode(replace(STORY, metadata=frozen)) == encode(STORY)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(replace(STORY, generation_time=number))
    with pytest.raises(Garbled):
        decode(encode(STORY).replace(b"0.25", repr(number).replace("inf", "Infinity").replace("nan", "NaN").encode()))


def test_what_has_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode(replace(STORY, metadata={"index": object()}))


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"\0\0\0\n", b'{"story_id": "sto', b"\xff\n", encode(STORY)[:-9], b"[" * 9999]
)
def test_what_is_not_json_is_garbled(line: bytes) -> None:
    with pytest.raises(Garbled):
        decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b"[]\n",
        b"7\n",
        b'{"text": "somebody else\'s"}\n',
        changed(word_count="4"),
        changed(word_count=True),
        changed(content=None),
        changed(metadata=[]),
        changed(extra=1),
        changed(reasons="short"),
        changed(reasons=[["short", 1]]),
    ],
)
def test_what_is_json_and_no_record_is_foreign(line: bytes) -> None:
    with pytest.raises(Foreign):
        decode(line)


@pytest.mark.parametrize("name", ["a\ud800", "\x1b[2J", "x" * 10_000, "a, b", ""])
def test_what_is_foreign_is_told_in_few_characters_that_are_harmless(name: str) -> None:
    refused: list[str] = []
    for line in (changed(**{name: 1}), changed(**{f"{name}{each}": 1 for each in range(2000)})):
        with pytest.raises(Foreign) as caught:
            decode(line)
        refused.append(str(caught.value))
    for wrong in (replace(STORY, prompt_id=name), replace(STORY, story_id=name)):
        with pytest.raises(Foreign) as caught:
            place_of(wrong, 0)
        refused.append(str(caught.value))
    for message in refused:
        message.encode()
        assert len(message) < 1000
        assert message.isprintable()


def test_a_place_is_what_the_line_says() -> None:
    for index, made in enumerate(take(records(), 9)):
        place = place_of(made, 0)
        assert place.index == index
        assert place.accepted + place.rejected == index + 1
    assert place_of(STORY).accepted == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_id": "prompt_000099"},
        {"story_id": seeds.story_id(1, 0)},
        {"metadata": {}},
        {"metadata": {"index": 0, "accepted": 2, "rejected": 0}},
        {"metadata": {"index": True, "accepted": 2, "rejected": 0}},
        {"metadata": {"index": -1, "accepted": 0, "rejected": 0}},
        {"metadata": {"index": 0.0, "accepted": 1, "rejected": 0}},
    ],
)
def test_a_record_that_contradicts_itself_is_foreign(changes: dict[str, Any]) -> None:
    with pytest.raises(Foreign):
        place_of(replace(STORY, **changes), 0)


def test_places_compare_by_value() -> None:
    assert Place(1, 1, 1) == Place(index=1, accepted=1, rejected=1)


def test_a_strict_reader_reads_it() -> None:
    """The one under ``datasets.load_dataset("json")``."""
    reader = pytest.importorskip("pyarrow.json")
    made = [replace(STORY, content=text) for text in HARD]
    table = reader.read_json(io.BytesIO(b"".join(map(encode, made))))
    assert table.column("content").to_pylist() == ["a\ufffdb", "\U0001f319", "a\u2028b\x85c", ""]
