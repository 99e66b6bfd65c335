"""Banned words and patterns: what is found, what is left alone, and that no pattern hangs a run."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.config import Validation
from asyncgen.errors import ConfigError, DataError
from asyncgen.validators import Judge, inflections
from asyncgen.validators.banned import _search
from tests.validators.making import judged

WORDS = st.sampled_from(
    [
        "moon",
        "puddle",
        "boot",
        "frog",
        "lantern",
        "owl",
        "kite",
        "cloud",
        "soup",
        "spoon",
        "warm",
        "hop",
        "dance",
        "leaf",
    ]
)


@pytest.mark.parametrize(
    ("banned", "text", "shown"),
    [
        ("gun", "He had a gun.", "gun"),
        ("Gun", "GUNS!", "Gun (guns)"),
        ("gun", "a gun-shaped stick", "gun"),
        ("kill", "It killed the mood", "kill (killed)"),
        ("kill", "the “kill”", "kill"),
        ("shut up", "Shut-up, said the cat", "shut up"),
        ("shut up", "“Shut\nup!”", "shut up"),
        ("shut up", "He shuts up the shop", "shut up (shuts up)"),
        ("don't", "I don\N{RIGHT SINGLE QUOTATION MARK}t know", "don't (don t)"),
        ("e\u0301clair", "An \u00c9clair", "e\u0301clair (\u00e9clair)"),
    ],
)
def test_what_is_found(banned: str, text: str, shown: str) -> None:
    assert judged(text, banned_words=[banned]).reasons == (f"banned words: {shown}",)


@pytest.mark.parametrize(
    ("banned", "text"),
    [
        ("gun", "It had begun."),
        ("kill", "a skill"),
        ("shut up", "Shut the door. Look up."),
        ("butt", "bread and butter"),
    ],
)
def test_what_is_left_alone(banned: str, text: str) -> None:
    assert judged(text, banned_words=[banned]).accepted


@given(st.lists(WORDS, min_size=1, max_size=30), st.sets(WORDS, min_size=1, max_size=5))
def test_a_text_is_refused_exactly_when_a_form_stands_in_it(text: list[str], banned: set[str]) -> None:
    found = judged(" ".join(text).capitalize() + ".", banned_words=sorted(banned))
    expected = {word for word in banned if not inflections(word).isdisjoint(text)}
    assert found.accepted == (not expected)
    assert all(word in found.reasons[0] for word in expected)


@given(st.lists(WORDS, min_size=2, max_size=4), st.lists(WORDS, max_size=20), st.lists(WORDS, max_size=20))
def test_a_phrase_is_found_wherever_it_stands(phrase: list[str], before: list[str], after: list[str]) -> None:
    text = ", ".join([*before, *phrase, *after])
    assert not judged(text, banned_words=[" ".join(phrase)]).accepted
    assert judged(" and ".join([*before, *phrase, *after]), banned_words=[" ".join(phrase)]).accepted


def test_more_of_them_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "banned.txt"
    path.write_bytes(b"\xef\xbb\xbfgun\r\n\r\nshut up\r\n")
    found = judged("Shut up. A knife and a gun.", banned_words=["knife"], banned_words_path=path)
    assert found.reasons == ("banned words: shut up, knife, gun",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "the banned-word list is empty"),
        ("gun\nGun\n", "FILE:2: 'Gun' stands in line 1 already"),
        ("gun\nx!\n", "FILE:2: 'x!' has U\\+0021"),
        (None, "banned-word list file not found: FILE"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, data: str | None, message: str) -> None:
    path = tmp_path / "banned.txt"
    if data is not None:
        path.write_text(data)
    with pytest.raises(DataError, match=message.replace("FILE", str(path))):
        Judge(Validation(banned_words_path=path))
    assert Judge(Validation(enabled=False, banned_words_path=path)), "switched off, nothing is read"


def test_a_banned_word_has_a_word_in_it() -> None:
    with pytest.raises(ConfigError, match=r"^validation\.banned_words\[1\]: there is no word in '!!'$"):
        Judge(Validation(banned_words=("gun", "!!")))


def test_patterns_speak_of_what_they_found() -> None:
    found = judged(
        "Once upon a time. THE END", forbid_patterns=["(?i)the end", r"\p{Lu}{5}"], require_patterns=["upon", r"\d+"]
    )
    assert found.reasons == (
        "forbidden pattern: '(?i)the end' matches 'THE END'",
        r"missing pattern: nothing matches '\\d+'",
    )
    assert judged("Once upon", forbid_patterns=["once"]).accepted, "case counts unless the pattern says otherwise"


def test_a_pattern_is_not_blamed_for_the_time_of_other_threads() -> None:
    """``regex`` counts the processor time of the whole process: with hashing threads beside it, its limit is reached
    early, and the pattern, which needs about a tenth of it, is given the rest.
    """
    pattern = regex.compile("(?:a|aa)+$")
    text = next("a" * size + "b" for size in range(20, 60) if thread_seconds(pattern, "a" * size + "b") > 0.06)
    done = threading.Event()
    data = bytes(1 << 20)

    def burn() -> None:
        while not done.is_set():
            hashlib.sha256(data)  # gives the interpreter's lock away

    threads = [threading.Thread(target=burn) for _ in range(16)]
    try:
        for thread in threads:
            thread.start()
        assert _search(pattern, text, wanted=False) == ""
    finally:
        done.set()
        for thread in threads:
            thread.join()


def thread_seconds(pattern: regex.Pattern[str], text: str) -> float:
    began = time.thread_time()
    pattern.search(text)
    return time.thread_time() - began


def test_a_catastrophic_pattern_is_a_rejection() -> None:
    text = "a" * 5000 + "b"
    for found in (judged(text, forbid_patterns=["(a|aa)+$"]), judged(text, require_patterns=["(a|aa)+$"])):
        assert found.reasons == ("slow pattern: '(a|aa)+$' took more than 0.5 s of processor time on this text",)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(moon", r"'\(moon' is not a regular expression: missing \) at place 6"),
        ("moo*n[z-a]", "bad character range at place 10"),
        (r"\p{Foo}", "unknown property at place 8"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^validation\.forbid_patterns\[1\]: .*" + message):
        Judge(Validation(forbid_patterns=("fine", pattern)))
