"""Start-ups where memory is short: fewer slots, or a clear error at once, but no failure later.

Memory is taken in three ways: by a tensor of ours that is as large as it must be, by a limit that torch is given, and
by another process, which takes it while the engine is opened or while it runs.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import torch

from asyncgen.backends.memory import is_out_of_memory
from asyncgen.errors import AsyncgenError
from benchmarks.on_gpu.card import Card
from benchmarks.on_gpu.device import alive, free, memory, tidy

__all__ = ["Neighbour", "trials"]

_NEIGHBOUR = """
import sys
import torch
held = torch.empty(1, device="cuda")
print("ready", flush=True)
for line in sys.stdin:
    held = None
    torch.cuda.empty_cache()
    left = torch.cuda.mem_get_info()[0]
    size = max(0, min(int(line), left - (64 << 20)))
    try:
        held = torch.empty(size, dtype=torch.uint8, device="cuda")
    except Exception as error:
        size = -1
    print(size, flush=True)
"""


class Neighbour:
    """Another process that takes memory of the GPU when it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NEIGHBOUR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._heard()

    def take(self, size: int) -> int:
        """Takes ``size`` bytes in place of what it has; gives what it got."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()
        return int(self._heard() or -1)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def _ballast(card: Card, left: int) -> Iterator[None]:
    """Leaves so many bytes."""
    tidy(card.device)
    size = max(0, free(card.device) - left) if card.device.type == "cuda" else 0
    held = None
    while held is None:
        try:
            held = torch.empty(size, dtype=torch.uint8, device=card.device)
        except torch.OutOfMemoryError:  # the driver wants some for itself
            size = max(0, size - 32 * 2**20)
    try:
        yield
    finally:
        del held
        tidy(card.device)


@contextmanager
def _fraction(card: Card, left: int) -> Iterator[None]:
    """Lets torch have so many bytes beyond what it has."""
    tidy(card.device)
    if card.device.type != "cuda":
        yield
        return
    total = torch.cuda.mem_get_info(card.device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (memory(card.device)["reserved"] + left) / total), card.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card.device)
        tidy(card.device)


@contextmanager
def _taken(card: Card, left: int, neighbour: Neighbour | None, delay: float) -> Iterator[None]:
    """Another process takes all but so many bytes, a moment later."""
    tidy(card.device)
    if neighbour is None:
        yield
        return
    wanted = max(0, free(card.device) - left)

    def later() -> None:
        sleep(delay)
        neighbour.take(wanted)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        neighbour.take(0)
        tidy(card.device)


def trials(
    card: Card, slots: int, lefts: dict[str, list[int]], rows: int, neighbour: Neighbour | None
) -> dict[str, Any]:
    """One start-up for each number of bytes that is left, by the way in which it is. Counts those that fail later."""
    found: list[dict[str, Any]] = []
    for way, sizes in lefts.items():
        for number, left in enumerate(sizes):
            if way == "ballast":
                limit = _ballast(card, left)
            elif way == "fraction":
                limit = _fraction(card, left)
            else:
                limit = _taken(card, left, neighbour, 0.3 * number)
            trial: dict[str, Any] = {"way": way, "bytes left": left}
            try:
                with limit:
                    trial |= _tried(card, slots, rows)
            except Exception as error:  # noqa: BLE001  # the next ones go on
                trial |= {"outcome": "the trial failed", "error": f"{type(error).__name__}: {error}"[:300]}
            found.append(trial)
            if not alive(card.device):
                raise RuntimeError(f"the device is lost: {trial}")
    late = [each for each in found if each["outcome"] == "failed later"]
    odd = [each for each in found if each["outcome"] == "unclear error"]
    none = sum(each["outcome"] == "the trial failed" for each in found)
    counts = {"failed later": len(late), "unclear errors": len(odd), "trials that failed": none}
    return {"start-ups": len(found)} | counts | {"trials": found}


def _tried(card: Card, slots: int, rows: int) -> dict[str, Any]:
    try:
        opened = card.open(slots)
    except AsyncgenError as error:
        return {"outcome": "clear error", "error": str(error)[:300]}
    except Exception as error:  # noqa: BLE001  # what the run would have been told
        clear = is_out_of_memory(error)  # the opening of a backend makes a ModelError of it
        return {
            "outcome": "clear error" if clear else "unclear error",
            "error": f"{type(error).__name__}: {error}"[:300],
        }
    about = {
        "slots": opened.backend.limits.rows,
        "fixed shapes": opened.fixed is not None,
        "notices": list(opened.backend.notices),
    }
    try:
        said = card.tokens(opened, card.prepared(opened, range(rows)))
        short = opened.backend.snapshot().out_of_memory
        right = all(map(len, said))
        late = not right or short > 0
        return about | {
            "outcome": "failed later" if late else "ran",
            "out of memory": short,
            "driver bytes": memory(card.device)["driver"],
        }
    except Exception as error:  # noqa: BLE001  # it is counted
        return about | {"outcome": "failed later", "error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        card.close(opened)
