"""Readability: signals by hand, limits off by default, and that typical stories pass what adults' prose does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.config import Validation
from asyncgen.errors import ConfigError, DataError
from asyncgen.resources import data_file
from asyncgen.text_files import read_words
from asyncgen.validators import Judge
from asyncgen.validators.readability import Signals, grade_of, load_readability
from asyncgen.validators.text import fold, words_of
from tests.programs import environment
from tests.validators.making import completion, judged

TURNS = json.loads(data_file("example_conversation.txt").read_text(encoding="utf-8"))
STORIES = [turn["content"] for turn in TURNS[1::2]]
ADULT = "The committee concluded its deliberations regarding municipal infrastructure, notwithstanding disagreement."


def measured(text: str, words: dict[str, str] | None = None) -> Signals:
    measure = load_readability(Validation.model_validate({"readability": {"min_known_words": 0}}))
    assert measure is not None
    return measure.measure(completion(text, words), fold(text), words_of(fold(text)))


def test_signals_of_a_small_text() -> None:
    found = measured("The cat sat. A happy caterpillar sat on it too!\n\nOh…")
    assert (found.longest, found.mean_length, found.mean_syllables) == (7, 3.7, 1.36)  # 11 words, cat-er-pil-lar is 4
    assert found.grade == round(0.39 * 11 / 3 + 11.8 * 15 / 11 - 15.59, 1)
    assert (found.known, found.unknown) == (1.0, ())


def test_reasons() -> None:
    limits: dict[str, Any] = {
        "max_sentence_words": 8,
        "max_mean_sentence_words": 6,
        "max_mean_syllables": 1.5,
        "max_grade": 4,
        "min_known_words": 0.9,
    }
    found = judged(ADULT, readability=limits)
    assert found.reasons == (
        "hard to read: a sentence of 10 words, at most 8",
        "hard to read: 10 words a sentence, at most 6",
        "hard to read: 3.3 syllables a word, at most 1.5",
        "hard to read: grade 27.3, at most 4",
        (
            "hard to read: 20% of the words are known, at least 90% "
            "(not known: committee, concluded, deliberations, regarding, municipal ...)"
        ),
    )
    for name, limit in limits.items():
        assert len(judged(ADULT, readability={name: limit}).reasons) == 1
        assert judged("The cat sat on the mat.", readability={name: limit}).accepted


def test_limits_are_off_by_default_and_then_nothing_is_measured() -> None:
    assert judged(ADULT).accepted
    assert load_readability(Validation()) is None
    assert load_readability(Validation.model_validate({"weights": {"readability": 0.1}})) is not None
    program = "import sys, asyncgen.validators as v; from asyncgen.config import Validation; v.Judge(Validation()); "
    program += "sys.exit('pyphen' in sys.modules or 'regex' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Then Zorbella ran. Zorbella fell, and Zorbella's hat too.", ()),
        ("Zorbella ran.", ("zorbella",)),
        ("“Oh,” said the cat. “Quixotic mice!”", ("quixotic",)),
        ("He didn't see it, she'd gone, they'll come at 7 o'clock", ()),
        ("A quick-footed moon-mouse", ()),
        ("The mice danced, hopped and carried berries", ()),
        ("The municipal moon", ("municipal",)),
    ],
)
def test_known_words(text: str, unknown: tuple[str, ...]) -> None:
    assert measured(text).unknown == unknown


def test_selected_words_are_known() -> None:
    assert measured("Deliberations of a bandersnatch", {"word1": "deliberation", "word2": "bandersnatch"}).known == 1


def test_every_word_of_the_packaged_vocabulary_is_known() -> None:
    known = set(read_words(data_file("known_words.txt"), "known-word list"))
    assert set(read_words(data_file("vocabulary.txt"), "vocabulary")) <= known


@pytest.mark.parametrize("story", STORIES)
def test_typical_stories_are_easy(story: str) -> None:
    found = measured(story)
    assert found.known >= 0.94
    assert found.grade < 4


def test_a_list_of_words_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text("cat\nsit\n")
    settings = {"known_words_path": path, "min_known_words": 0.75}
    assert judged("Cats sat sitting on.", readability=settings).accepted
    assert judged("The cats sit on.", readability=settings).reasons == (
        "hard to read: 50% of the words are known, at least 75% (not known: the, on)",
    )
    path.write_text("cat\ncat\n")
    with pytest.raises(DataError, match=r"known\.txt:2: 'cat' stands in line 1 already"):
        judged("x", readability=settings)


@pytest.mark.parametrize(
    ("language", "meant"),
    [("en_us", "did you mean 'en_US'"), ("en-GB", "did you mean 'en_GB'"), ("xx", "pyphen knows af, af_ZA, ")],
)
def test_a_language_that_pyphen_does_not_know(language: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"readability\.language: found '{language}', .*{meant}"):
        Judge(Validation.model_validate({"readability": {"language": language, "max_grade": 4}}))


@given(st.text(max_size=300), st.lists(st.text(max_size=10), max_size=3))
def test_any_text_is_measured(text: str, selected: list[str]) -> None:
    words = {f"word{k}": word for k, word in enumerate(selected, 1)}
    found = judged(text, words, readability={"min_known_words": 0.5, "max_grade": 4}, weights={"readability": 1})
    assert 0 <= found.quality <= 1


@given(st.integers(1, 500), st.integers(1, 50), st.integers(1, 1500))
def test_longer_sentences_and_words_are_harder(words: int, sentences: int, syllables: int) -> None:
    assert grade_of(words, sentences, syllables) < grade_of(words, sentences, syllables + 1)
    assert grade_of(words, sentences + 1, syllables) < grade_of(words, sentences, syllables)
