"""Text that comes from files: strict UTF-8, strict JSON, lists of words, and errors that name file, line and byte.

A BOM at the start and CRLF line ends are accepted. Knows nothing about what the files mean.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncgen.errors import DataError
from asyncgen.paths import exists, is_dir, is_file

__all__ = [
    "BOM",
    "check_regular",
    "check_text",
    "decode",
    "found",
    "json_errors",
    "read_text",
    "read_words",
    "refuse_duplicates",
]

BOM = b"\xef\xbb\xbf"
_JOINERS = "-' \N{RIGHT SINGLE QUOTATION MARK}"
_UNFIT = re.compile("[\x00\ud800-\udfff]")


def read_text(path: Path, what: str, *, hint: str | None = None) -> str:
    """The text of ``path`` with plain line feeds; ``what`` names its role in errors, ``hint`` helps if it is missing.

    Raises DataError if it cannot be read or is not UTF-8.
    """
    check_regular(path, what)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{what} file not found: {path}", hint=hint) from error
    except OSError as error:
        raise DataError(f"{what} file {path} cannot be read: {error.strerror or error}", hint=hint) from error
    return decode(data.removeprefix(BOM), str(path), offset=len(BOM) * data.startswith(BOM)).replace("\r\n", "\n")


def read_words(path: Path, what: str) -> tuple[str, ...]:
    """The words of ``path``, one a line, in its order; ``what`` names its role in errors.

    A word consists of letters (with their marks) of any script, and between letters single hyphens, apostrophes and
    spaces. Spaces around it and blank lines are not part of anything. A word that stands twice, upper and lower case
    aside, is an error that names both lines.
    """
    words: list[str] = []
    lines: dict[str, int] = {}
    for number, raw in enumerate(read_text(path, what).split("\n"), 1):
        word = unicodedata.normalize("NFC", raw.strip(" \t"))
        if not word:
            continue
        _check_word(word, f"{path}:{number}")
        first = lines.setdefault(word.casefold(), number)
        if first != number:
            raise DataError(f"{path}:{number}: {word!r} stands in line {first} already; each word may stand once")
        words.append(word)
    if not words:
        raise DataError(f"{path}: the {what} is empty; it must hold one word a line")
    return tuple(words)


def _check_word(word: str, place: str) -> None:
    allowed = "a word has letters, and between them single hyphens, apostrophes and spaces"
    after_letter = False
    for at, char in enumerate(word, 1):
        is_letter = char.isalpha() or unicodedata.category(char)[0] == "M"
        if not is_letter and char not in _JOINERS:
            raise DataError(f"{place}: {word!r} has {_name(char)} at place {at}; {allowed}")
        if not is_letter and not after_letter:
            raise DataError(f"{place}: {word!r} has {_name(char)} without a letter before it at place {at}; {allowed}")
        after_letter = is_letter
    if not after_letter:
        raise DataError(f"{place}: {word!r} ends with {_name(word[-1])}; {allowed}")


def _name(char: str) -> str:
    name = unicodedata.name(char, "a control character" if unicodedata.category(char) == "Cc" else "no name")
    return f"U+{ord(char):04X} ({name.lower()})"


def check_regular(path: Path, what: str) -> None:
    """Raises DataError for what cannot be read twice, or never ends: a pipe, a device."""
    if exists(path) and not is_file(path) and not is_dir(path):
        raise DataError(
            f"{what} file {path} is not a regular file", hint="pipes and devices cannot be read again on resume"
        )


def decode(data: bytes, where: str, *, line: int = 1, offset: int = 0) -> str:
    """``data`` as strict UTF-8; it begins in line ``line`` (from 1) at byte ``offset`` (from 0) of file ``where``."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = error.start
        hint = "save the file as UTF-8"
        if offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = f"this looks like UTF-16; {hint}"
        raise DataError(
            f"{where}:{line + data.count(10, 0, at)}: byte 0x{data[at]:02x} at offset {offset + at} is not UTF-8 "
            f"({error.reason}); the file must be UTF-8",
            hint=hint,
        ) from error


def check_text(text: str, where: str) -> str:
    """``text`` itself if it can be written and tokenised; DataError for NUL and unpaired surrogates."""
    if match := _UNFIT.search(text):
        raise DataError(f"{where}: character U+{ord(match.group()):04X} at place {match.start() + 1} is not text")
    return text


@contextmanager
def json_errors(where: str, line: int | None = None) -> Iterator[None]:
    """Turns what a JSON parser raises into a DataError: syntax (with line and column, and what stands there),
    duplicate keys, nesting too deep to parse, and integers beyond Python's limit of digits.

    The text is file ``where`` as a whole, or its line ``line`` (from 1).
    """
    place = where if line is None else f"{where}:{line}"
    try:
        yield
    except json.JSONDecodeError as error:
        at = json.dumps(error.doc[error.pos : error.pos + 20]) if error.pos < len(error.doc) else "the end"
        row = (line or 1) + error.lineno - 1
        raise DataError(f"{where}:{row}: column {error.colno}: not JSON: {error.msg}, found {at}") from error
    except RecursionError as error:
        raise DataError(f"{place}: the JSON is nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}") from error


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object hook for ``json``: a key that stands twice is an error, not a silent choice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {json.dumps(key)} stands twice in one object; each may stand once")
            seen.add(key)
    return value


def found(value: object) -> str:
    """``value`` in the words of JSON, short enough for a message."""
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, str):
        return f"the text {json.dumps(value[:40])}" if value.strip() else "an empty text"
    return "null" if value is None else names.get(type(value), type(value).__name__)
