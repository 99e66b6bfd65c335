"""A text as words: what counts as one, what counts as the same text, where sentences end.

A *word* is what spaces and punctuation leave of a text, upper and lower case aside; ``ice-cream`` and ``don't`` are
one each.
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b

__all__ = [
    "SENTENCE_ENDS",
    "count_words",
    "fingerprint64",
    "fold",
    "normalise",
    "parts_of",
    "sentences_of",
    "words_of",
]

SENTENCE_ENDS = ".!?…。！？"  # noqa: RUF001  (the full-width ones are meant)
_TYPOGRAPHY = tuple(zip("‘’“”–—…", "''\"\"  .", strict=True))  # noqa: RUF001
_SENTENCE_BREAK = re.compile(rf"[{SENTENCE_ENDS}\n]+")


class _Spaces(dict[int, str]):
    """Table for ``str.translate``: punctuation, symbols, separators and controls become spaces; a hyphen and an
    apostrophe stay, in their plain form.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = " " if unicodedata.category(char)[0] in "PSZC" else char
        return self[code]


_SPACES = _Spaces({ord("-"): "-", 0x2010: "-", 0x2011: "-", ord("'"): "'", 0x2019: "'"})


def fold(text: str) -> str:
    """``text`` in lower case and composed letters, its usual typography in ASCII (where all that follows is faster)."""
    if not text.isascii():
        for char, plain in _TYPOGRAPHY:
            text = text.replace(char, plain)
        text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return text.casefold()


def words_of(folded: str) -> list[str]:
    """The words of a folded text, in its order."""
    clean = folded.translate(_SPACES)
    if "-" not in clean and "'" not in clean:
        return clean.split()
    return [word for raw in clean.split() if (word := raw.strip("-'"))]


def count_words(text: str) -> int:
    """The number of words, as ``word_count`` of a record has it."""
    return len(words_of(fold(text)))


def parts_of(words: str) -> list[str]:
    """What is left of words, with spaces between them, when hyphens and apostrophes are taken apart."""
    return words.replace("-", " ").replace("'", " ").split()


def sentences_of(folded: str) -> list[list[str]]:
    """The words of each sentence; a line end ends one too, and what has no word is none."""
    return [words for part in _SENTENCE_BREAK.split(folded) if (words := words_of(part))]


def normalise(text: str) -> str:
    """``text`` with case, punctuation and spacing aside: equal for two texts that a reader would call the same."""
    return " ".join(parts_of(fold(text).translate(_SPACES)))


def fingerprint64(text: str) -> int:
    """Eight bytes of BLAKE2b of the normalised text: equal texts have equal ones, others practically never."""
    data = normalise(text).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
