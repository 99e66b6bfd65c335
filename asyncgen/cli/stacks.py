"""Where every thread and every task of a process stands, as text. Needs no file, for which a full disk has no room, and
no lock that is held for longer than a moment; whatever goes wrong is said in its place.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import AsyncGeneratorType, CodeType
from typing import Any, ParamSpec

__all__ = ["tasks", "threads"]

_P = ParamSpec("_P")
_FRAMES, _WAITS = ("cr_frame", "ag_frame", "gi_frame"), ("cr_await", "ag_await", "gi_yieldfrom")
"""What coroutines and generators tell of themselves."""


def _never_raising(function: Callable[_P, str]) -> Callable[_P, str]:
    @wraps(function)
    def text(*arguments: _P.args, **options: _P.kwargs) -> str:
        try:
            return function(*arguments, **options)
        except Exception as error:  # noqa: BLE001  # another thread's frames may be anything
            return f"  (not to be had: {type(error).__name__}: {error})\n"

    return text


@_never_raising
def threads() -> str:
    """The threads but this one, each from its innermost call."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001  # documented, in spite of its name
        if ident == threading.get_ident():
            continue
        lines.append(f"thread {names.get(ident, hex(ident))}:")
        lines += [_line(each.f_code, number) for each, number in traceback.walk_stack(frame)]
    return "\n".join(lines) + "\n"


@_never_raising
def tasks(loop: asyncio.AbstractEventLoop | None) -> str:
    """Where the tasks of the event loop wait, equal ones once; another thread's view, good enough for reading."""
    if loop is None or loop.is_closed():
        return ""
    places = Counter(_awaits(task) for task in asyncio.all_tasks(loop))
    return "".join(f"{count} task{'s' * (count > 1)} at\n{place}\n" for place, count in places.items())


def _awaits(task: asyncio.Task[object]) -> str:
    """Where a task waits, from its outermost coroutine to what that waits for in the end."""
    lines = []
    waits: Any = task.get_coro()
    while waits is not None:
        frame = next((f for name in _FRAMES if (f := getattr(waits, name, None)) is not None), None)
        if frame is not None:
            lines.append(_line(frame.f_code, frame.f_lineno))
        following = next((w for name in _WAITS if (w := getattr(waits, name, None)) is not None), None)
        if following is None and frame is None:  # what ``anext`` gives knows its generator, and does not tell
            following = next((each for each in gc.get_referents(waits) if isinstance(each, AsyncGeneratorType)), None)
        waits = following
    return "\n".join(lines)


def _line(code: CodeType, number: int | None) -> str:
    return f'  File "{code.co_filename}", line {number} in {code.co_name}'
