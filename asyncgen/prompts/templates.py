"""The prompt's template: bare placeholders, parsed once, rendered by joining texts.

Placeholders are ``{word1}``, ``{word2}`` ... (numbered from 1 without a gap) and ``{additional_condition}``; ``{{`` and
``}}`` stand for braces. Anything else that ``str.format`` would understand (attributes, indices, conversions, format
specs, positional fields) is refused when the template is read, and ``str.format`` itself is never called, so a value
with braces is only a text. Knows nothing about vocabularies or messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from string import Formatter

from asyncgen.errors import DataError
from asyncgen.text_files import check_text, read_text

__all__ = ["CONDITION", "DEFAULT_TEMPLATE", "Template", "load_template", "parse_template"]

CONDITION = "additional_condition"
DEFAULT_TEMPLATE = """\
Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old
containing words {word1} {word2} {word3}

{additional_condition}

keep story coherent and gramatically correct"""
"""The brief's, to the letter."""

_WORD = re.compile(r"word[1-9][0-9]{0,3}", re.ASCII)
_ALLOWED = "allowed are {word1}, {word2} ... and {additional_condition}"
_BRACES = "write {{ and }} for braces in the text"
_Part = tuple[str, str | None]
"""A literal text and the placeholder that follows it, as ``string.Formatter().parse`` gives them."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template that has passed all checks."""

    text: str
    """As written, line breaks at the end apart."""
    words: tuple[str, ...]
    """The word placeholders in it, ``("word1", "word2", "word3")``; empty if there are none."""
    has_condition: bool
    """Whether ``{additional_condition}`` is in it."""
    full: tuple[_Part, ...]
    """What ``render`` joins if there is a condition ..."""
    bare: tuple[_Part, ...]
    """... and if there is none."""

    def render(self, words: Mapping[str, str], condition: str = "") -> str:
        """The prompt: every placeholder replaced by its value, which is not looked into.

        An empty condition leaves no hole: where line breaks before and after it would meet as more than two, there
        are two, and at either end of the text none. A word missing in ``words`` is a KeyError.
        """
        values = {**words, CONDITION: condition}
        parts = self.full if condition else self.bare
        return "".join([literal if name is None else literal + values[name] for literal, name in parts])


def load_template(value: str | None) -> Template:
    """The template that a configuration names: the brief's for None, ``value`` itself if it contains a line break or
    a brace, else the UTF-8 file at that path. Raises DataError naming file and line.
    """
    if value is None:
        return parse_template(DEFAULT_TEMPLATE)
    if "\n" in value or "{" in value:
        return parse_template(value)
    if not value.strip():
        raise DataError("template: found an empty text, expected a template or the path of a file")
    hint = "a template's text contains a placeholder or a line break; anything else is taken for a file"
    return parse_template(read_text(Path(value), "template", hint=hint), where=value)


def parse_template(text: str, where: str = "template") -> Template:
    """Checks ``text`` and takes it apart. Line breaks at its end are dropped: files and YAML blocks add them.

    Raises DataError naming ``where`` and the line for whatever is not a bare, known placeholder, for word numbers
    with a gap, and for a template without any text.
    """
    text = text.replace("\r\n", "\n").rstrip("\n")
    if not text.strip():
        raise DataError(f"{where}: the template is empty; it must contain a text")
    check_text(text, where)
    parts = tuple(_parse(text, where))
    names = {name for _, name in parts if name is not None}
    words = _word_names(names - {CONDITION}, where)
    return Template(text, words, CONDITION in names, parts, tuple(_parse(_without_condition(text), where)))


def _parse(text: str, where: str) -> Iterator[_Part]:
    """The parts of ``text``, each checked. A placeholder must stand there just as its bare name is written: that
    finds even an empty format spec, which ``Formatter.parse`` hides.
    """
    at, line = 0, 1
    fields = iter(Formatter().parse(text))
    while True:
        try:
            literal, name, spec, conversion = next(fields)
        except StopIteration:
            return
        except ValueError as error:
            raise DataError(f"{where}, line {line} or after: {error}", hint=_BRACES) from error
        at += len(literal) + literal.count("{") + literal.count("}")
        line += literal.count("\n")
        if name is not None:
            _check_name(name, text, f"{where}, line {line}")
            if spec or conversion or not text.startswith(f"{{{name}}}", at):
                raise DataError(
                    f"{where}, line {line}: {{{name}}} has more than a name in it; allowed is the bare name"
                )
            at += len(name) + 2
        yield literal, name


def _check_name(name: str, text: str, place: str) -> None:
    if name == CONDITION or _WORD.fullmatch(name):
        return
    if not name:
        raise DataError(f"{place}: an empty placeholder; {_ALLOWED}", hint=_BRACES)
    if not name.isidentifier():
        raise DataError(f"{place}: {{{name[:40]}}} is not a bare name; {_ALLOWED}", hint=_BRACES)
    used = re.findall(r"\{(word[1-9][0-9]{0,3})\}", text)
    close = get_close_matches(name.lower(), [CONDITION, "word1", "word2", "word3", *used], n=1)
    meant = f"did you mean {{{close[0]}}}? " if close else ""
    raise DataError(f"{place}: unknown placeholder {{{name[:40]}}}; {meant}{_ALLOWED}")


def _word_names(names: set[str], where: str) -> tuple[str, ...]:
    """``word1`` to the last one of ``names``; refuses gaps."""
    last = max((int(name.removeprefix("word")) for name in names), default=0)
    wanted = tuple(f"word{k}" for k in range(1, last + 1))
    missing = [name for name in wanted if name not in names]
    if missing:
        shown = ", ".join(f"{{{name}}}" for name in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise DataError(
            f"{where}: {{word{last}}} is used but {shown} is missing; words are numbered from 1 without a gap"
        )
    return wanted


def _without_condition(text: str) -> str:
    """The template's text for an empty condition, the line breaks around its places closed up. Escaped braces are
    matched first, so that ``{{additional_condition}}`` stays what it is.
    """

    def close_up(match: re.Match[str]) -> str:
        found = match.group()
        if CONDITION not in found:
            return found
        at_an_end = match.start() == 0 or match.end() == len(text)
        return "" if at_an_end else "\n" * min(found.count("\n"), 2)

    return re.sub(r"\{\{|\}\}|\n*(?:\{additional_condition\}\n*)+", close_up, text)
