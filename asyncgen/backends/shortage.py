"""What is done when memory is not to be had: for how long to wait, and whom to give up. Decides, and does nothing.

Memory may lack for a moment, because somebody else's process has it, or for good; or a single prompt needs more than
there is. Which of these it is shows with time only. So a prompt that did not fit even alone is set aside and tried
again, less and less often, while the others go on. It is given up when others did what it could not between its
failures, often enough, and then one that is as long is given up as soon as it fails; or, if none did, after a minute,
and then one in a minute: what lacks memory for an hour has lost a few prompts and not all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf
from typing import Literal

from asyncgen.records import Prompt

__all__ = ["Aside", "Stage", "pause_after"]

SHORTEST, LONGEST = 0.05, 3.2
"""Seconds before something is tried again: twice as long each time."""
TRIES = 7
"""Failures of a prompt, with another's success in between, after which it is given up: 3 s at least."""
MINUTE = 60.0
"""Seconds of failures without another's success after which a prompt is given up, one in as many seconds."""

Stage = Literal["prompt", "step"]
"""What did not fit, or did: computing a prompt (of ``static``: all of a batch), or a token after it."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return float(min(LONGEST, SHORTEST * 2 ** (min(failures, 32) - 1)))


@dataclass(slots=True)
class _Record:
    """What is known of a prompt that did not fit."""

    prompt: Prompt
    stage: Stage
    due: float = 0.0
    since: float = 0.0
    """When it failed first after another's success."""
    attempts: int = 0
    counted: int = 0
    """Failures with another's success in between."""
    others_fit: bool = True


class Aside:
    """Prompts that did not fit alone, by identity. Times are seconds of any one clock that does not jump."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._waiting: set[int] = set()
        self._given_up = -inf
        self._too_long: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, prompt: Prompt) -> bool:
        """Whether it has failed before, so that it is to be tried alone."""
        return id(prompt) in self._records

    def failed(self, prompt: Prompt, now: float, stage: Stage = "prompt") -> bool:
        """Records that ``prompt`` did not fit alone, and sets it aside. Returns whether it is given up instead."""
        record = self._records.setdefault(id(prompt), _Record(prompt, stage))
        record.stage = stage
        record.attempts += 1
        if record.others_fit:
            record.counted += 1
            record.since, record.others_fit = now, False
        length = _length(prompt)
        known = self._too_long is not None and length >= self._too_long
        if record.counted >= TRIES or known:
            self._too_long = min(length, self._too_long or length)
        elif now - max(record.since, self._given_up) > MINUTE:
            self._given_up = now
        else:
            record.due = now + pause_after(record.attempts)
            self._waiting.add(id(prompt))
            return False
        self.finished(prompt)
        return True

    def fitted(self, prompts: Sequence[Prompt], stage: Stage = "prompt") -> None:
        """Records that these, at least one, did fit together."""
        if self._too_long is not None and max(map(_length, prompts)) >= self._too_long:
            self._too_long = None
        if self._records:
            ids = {id(prompt) for prompt in prompts}
            for key, record in self._records.items():
                record.others_fit |= record.stage == stage and bool(ids - {key})

    def finished(self, prompt: Prompt) -> None:
        """Forgets what was known of it: its answer is there, or it was given up."""
        self._records.pop(id(prompt), None)
        self._waiting.discard(id(prompt))

    def due(self, now: float, most: int | None = None) -> tuple[Prompt, ...]:
        """Takes out those that are to be tried again, ``most`` of them, the longest overdue first."""
        ready = sorted((r for i in self._waiting if (r := self._records[i]).due <= now), key=lambda record: record.due)
        prompts = tuple(record.prompt for record in ready[:most])
        self._waiting -= {id(prompt) for prompt in prompts}
        return prompts

    def seconds(self, now: float) -> float:
        """Until the next one is due; 0 if one is. There must be one."""
        return max(0.0, min(self._records[key].due for key in self._waiting) - now)

    def drop(self, ids: AbstractSet[int]) -> list[Prompt]:
        """Takes out those of these ids that are aside."""
        dropped = [self._records[key].prompt for key in self._waiting & ids]
        for prompt in dropped:
            self.finished(prompt)
        return dropped


def _length(prompt: Prompt) -> int:
    """Tokens of prompt and answer."""
    return prompt.prepared.length + prompt.max_new_tokens
