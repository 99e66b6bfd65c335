"""What is fuzzed: inputs, and the property that holds for every one of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from asyncgen.errors import AsyncgenError

__all__ = ["ACCEPTED", "Check", "Target", "asked", "fast_folder", "refused"]

T = TypeVar("T")
ACCEPTED = "accepted"
Check = Callable[[Any, Path], str]
"""Tries one input in an empty folder. Says ``accepted``, or ``refused: ...`` with the reason without what varies;
raises, whatever it is, if the property does not hold.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One surface."""

    inputs: st.SearchStrategy[Any]
    check: Check
    sound: Any
    """An input that is used: nothing would hold for every one of them if all were refused."""


def asked(question: Callable[[], T]) -> T | AsyncgenError:
    """The answer, or the refusal to give one."""
    try:
        return question()
    except AsyncgenError as error:
        return error


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder, in memory where the system has such a place: an input may cost a dozen fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="asyncgen-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def refused(error: AsyncgenError) -> str:
    """A refusal without names, numbers and what was found: what is left is one of not so many sentences."""
    text = error.message.partition("\n")[0]
    text = re.sub(r"(?:/[^\s:,;]+)+", "PATH", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'...'", text)
    text = re.sub(r"0x[0-9a-f]+|U\+[0-9A-F]+|-?\d[\d.e+]*", "0", text)
    return f"refused: {type(error).__name__}: {text[:70]}"
