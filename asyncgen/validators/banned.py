"""Words and phrases that must not occur, and patterns that must or must not match."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import anyio.from_thread

from asyncgen.config import Validation
from asyncgen.errors import ConfigError
from asyncgen.records import Completion
from asyncgen.text_files import read_words
from asyncgen.validators.inflections import Forms, forms_of
from asyncgen.validators.text import parts_of

__all__ = [
    "PATTERN_SECONDS",
    "BannedWords",
    "Patterns",
    "check_banned_word",
    "compile_pattern",
    "load_banned_words",
    "load_patterns",
]

PATTERN_SECONDS = 0.5
"""Processor time that one pattern may take on one text; a sane one takes a fraction of a millisecond."""


def load_banned_words(settings: Validation) -> BannedWords | None:
    """What ``banned_words`` and ``banned_words_path`` say, None if nothing. Raises ConfigError or DataError."""
    for place, entry in enumerate(settings.banned_words):
        check_banned_word(entry, place)
    entries = list(settings.banned_words)
    if settings.banned_words_path is not None:
        entries += read_words(settings.banned_words_path, "banned-word list")
    return BannedWords(entries) if entries else None


def check_banned_word(entry: str, place: int) -> None:
    """Raises ConfigError for an entry, the ``place``-th of ``banned_words``, that could never be found."""
    if not forms_of(entry):
        raise ConfigError(f"validation.banned_words[{place}]: there is no word in {entry!r}")


class BannedWords:
    """Finds words and phrases, as they are or simply inflected, also as a part of a word with a hyphen."""

    def __init__(self, entries: Iterable[str]) -> None:
        # By first part: a text is asked once about all of them, and only what begins there is looked at.
        self._by_first: defaultdict[str, list[tuple[str, Forms]]] = defaultdict(list)
        for forms, entry in {forms_of(entry): entry for entry in entries}.items():
            for first in forms[0]:
                self._by_first[first].append((entry, forms))

    def __call__(self, _completion: Completion, _folded: str, words: Sequence[str]) -> list[str]:
        """The reason against a text of these words, if there is one."""
        parts = parts_of(" ".join(words))
        if self._by_first.keys().isdisjoint(parts):
            return []
        found: dict[str, str] = {}
        for at, part in enumerate(parts):
            for entry, forms in self._by_first.get(part, ()):
                here = parts[at : at + len(forms)]
                if len(here) == len(forms) and all(map(frozenset.__contains__, forms, here)):
                    found.setdefault(entry, " ".join(here))
        return [f"banned words: {', '.join(_shown(*each) for each in found.items())}"] if found else []


def _shown(entry: str, form: str) -> str:
    return entry if form == entry.casefold() else f"{entry} ({form})"


def load_patterns(settings: Validation) -> Patterns | None:
    """``forbid_patterns`` and ``require_patterns``, compiled; None if there are none. Raises ConfigError."""
    if not settings.forbid_patterns and not settings.require_patterns:
        return None
    return Patterns(
        [compile_pattern(pattern, f"forbid_patterns[{k}]") for k, pattern in enumerate(settings.forbid_patterns)],
        [compile_pattern(pattern, f"require_patterns[{k}]") for k, pattern in enumerate(settings.require_patterns)],
    )


def compile_pattern(pattern: str, key: str) -> Any:
    """The pattern, compiled; ``key`` is its place under ``validation``. Raises ConfigError."""
    import regex  # noqa: PLC0415  # takes 25 ms, and most runs have no pattern

    try:
        return regex.compile(pattern)
    except regex.error as error:
        at = "" if error.pos is None else f" at place {error.pos + 1}"
        raise ConfigError(f"validation.{key}: {pattern!r} is not a regular expression: {error.msg}{at}") from error
    except (OverflowError, RecursionError) as error:
        raise ConfigError(f"validation.{key}: {pattern!r} is too large a regular expression: {error}") from error


class Patterns:
    """Searches a text for patterns of the package ``regex``, each for a limited time."""

    def __init__(self, forbid: Sequence[Any], require: Sequence[Any]) -> None:
        self._patterns = [(each, False) for each in forbid] + [(each, True) for each in require]

    def __call__(self, completion: Completion, _folded: str, _words: Sequence[str]) -> list[str]:
        """Everything that patterns say against a text. In a worker thread, cancellation comes between two."""
        reasons = []
        for pattern, wanted in self._patterns:
            _leave_if_cancelled()
            if reason := _search(pattern, completion.text, wanted):
                reasons.append(reason)
        return reasons


def _leave_if_cancelled() -> None:
    with suppress(RuntimeError):  # no worker thread of anyio's
        anyio.from_thread.check_cancelled()


def _search(pattern: Any, text: str, wanted: bool) -> str:
    shown = repr(pattern.pattern)
    began, limit = time.thread_time(), PATTERN_SECONDS
    while True:
        try:
            match = pattern.search(text, timeout=limit, concurrent=True)  # others may run meanwhile
            break
        except TimeoutError:
            # ``regex`` counts the processor time of all threads, those of a model on 64 cores included: only our own
            # tells whether it was the pattern. If it was not, it is given more of theirs.
            limit *= 2
            if time.thread_time() - began >= PATTERN_SECONDS:
                return f"slow pattern: {shown} took more than {PATTERN_SECONDS:g} s of processor time on this text"
    if wanted:
        return "" if match else f"missing pattern: nothing matches {shown}"
    return f"forbidden pattern: {shown} matches {match[0][:60]!r}" if match else ""
