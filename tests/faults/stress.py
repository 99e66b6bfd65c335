"""What a soak does to itself, and the user's code in it: a source and two checks that are slow, raise and hang.

Which records are poisoned is decided by a hash of the item or of the text, so a run that was killed meets the same
poison as one that was left alone; how slow something is, is chance.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path

import anyio

from asyncgen.records import Completion
from tests.faults.tally import Tally

CONTEXT = 4000
"""Words that the echo backend can hold."""
INJECTED = (
    "sessions begun",
    "fsync delayed",
    "write delayed, its two halves apart",
    "clock jumps",
    "check delayed",
    "source delayed",
    "source raised, ending its session",
    "poison: prompt beyond the context",
    "poison: generating fails",
    "poison: async check raises",
    "poison: plain check raises",
    "poison: async check hangs until its timeout",
    "poison: plain check hangs until its timeout",
)
_VARIABLE = "ASYNCGEN_SOAK"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a session is told by the soak, through the environment."""

    tally: str
    """The file of counts."""
    seed: int = 0
    """Of what is chance in this session."""
    disturbed: bool = True
    """Whether disk, checks and clock misbehave; what is poisoned does in any case."""
    raise_after: int | None = None
    """Items after which the source raises."""
    fails: float = 0.0
    """Share of texts in whose place there is an error."""

    def environment(self) -> dict[str, str]:
        """How the session is told."""
        return {_VARIABLE: json.dumps(asdict(self))}


_told = os.environ.get(_VARIABLE)
orders = Orders(**json.loads(_told)) if _told else Orders(tally=os.devnull, disturbed=False)
tally = Tally(Path(orders.tally), INJECTED) if _told else None
chance = random.Random(orders.seed)


def noted(what: str) -> None:
    """Counts one more of ``INJECTED``."""
    if tally is not None:
        tally.add(what)


def share(purpose: str, text: str) -> float:
    """A number in [0, 1) that only its arguments decide."""
    return int.from_bytes(blake2b(f"{purpose} {text}".encode(), digest_size=8).digest()) / 2**64


def pause(usual: float, longest: float) -> float:
    """Seconds to wait: ``usual`` at most, and once in fifty times up to ``longest``."""
    return chance.uniform(0, longest if chance.random() < 0.02 else usual)


async def prompts(start: int, too_long: float) -> AsyncIterator[dict[str, object]]:
    """Prompts without end; a share of them is longer than any context."""
    for position in count(start):
        if position - start == orders.raise_after:
            noted("source raised, ending its session")
            raise RuntimeError("the source fails, on purpose")
        if orders.disturbed and chance.random() < 0.01:
            noted("source delayed")
            await anyio.sleep(pause(0.02, 0.5))
        text = f"Tell the story with the number {position}."
        if share("too long", str(position)) < too_long:
            noted("poison: prompt beyond the context")
            text += " And then?" * CONTEXT
        yield {"prompt": text, "selected_words": ["boat" if position % 2 else "moon"]}


async def slowly(completion: Completion, raises: float, hangs: float, most: float) -> None:
    """An async check: takes up to ``most`` seconds, or raises, or hangs until it is cancelled."""
    poison = share("slowly", completion.text)
    if poison < hangs:
        noted("poison: async check hangs until its timeout")
        await anyio.sleep_forever()
    if poison < hangs + raises:
        noted("poison: async check raises")
        raise RuntimeError("the check fails, on purpose")
    if orders.disturbed:
        noted("check delayed")
        await anyio.sleep(pause(most / 20, most))


def plainly(completion: Completion, raises: float, hangs: float, most: float, hanging: float) -> None:
    """A plain check, in a thread: the same, but it hangs for ``hanging`` seconds, for nothing can cancel it."""
    poison = share("plainly", completion.text)
    if poison < hangs:
        noted("poison: plain check hangs until its timeout")
        time.sleep(hanging)
    elif poison < hangs + raises:
        noted("poison: plain check raises")
        raise RuntimeError("the check fails, on purpose")
    elif orders.disturbed:
        time.sleep(pause(most / 20, most))
