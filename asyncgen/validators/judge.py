"""Judges a completion: reasons against it and a quality score. The only state is what was read once, and caches.

The kinds of reason, which statistics count, are in ``KINDS``; a completion without usable text has its own error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncgen.config import Validation
from asyncgen.records import Completion, Verdict
from asyncgen.validators.banned import Patterns, load_banned_words, load_patterns
from asyncgen.validators.builtin import look, reasons_of
from asyncgen.validators.quality import Quality, ease_of, low_quality, mean
from asyncgen.validators.readability import load_readability
from asyncgen.validators.text import fold, words_of

__all__ = ["BUILT_IN", "KINDS", "Judge"]

BUILT_IN = "built-in"
"""What figures call the built-in checks together."""

KINDS = (
    "empty",
    "too short",
    "too long",
    "missing words",
    "unfinished",
    "repetition",
    "copied",
    "banned words",
    "forbidden pattern",
    "missing pattern",
    "slow pattern",
    "hard to read",
    "low quality",
)
"""What the reasons of the built-in checks begin with."""

_Check = Callable[[Completion, str, list[str]], list[str]]


class Judge:
    """The built-in checks, ready: files are read and patterns compiled when it is made, texts judged when called.

    Raises ConfigError or DataError for settings that cannot be used.
    """

    def __init__(self, settings: Validation) -> None:
        self._settings = settings
        self._quality = Quality(settings)
        self._checks: tuple[_Check, ...] = ()
        self._readability = None
        if settings.enabled:
            self._checks = tuple(filter(None, (load_banned_words(settings), load_patterns(settings))))
            self._readability = load_readability(settings)
        self._to_come = math.fsum(each.weight for each in settings.functions)

    @property
    def may_take_long(self) -> bool:
        """Whether texts belong into a thread: there are patterns, which may take half a second each."""
        return any(isinstance(check, Patterns) for check in self._checks)

    @property
    def weight(self) -> float:
        """What the built-in checks' score weighs in the whole."""
        return self._quality.weight

    def __call__(self, completion: Completion) -> Verdict:
        """Accepts ``completion``, or gives every reason against it.

        About 0.1 ms for a story of 100 words, patterns aside. A completion with an error, or without a word in it, has
        that one reason and quality 0, also when validation is switched off.
        """
        settings = self._settings
        folded = fold(completion.text)
        words = words_of(folded)
        if completion.finish_reason in ("error", "refused"):
            return Verdict(completion, (completion.error or "error: the backend gave no reason",), 0.0, len(words))
        if not words:
            return Verdict(completion, ("empty: there is no word in the text",), 0.0, 0)
        if not settings.enabled:
            return Verdict(completion, (), 1.0, len(words))
        facts = look(completion, folded, words, settings.copy_words)
        reasons = reasons_of(facts, settings)
        for check in self._checks:
            reasons += check(completion, folded, words)
        ease = 1.0
        if self._readability is not None:
            signals = self._readability.measure(completion, folded, words)
            reasons += self._readability.reasons(signals)
            ease = ease_of(signals.grade)
        score = self._quality.of(facts, ease)
        if self._at_best(score) < settings.min_quality:
            reasons.append(low_quality(score, settings))
        return Verdict(completion, tuple(reasons), score, len(words))

    def _at_best(self, score: float) -> float:
        """What ``score`` can become if the user's functions, which come later, find the text perfect."""
        return mean([(self.weight, score), (self._to_come, 1.0)]) if self._to_come else score
