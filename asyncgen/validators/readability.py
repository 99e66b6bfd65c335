"""How hard a text is to follow for a small child: signals that say something over many texts, not judgements of one.

- *Sentences* end at a full stop, exclamation mark, question mark, ellipsis or line end, so ``Mr. Bear`` ends one.
- *Syllables* are counted as pyphen hyphenates, at least one a word. That is an estimate, and a low one: typesetters do
  not divide ``over`` or ``about``, so those count as one syllable.
- *Grade* is the Flesch-Kincaid grade level, 0.39 x words per sentence + 11.8 x syllables per word - 15.59 (Kincaid,
  Fishburne, Rogers and Chissom 1975: Derivation of new readability formulas for Navy enlisted personnel, Research
  Branch Report 8-75).
- *Known* are the words of a list in any simple form, numbers in digits, the prompt's selected words, and names: words
  that stand capitalised in the middle of a sentence, wherever else they occur.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from asyncgen.config import Config, Validation
from asyncgen.config import Readability as Settings
from asyncgen.errors import ConfigError
from asyncgen.records import Completion
from asyncgen.resources import data_file
from asyncgen.text_files import read_words
from asyncgen.validators.inflections import forms_of
from asyncgen.validators.text import fold, parts_of, sentences_of, words_of

__all__ = ["Readability", "Signals", "grade_of", "known_words_path", "load_readability"]

_NAME = re.compile(r"(?<=[\w,;:] )\w[\w'\N{RIGHT SINGLE QUOTATION MARK}-]*")
_ENDINGS = frozenset(["s", "t", "d", "m", "ll", "re", "ve"])
"""What an apostrophe leaves of is, not, had, am, will, are and have."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Signals:
    """What is measured of one text; rounded, so that a reason never says "4, at most 4"."""

    longest: int
    """Words of the longest sentence."""
    mean_length: float
    """Mean words of a sentence, to one place."""
    mean_syllables: float
    """Mean syllables of a word, to two places."""
    grade: float
    """Flesch-Kincaid grade, to one place."""
    known: float = 1.0
    """Share of known words, to two places; 1.0 if it was not looked for."""
    unknown: tuple[str, ...] = ()
    """Words that are not known, each once."""


def grade_of(words: int, sentences: int, syllables: int) -> float:
    """The Flesch-Kincaid grade level of a text with such counts, each at least one."""
    return 0.39 * words / sentences + 11.8 * syllables / words - 15.59


def known_words_path(config: Config) -> Path | None:
    """The list of known words that ``config`` uses, None if it uses none."""
    settings = config.validation.readability
    if settings.min_known_words is None:
        return None
    return data_file("known_words.txt") if settings.known_words_path is None else settings.known_words_path


def load_readability(settings: Validation) -> Readability | None:
    """The measure that ``settings`` ask for; None if all limits are off and nothing weighs it.

    Raises ConfigError for an unknown language, DataError for a list of words that cannot be used, also if none is.
    """
    limits = settings.readability.model_dump(exclude={"known_words_path", "language"})
    if settings.readability.known_words_path is not None:
        read_words(settings.readability.known_words_path, "known-word list")
    if not settings.weights.readability and all(limit is None for limit in limits.values()):
        return None
    path = known_words_path(Config(validation=settings))
    known = None if path is None else _forms_of_all(read_words(path, "known-word list"))
    return Readability(settings.readability, _syllable_counter(settings.readability.language), known)


