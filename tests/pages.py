"""Reads Markdown pages: headings, links and fenced examples, with the HTML comments in front of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_COMMENT = re.compile(r"<!-- (file|exit|output|not run)(?:: (.*))? -->")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass
class Example:
    """A fenced block of a page."""

    language: str
    line: int
    """Of the fence, from 1."""
    marks: dict[str, str]
    """What comments directly in front of it say: ``{"file": "run.yaml"}``."""
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass
class Page:
    """A page, taken apart."""

    examples: list[Example] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)


def read_page(path: Path) -> Page:
    page = Page()
    marks: dict[str, str] = {}
    inside: Example | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line.startswith("```"):
                inside = None
            else:
                inside.lines.append(line)
        elif line.startswith("```"):
            inside = Example(line.removeprefix("```").strip(), number, marks)
            page.examples.append(inside)
            marks = {}
        elif mark := _COMMENT.fullmatch(line):
            marks[mark[1]] = mark[2] or ""
        elif line.strip():
            marks = {}
            page.links += _LINK.findall(line)
            if line.startswith("#"):
                page.anchors.add(_anchor(line.lstrip("#").strip(), page.anchors))
    assert inside is None, f"{path}: the example in line {inside.line} does not end"
    return page


def _anchor(heading: str, taken: set[str]) -> str:
    """As GitHub makes it from a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return next(name for name in (plain, *(f"{plain}-{n}" for n in range(1, 99))) if name not in taken)
