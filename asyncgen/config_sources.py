"""What the configuration may say about where prompts come from: the items of ``sources``, one model for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from asyncgen.config_section import FunctionReference, Parameters, Section

__all__ = ["JsonlSource", "PythonSource", "Source", "TemplateSource"]


class _Source(Section):
    """Settings that every kind of source has."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """What records and the dashboard call it (`metadata.source`); null is its kind. No two are called the same."""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Prompts that it gives in each round of all sources."""


class TemplateSource(_Source):
    """Prompts made from the template, the vocabulary and the story features."""

    kind: Literal["template"]
    """`template`."""


class JsonlSource(_Source):
    """Ready prompts from a JSON Lines file: a `prompt` text or a `messages` list on each line."""

    kind: Literal["jsonl"]
    """`jsonl`."""
    path: Path
    """The file."""


class PythonSource(_Source):
    """Prompts from an async generator function of yours, which begins at item `start`."""

    kind: Literal["python"]
    """`python`."""
    function: FunctionReference
    """`module:function`, or `file.py:function` relative to this file: `async def function(start: int, **parameters)`
    yields a prompt's text, or an object like a line of a JSONL source."""
    parameters: Parameters = Field({})
    """Passed to the function by name."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Seconds that one item may take; longer ends the run like a failure of the function, resumable. null
    waits as long as the `watchdog` allows."""


Source = Annotated[TemplateSource | JsonlSource | PythonSource, Field(discriminator="kind")]
