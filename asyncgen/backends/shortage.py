"""What is done when memory is not to be had: for how long to wait, and whom to give up. Decides, and does nothing.

Memory may lack for a moment, because somebody else's process has it, or for good; or a single prompt needs more than
there is. Which of these it is shows with time only. So a prompt that did not fit even alone is set aside and tried
again, less and less often, while the others go on. It is given up when others were begun between its failures, often
enough, and then one that is as long is given up as soon as it fails; or, if nothing at all fits, after a minute, and
then one at a time: what lacks memory for an hour has lost a few prompts and not all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from asyncgen.records import Prompt

__all__ = ["Aside", "pause_after"]

SHORTEST, LONGEST = 0.05, 3.2
"""Seconds before something is tried again: twice as long each time."""
TRIES = 7
"""Failures of a prompt, with others that were begun in between, after which it is given up: 3 s at least."""
MINUTE = 60.0
"""Seconds in which nothing fits, after which the prompt that has failed is given up."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return float(min(LONGEST, SHORTEST * 2 ** (min(failures, 32) - 1)))


@dataclass(slots=True)
class _Record:
    """What is known of a prompt that did not fit."""

    prompt: Prompt
    due: float
    attempts: int = 0
    counted: int = 0
    """Failures that were its own: since the one before, another prompt was begun."""
    others_fit: bool = True


class Aside:
    """Prompts that did not fit alone, by index. Times are seconds of any one clock that does not jump."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._waiting: set[int] = set()
        self._nothing_fits_since: float | None = None
        self._too_long: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, prompt: Prompt) -> bool:
        """Whether it has failed before, so that it is to be tried alone."""
        return prompt.index in self._records

    def failed(self, prompt: Prompt, now: float) -> bool:
        """Records that ``prompt`` did not fit alone, and sets it aside. Returns whether it is given up instead."""
        if self._nothing_fits_since is None:
            self._nothing_fits_since = now
        record = self._records.setdefault(prompt.index, _Record(prompt, now))
        record.attempts += 1
        record.counted += record.others_fit
        record.others_fit = False
        length = _length(prompt)
        known = self._too_long is not None and length >= self._too_long
        if record.counted >= TRIES or known:
            self._too_long = min(length, self._too_long or length)
        elif now - self._nothing_fits_since > MINUTE:
            self._nothing_fits_since = now
        else:
            record.due = now + pause_after(record.attempts)
            self._waiting.add(prompt.index)
            return False
        self.finished(prompt)
        return True

    def begun(self, prompts: Sequence[Prompt]) -> None:
        """Records that these fitted, at least one."""
        self._nothing_fits_since = None
        if self._too_long is not None and max(map(_length, prompts)) >= self._too_long:
            self._too_long = None
        if self._records:
            indices = {prompt.index for prompt in prompts}
            for index, record in self._records.items():
                record.others_fit |= bool(indices - {index})

    def finished(self, prompt: Prompt) -> None:
        """Forgets what was known of it: its answer is there, or it was given up."""
        self._records.pop(prompt.index, None)
        self._waiting.discard(prompt.index)

    def due(self, now: float, most: int | None = None) -> tuple[Prompt, ...]:
        """Takes out those that are to be tried again, ``most`` of them, the longest overdue first."""
        ready = sorted((r for i in self._waiting if (r := self._records[i]).due <= now), key=lambda record: record.due)
        prompts = tuple(record.prompt for record in ready[:most])
        self._waiting -= {prompt.index for prompt in prompts}
        return prompts

    def seconds(self, now: float) -> float:
        """Until the next one is due; 0 if one is. There must be one."""
        return max(0.0, min(self._records[index].due for index in self._waiting) - now)

    def drop(self, indices: AbstractSet[int]) -> list[Prompt]:
        """Takes out those of these indices that are aside."""
        dropped = [self._records[index].prompt for index in self._waiting & indices]
        for prompt in dropped:
            self.finished(prompt)
        return dropped


def _length(prompt: Prompt) -> int:
    """Tokens of prompt and answer."""
    return prompt.prepared.length + prompt.max_new_tokens
