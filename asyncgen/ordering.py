"""Verdicts arrive in any order; decisions leave in index order, each index exactly once.

Pure: no I/O, no clock, no tasks. The pipeline's commit stage acts on what ``Ordering`` decides.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Literal

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.records import Prompt, Rejection, Story, Verdict

__all__ = ["HOPELESS_AFTER", "Decisions", "Ordering", "next_attempt"]

HOPELESS_AFTER = 200
"""Decided indices over which ``max_rejection_rate`` is taken."""

BROKEN_SHARE = 0.5
"""Share of these above which errors, as against reasons, end the run: a model or a machine is broken."""
ENOUGH = 20
"""Decided indices of which that can be told at the end of a run that has no more."""

FIRST_LOOK = 25
WORRYING = 20
"""So many rejected of the last ``FIRST_LOOK`` decided indices are worth saying, once."""

_Outcome = Literal["accepted", "rejected", "failed"]

REPEAT = "repeat: equal to an earlier story of this run"


@dataclass(frozen=True, slots=True)
class Decisions:
    """What ``Ordering.add`` made of the verdicts so far."""

    records: tuple[Story | Rejection, ...]
    """Indices decided now, in index order, following without a gap on those before."""
    repeats: tuple[Verdict, ...]
    """Verdicts that were accepted, and are refused because their text repeats an earlier story."""
    retries: tuple[Prompt, ...]
    """The next attempts of those repeats that have one."""
    worrying: bool
    """Many of the last indices were rejected, for the first time."""
    hopeless: bool
    """Too many of the last indices were rejected: write these records and stop."""
    failing: bool
    """So many of the last indices failed with errors that something is broken: write these records and stop."""


def next_attempt(verdict: Verdict, config: Config) -> Prompt | None:
    """The prompt's next attempt after a rejection, or None if it has no more (or another could not differ)."""
    completion = verdict.completion
    if not completion.retryable or completion.prompt.attempt >= config.attempts:
        return None
    return completion.prompt.next_attempt(verdict.reasons, config.seed)


