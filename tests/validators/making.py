"""Completions to judge, and a judge by a few settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncgen.config import Validation
from asyncgen.records import Completion, Prompt, Verdict
from asyncgen.validators import Judge

LOOSE: dict[str, Any] = {"min_words": 1, "min_quality": 0, "max_repetition": 1.0, "require_ending": False}


def completion(text: str, words: Mapping[str, str] | None = None) -> Completion:
    return Completion(Prompt(0, (), selected_words=words or {}), text, 10, 0.1, "stop")


def judged(text: str, words: Mapping[str, str] | None = None, **settings: Any) -> Verdict:
    """The verdict when nothing but ``settings`` speaks against a text."""
    return Judge(Validation.model_validate(LOOSE | settings))(completion(text, words))
