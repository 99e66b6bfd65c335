"""Shared by all tests: asyncio as anyio's backend, and no test may touch the network."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trials import Trials, is_full

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(name, None)  # they change what a person sees; a test that means one sets it
if not Path("/dev/nvidiactl").exists():  # read when triton is imported, which torch does in its own time
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are run by numpy
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # started by nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down when tests run in parallel

ENDING_SECONDS = 5.0
"""Time for a thread that has nothing more to do, on a machine that has much to do."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Trials:
    """Chooses, and notes it for the table of faults."""

    def choose(quick: int, full: int) -> int:
        count = full if is_full() else quick
        record_property("trials", count)
        return count

    return choose


@pytest.fixture
def no_thread_of_ours_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # Worker threads that anyio keeps for the loop's next use end with the loop.
    left = [t for t in set(threading.enumerate()) - before if not t.name.startswith("AnyIO worker")]
    for thread in left:  # one that has handed over its answer has still to end; one that is stuck does not in any time
        thread.join(ENDING_SECONDS)
    assert not [t.name for t in left if t.is_alive()]
