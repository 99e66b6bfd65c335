"""The end of the process when code of the user's does not end: tasks that swallow their cancellation, stuck threads."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from asyncgen.dashboard import tell, wait_for_terminals

__all__ = ["end_soon", "run_loop"]

_T = TypeVar("_T")

SECONDS = 3.0
"""Time that what is left may take to end."""
LAST_SECONDS = 120.0
"""Time that the interpreter's own end may take."""

_left: list[asyncio.Runner] = []
"""Loops that cannot be closed: closing waits for their tasks."""


def run_loop(work: Callable[[], Awaitable[_T]]) -> _T:
    """As ``anyio.run``, but tasks that do not end when cancelled are left to ``end_soon``: what was made is told."""

    async def main() -> _T:
        return await work()

    runner = asyncio.Runner()
    try:
        return runner.run(main())
    finally:
        if runner.run(_end_tasks()):
            runner.close()
        else:
            _left.append(runner)


async def _end_tasks() -> bool:
    """Cancels whatever still runs, and closes the loop's own threads; whether all of that ended."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    closing = asyncio.ensure_future(loop.shutdown_default_executor())
    _, pending = await asyncio.wait({*tasks, closing}, timeout=SECONDS)
    return not pending


def end_soon(ending: BaseException | None) -> None:
    """Sees to it that the process, which ends now by ``ending``, does so even if threads or tasks of the user's do not.

    The interpreter's own end waits for threads that are no daemons.
    """
    code = 0 if ending is None else 1
    if isinstance(ending, SystemExit):
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    if not _left:
        with suppress(OSError, ValueError, AttributeError):  # no standard error: then there is nobody to tell
            # By a thread of C, for what Python calls when it ends (``__del__``) stops all of Python's.
            faulthandler.dump_traceback_later(LAST_SECONDS, exit=True)
        timer = threading.Timer(SECONDS, _end_now, [code])
        timer.daemon = True
        with suppress(RuntimeError):  # no thread to be had
            timer.start()
        return
    if ending is not None and not isinstance(ending, SystemExit):
        sys.excepthook(type(ending), ending, ending.__traceback__)
    _end_now(code)


def _end_now(code: int) -> None:
    names = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if not names and not _left:
        return  # it is the interpreter's own end, with torch in it, that takes long
    what = f"threads of yours ({', '.join(names[:3])})" if names else "tasks of yours"
    tell(f"asyncgen: left behind: {what} that did not end")
    wait_for_terminals()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # not there, not writable or closed: nobody is listening
            continue
    os._exit(code)