class Readability:
    """Measures texts and says what in them is beyond the limits."""

    def __init__(self, settings: Settings, syllables: Callable[[str], int], known: frozenset[str] | None) -> None:
        self._settings = settings
        self._syllables = syllables
        self._known = known

    def measure(self, completion: Completion, folded: str, words: Sequence[str]) -> Signals:
        """The signals of a text with at least one word."""
        lengths = [len(sentence) for sentence in sentences_of(folded)]
        count = sum(lengths)
        syllables = sum(map(self._syllables, words))
        unknown = [] if self._known is None else self._unknown(completion, words)
        return Signals(
            longest=max(lengths),
            mean_length=round(count / len(lengths), 1),
            mean_syllables=round(syllables / len(words), 2),
            grade=round(grade_of(len(words), len(lengths), syllables), 1),
            known=round(1 - len(unknown) / len(words), 2),
            unknown=tuple(dict.fromkeys(unknown)),
        )

    def reasons(self, signals: Signals) -> list[str]:
        """What is beyond the limits."""
        most = self._settings
        found = []
        if most.max_sentence_words is not None and signals.longest > most.max_sentence_words:
            found.append(f"a sentence of {signals.longest} words, at most {most.max_sentence_words}")
        if most.max_mean_sentence_words is not None and signals.mean_length > most.max_mean_sentence_words:
            found.append(f"{signals.mean_length:g} words a sentence, at most {most.max_mean_sentence_words:g}")
        if most.max_mean_syllables is not None and signals.mean_syllables > most.max_mean_syllables:
            found.append(f"{signals.mean_syllables:g} syllables a word, at most {most.max_mean_syllables:g}")
        if most.max_grade is not None and signals.grade > most.max_grade:
            found.append(f"grade {signals.grade:g}, at most {most.max_grade:g}")
        if most.min_known_words is not None and signals.known < most.min_known_words:
            found.append(
                f"{signals.known:.0%} of the words are known, at least {most.min_known_words:.0%} "
                f"(not known: {_list(signals.unknown)})"
            )
        return [f"hard to read: {each}" for each in found]

    def _unknown(self, completion: Completion, words: Iterable[str]) -> list[str]:
        assert self._known is not None
        selected = completion.prompt.selected_words.values()
        here = _names(completion.text).union(*(forms for entry in selected for forms in forms_of(entry)))
        return [word for word in words if not _is_known(word, self._known, here)]


def _is_known(word: str, known: frozenset[str], here: set[str]) -> bool:
    if word in known or word in here:
        return True
    parts = parts_of(word)
    return all(part in known or part in here or part in _ENDINGS or part.isdecimal() for part in parts)


def _names(text: str) -> set[str]:
    """Words, and the parts of words, that stand capitalised in the middle of a sentence; in lower case."""
    names = {match[0] for match in _NAME.finditer(text) if match[0][0].isupper()}
    return {part for name in names for word in words_of(fold(name)) for part in parts_of(word)}


def _forms_of_all(entries: Iterable[str]) -> frozenset[str]:
    """Every form of every part, and each entry itself: ``don't`` is known, though ``don`` is no word."""
    whole = {fold(entry) for entry in entries}
    return frozenset(whole.union(*(forms for entry in whole for forms in forms_of(entry))))


def _list(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (" ..." if len(words) > _SHOWN else "")


def _syllable_counter(language: str) -> Callable[[str], int]:
    import pyphen  # noqa: PLC0415  # reading its dictionary takes a tenth of a second, and most runs need none

    if language not in pyphen.LANGUAGES:
        raise ConfigError(f"validation.readability.language: found {language!r}, {_meant(language, pyphen.LANGUAGES)}")
    # Hyphens a letter from either end are bad typography, but they do divide syllables: a-gain.
    dictionary = pyphen.Pyphen(lang=language, left=1, right=1)

    @lru_cache(maxsize=1 << 16)
    def count(word: str) -> int:
        return sum(1 + len(dictionary.positions(part)) for part in parts_of(word)) or 1

    return count


def _meant(language: str, languages: Iterable[str]) -> str:
    names = sorted(languages)
    wanted = language.replace("-", "_").casefold()
    close = (
        [name for name in names if name.casefold() == wanted]
        or [name for name in names if name.partition("_")[0] == wanted.partition("_")[0]]
        or get_close_matches(language, names, n=1)
    )
    return f"which pyphen does not know; did you mean {close[0]!r}?" if close else f"pyphen knows {', '.join(names)}"
