"""Completions to judge, a judge by a few settings, and checks of a user's in real files."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncgen.config import Config, Validation
from asyncgen.functions import find_function
from asyncgen.records import Completion, Prompt, Rejection, Verdict
from asyncgen.validators import Judge
from tests.flows import Record, config_for

LOOSE: dict[str, Any] = {"min_words": 1, "min_quality": 0, "max_repetition": 1.0, "require_ending": False}


def completion(text: str, words: Mapping[str, str] | None = None) -> Completion:
    return Completion(Prompt(0, (), selected_words=words or {}), text, 10, 0.1, "stop")


def judged(text: str, words: Mapping[str, str] | None = None, **settings: Any) -> Verdict:
    """The verdict when nothing but ``settings`` speaks against a text."""
    return Judge(Validation.model_validate(LOOSE | settings))(completion(text, words))


def checks(folder: Path, code: str) -> tuple[Path, ModuleType]:
    """A file with such code in it, and the module that it is once it is loaded."""
    path = folder / "checks.py"
    path.write_text(f"import anyio, threading, time\n{code}")
    return path, sys.modules[find_function(f"{path}:check", "here").__module__]


def asking(path: Path, *, each: dict[str, Any] | None = None, **changes: object) -> Config:
    """A run on ``echo`` that asks ``check`` of a file."""
    validation: dict[str, Any] = {"functions": [{"function": f"{path}:check", **(each or {})}]}
    settings: dict[str, object] = {"num_stories": None, "max_attempts": 1, "validation": validation}
    return config_for(**(settings | changes))


def refused(found: Sequence[Record]) -> dict[int, str]:
    return {record.index: record.reasons[-1][0] for record in found if isinstance(record, Rejection)}


def join_checks() -> None:
    """Waits for calls that were left behind and may end now."""
    for thread in threading.enumerate():
        if thread.name.startswith("asyncgen validator"):
            thread.join(20)
