"""The command line with something that hangs: ``ASYNCGEN_HANG=PLACE:KIND:N python -m tests.faults.hanging run ...``
stops for ten minutes

    step    in the model's N-th batch, in a thread that is waited for, as a model's is
    load    while the model is loaded
    fsync   when the output is closed

by a call of KIND: ``python``, or ``c``; or, KIND ``slow``, only for three seconds.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import partial

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

import asyncgen.backends
from asyncgen.backends import echo
from asyncgen.cli import main
from asyncgen.output.writer import Output

KINDS = {"python": partial(time.sleep, 600), "c": partial(ctypes.CDLL(None).sleep, 600), "slow": partial(time.sleep, 3)}


def hang_in_step(kind: str, batch: int) -> None:
    """Lets what ``echo`` does in place of a model hang."""
    begun = 0

    async def hanging() -> None:
        nonlocal begun
        begun += 1
        await checkpoint()
        if begun == batch:
            await anyio.to_thread.run_sync(KINDS[kind], limiter=anyio.CapacityLimiter(1))

    echo.checkpoint = hanging  # type: ignore[attr-defined]


def hang_in_load(kind: str, _: int) -> None:
    """Lets loading hang, whatever model it is."""

    def load(*_: object) -> None:
        KINDS[kind]()

    asyncgen.backends._open_model = load  # type: ignore[assignment]


def hang_in_fsync(kind: str, _: int) -> None:
    """Lets the last commit hang."""
    close = Output.close

    def hanging(fd: object) -> None:  # noqa: ARG001  # the name is that of the real one
        KINDS[kind]()

    async def closing(self: Output, *arguments: object) -> None:
        os.fsync = hanging
        await close(self, *arguments)  # type: ignore[arg-type]

    Output.close = closing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    place, kind, number = os.environ["ASYNCGEN_HANG"].split(":")
    {"step": hang_in_step, "load": hang_in_load, "fsync": hang_in_fsync}[place](kind, int(number))
    main()
