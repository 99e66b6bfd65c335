"""The checks that every text goes through: length, selected words, ending, repetition, copying. Pure functions.

What is found in a text (``Facts``) is one thing, what speaks against it under some settings (``reasons_of``) another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from asyncgen.config import Validation
from asyncgen.records import Completion
from asyncgen.validators.inflections import forms_of, occurs
from asyncgen.validators.text import SENTENCE_ENDS, fold, parts_of, sentences_of, words_of

__all__ = ["MAX_SENTENCE_REPEATS", "Facts", "look", "reasons_of"]

MAX_SENTENCE_REPEATS = 4
"""How often a sentence of four words or more may stand in a text: a refrain is fine, a loop is not."""
_NGRAM = 4
_CLOSERS = " \t\r\n\"'*_)]}»”’」』）"  # noqa: RUF001
_ENDS = tuple(SENTENCE_ENDS)


@dataclass(slots=True)
class Facts:
    """What the checks and the score look at."""

    count: int
    """Words."""
    missing: list[str]
    """Selected words that do not occur."""
    wanted: int
    """Selected words."""
    unfinished: str
    """Why the text is not at its end; empty if it is."""
    repeated: float
    """Share of the word 4-grams that repeat an earlier one."""
    most_repeats: int
    """How often the most repeated sentence stands there; 0 if hardly anything repeats."""
    shared: float
    """Share of the different word 4-grams that occur in a k-shot answer."""
    copied: tuple[str, ...]
    """The first words in a row that stand in a k-shot answer too."""


def look(completion: Completion, folded: str, words: list[str], copy_words: int) -> Facts:
    """What there is to see in a completion, whose text is ``folded`` and has at least one of ``words``."""
    prompt = completion.prompt
    grams = _ngrams(words, _NGRAM)
    different = set(grams)
    repeats = len(grams) - len(different)
    shared = different & _shot_ngrams(prompt.shots, _NGRAM)
    can_be_copied = copy_words and (shared or copy_words < _NGRAM)
    return Facts(
        count=len(words),
        missing=_missing(prompt.selected_words.values(), words),
        wanted=len(prompt.selected_words),
        unfinished=_unfinished(completion),
        repeated=repeats / len(grams) if grams else 0.0,
        most_repeats=_most_repeats(folded) if repeats >= MAX_SENTENCE_REPEATS else 0,
        shared=len(shared) / len(different) if different else 0.0,
        copied=_copied(words, prompt.shots, copy_words) if can_be_copied else (),
    )


def reasons_of(facts: Facts, settings: Validation) -> list[str]:
    """Everything that speaks against such a text."""
    count = facts.count
    reasons = []
    if count < settings.min_words:
        reasons.append(f"too short: {count} words, at least {settings.min_words}")
    if count > settings.max_words:
        reasons.append(f"too long: {count} words, at most {settings.max_words}")
    if settings.require_words and facts.missing:
        reasons.append(f"missing words: {', '.join(facts.missing)}")
    if settings.require_ending and facts.unfinished:
        reasons.append(f"unfinished: {facts.unfinished}")
    if facts.repeated > settings.max_repetition:
        limit = settings.max_repetition
        reasons.append(f"repetition: {facts.repeated:.0%} of the word {_NGRAM}-grams repeat, at most {limit:.0%}")
    elif settings.max_repetition < 1 and facts.most_repeats > MAX_SENTENCE_REPEATS:
        reasons.append(f"repetition: a sentence stands {facts.most_repeats} times, at most {MAX_SENTENCE_REPEATS}")
    if facts.copied:
        reasons.append(f"copied: {len(facts.copied)} words in a row from an example ({' '.join(facts.copied)})")
    return reasons


def _missing(selected: Iterable[str], words: list[str]) -> list[str]:
    """Those of ``selected`` that do not occur, not even as a part of a word with a hyphen or an apostrophe."""
    missing = [word for word in selected if not occurs(forms_of(word), words)]
    if missing:
        parts = parts_of(" ".join(words))
        missing = [word for word in missing if not occurs(forms_of(word), parts)]
    return missing


def _unfinished(completion: Completion) -> str:
    if completion.finish_reason == "length":
        return f"the token limit was reached ({completion.tokens} tokens)"
    text = completion.text.rstrip(_CLOSERS)
    if text.endswith(_ENDS):
        return ""
    return f"the last sentence is not closed, the text ends with {' '.join(text[-60:].split()[-3:])!r}"


def _most_repeats(folded: str) -> int:
    """How often the most repeated sentence or line of four words or more stands there."""
    sentences = Counter(" ".join(words) for words in sentences_of(folded) if len(words) >= _NGRAM)
    return max(sentences.values(), default=0)


def _ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*[words[at:] for at in range(size)], strict=False))


@lru_cache(maxsize=256)
def _shot_ngrams(shots: tuple[str, ...], size: int) -> frozenset[tuple[str, ...]]:
    """The n-grams of all ``shots``, made once for all prompts that share them."""
    return frozenset(gram for shot in shots for gram in _ngrams(words_of(fold(shot)), size))


def _copied(words: list[str], shots: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The first ``size`` words in a row that stand in one of ``shots`` too."""
    theirs = _shot_ngrams(shots, size)
    return next((gram for gram in _ngrams(words, size) if gram in theirs), ())