class Ordering:
    """Puts verdicts in index order, finds repeats, and makes the records that go to disk.

    A verdict given to ``add`` is final for its index (accepted, or rejected with no attempt left), except that an
    accepted one whose text was already seen turns into a rejection here, where "already" has a meaning: in index order.
    """

    def __init__(
        self, config: Config, is_new: Callable[[str], bool], *, start: int = 0, accepted: int = 0, rejected: int = 0
    ) -> None:
        self._config = config
        self._is_new = is_new
        self._waiting: dict[int, Verdict] = {}
        self._recent: deque[_Outcome] = deque()
        self._counts: Counter[_Outcome] = Counter()
        self._next = start
        self._hopeless = False
        self._failing = False
        self._worried = False
        self.accepted = accepted
        self.rejected = rejected

    def __len__(self) -> int:
        """Verdicts that wait for a lower index."""
        return len(self._waiting)

    def add(self, verdicts: Iterable[Verdict]) -> Decisions:
        """Takes verdicts in and returns what they decide."""
        for verdict in verdicts:
            self._waiting[verdict.completion.prompt.index] = verdict
        worried = self._worried
        records: list[Story | Rejection] = []
        repeats: list[Verdict] = []
        retries: list[Prompt] = []
        while not (self._hopeless or self._failing) and self._next in self._waiting:
            verdict = self._waiting.pop(self._next)
            if self._repeats(verdict):
                verdict = replace(verdict, reasons=(REPEAT,))
                repeats.append(verdict)
                if retry := next_attempt(verdict, self._config):
                    retries.append(retry)
                    break
            records.append(self._decide(verdict))
        return Decisions(
            tuple(records),
            tuple(repeats),
            tuple(retries),
            worrying=self._worried > worried,
            hopeless=self._hopeless,
            failing=self._failing,
        )

    @property
    def recent(self) -> tuple[int, int]:
        """Rejected ones among the last decided indices, and how many these are."""
        return self._counts["rejected"] + self._counts["failed"], len(self._recent)

    @property
    def broken(self) -> bool:
        """Whether most of the last indices failed with errors, at the end of a run, where they may be few."""
        return len(self._recent) >= ENOUGH and self._counts["failed"] / len(self._recent) > BROKEN_SHARE

    @property
    def stops_at(self) -> int:
        """Rejections among the last ``HOPELESS_AFTER`` indices that make a run hopeless; 0 if none do."""
        least = next(n for n in range(HOPELESS_AFTER + 2) if n / HOPELESS_AFTER > self._config.max_rejection_rate)
        return least if least <= HOPELESS_AFTER else 0

    def summary(self) -> str:
        """How the last decided indices went, in words."""
        rejected, count = self.recent
        return f"{rejected} of the last {count} prompts were rejected"

    def failures(self) -> str:
        """How many of the last decided indices failed with errors, in words."""
        return f"{self._counts['failed']} of the last {len(self._recent)} prompts ended with an error instead of a text"

    def _repeats(self, verdict: Verdict) -> bool:
        validation = self._config.validation
        checked = verdict.accepted and validation.enabled and validation.reject_repeats
        return checked and not self._is_new(verdict.completion.text)

    def _decide(self, verdict: Verdict) -> Story | Rejection:
        accepted = verdict.accepted
        self.accepted += accepted
        self.rejected += not accepted
        self._next += 1
        self._note("accepted" if accepted else "failed" if verdict.completion.finish_reason == "error" else "rejected")
        return self._record(verdict)

    def _note(self, outcome: _Outcome) -> None:
        """Adds an outcome to the last ones, and sees whether these should end the run. One that has what it wants is
        at its end.
        """
        if len(self._recent) == HOPELESS_AFTER:
            self._counts[self._recent.popleft()] -= 1
        self._recent.append(outcome)
        self._counts[outcome] += 1
        if self._config.num_stories is not None and self.accepted >= self._config.num_stories:
            return
        self._worried = self._worried or _rejected_of_late(self._recent) >= WORRYING
        if len(self._recent) == HOPELESS_AFTER:
            self._hopeless = self.recent[0] / HOPELESS_AFTER > self._config.max_rejection_rate
            self._failing = self._counts["failed"] / HOPELESS_AFTER > BROKEN_SHARE

    def _record(self, verdict: Verdict) -> Story | Rejection:
        completion = verdict.completion
        prompt = completion.prompt
        metadata: dict[str, object] = {
            "selected_words": dict(prompt.selected_words),
            "additional_condition": prompt.additional_condition,
            "k_shot_count": len(prompt.shots),
            "index": prompt.index,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "seed": prompt.seed,
            "attempt": prompt.attempt,
            "quality": round(verdict.quality, 4),
            "finish_reason": completion.finish_reason,
            "source": prompt.source,
            "position": prompt.position,
        }
        if self._config.record_messages:
            metadata["messages"] = [dict(message) for message in prompt.messages]
        story = Story(
            story_id=seeds.story_id(self._config.seed, prompt.index),
            prompt_id=seeds.prompt_id(prompt.index),
            content=completion.text,
            word_count=verdict.word_count,
            generation_time=round(completion.seconds, 4),
            tokens_generated=completion.tokens,
            tokens_per_second=round(completion.tokens / completion.seconds, 1) if completion.seconds > 0 else 0.0,
            metadata=metadata,
        )
        if verdict.accepted:
            return story
        return Rejection(
            **{f.name: getattr(story, f.name) for f in fields(Story)}, reasons=(*prompt.history, verdict.reasons)
        )


def _rejected_of_late(recent: deque[_Outcome]) -> int:
    return sum(outcome != "accepted" for outcome in islice(reversed(recent), FIRST_LOOK))
