"""The soak from its first session to its verdicts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from asyncgen.output import verify
from asyncgen.validators import normalise
from benchmarks.soak.content import Content, content_of, first_difference
from benchmarks.soak.plan import Place, Scale
from benchmarks.soak.samples import Growth
from benchmarks.soak.sessions import Sessions, Unexpected

__all__ = ["Result", "Verdict", "soak"]

MOST_MORE_DESCRIPTORS = 0.0
MOST_MORE_THREADS = 3.0
"""Each plain check that is under way has a thread of its own, so their number wanders."""
_LAST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that was asked."""

    asked: str
    found: str
    passed: bool


@dataclass(slots=True)
class Result:
    """What became of a soak."""

    injected: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    measured: dict[str, object] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all was as it should be."""
        return bool(self.verdicts) and all(each.passed for each in self.verdicts)

    def ask(self, asked: str, found: object, *, passed: bool) -> None:
        """Adds a verdict."""
        self.verdicts.append(Verdict(asked, str(found), passed))

    def as_json(self) -> dict[str, object]:
        """For the record."""
        return asdict(self) | {"passed": self.passed}


def soak(folder: Path, scale: Scale, seed: int, say: Callable[[str], object]) -> Result:
    """Soaks in ``folder``; ``say`` is told what happens."""
    result = Result()
    chance = random.Random(seed)
    sessions = Sessions(Place(folder / "soaked", scale), chance, say)
    alone = Sessions(Place(folder / "alone", scale, disturbed=False), chance, say)
    try:
        held, goal = _under_faults(sessions, scale, say)
        say(f"the same {goal} stories by a run that is left alone")
        began = time.monotonic()
        alone.finish(goal, 0, _LAST_SECONDS + scale.seconds)
        result.measured |= {"seconds alone": round(time.monotonic() - began, 1), "long session": asdict(held)}
    except Unexpected as error:
        result.ask("every session ends as it was told to", error, passed=False)
        return result
    finally:
        poison = sessions.place.tally.counts()
        result.injected = dict(sorted(sessions.endings.items())) | poison
    count = poison["sessions begun"]
    result.ask("every session ends as it was told to", f"{count} did that came to begin", passed=True)
    _judge_content(result, sessions.place, alone.place, goal)
    _judge_growth(result, held, scale.most_growth)
    odd = sorted(sessions.odd_files | alone.odd_files)
    result.ask("no file is left behind", ", ".join(odd) or "none", passed=not odd)
    return result


def _under_faults(sessions: Sessions, scale: Scale, say: Callable[[str], object]) -> tuple[Growth, int]:
    """All that is disturbed; what the long session held, and the goal that was reached."""
    began = time.monotonic()
    sessions.disturb(began + scale.seconds / 3)
    say(f"one session for {scale.seconds / 3:.0f} s, which is looked at")
    held = sessions.leave_alone(scale.seconds / 3)
    sessions.disturb(began + scale.seconds)
    made = sessions.made()
    goal = made + round(scale.longest * 8 / scale.pace)
    say(f"{made} stories are on disk: the goal is {goal}, with {scale.kills_at_the_end} more kills")
    sessions.finish(goal, scale.kills_at_the_end, _LAST_SECONDS)
    return held, goal


def _judge_content(result: Result, soaked: Place, alone: Place, goal: int) -> None:
    contents: list[Content] = []
    for name, place in (("soaked", soaked), ("left alone", alone)):
        try:
            content = content_of(place.stories, place.rejected)
        except ValueError as error:
            result.ask(f"{name}: each index once, in order", error, passed=False)
            return
        contents.append(content)
        indices = content.stories + content.rejected
        result.ask(f"{name}: each index once, in order", f"{indices} indices, {content.attempts} attempts", passed=True)
        result.ask(f"{name}: exactly N stories", f"{content.stories} of {goal}", passed=content.stories == goal)
        report = verify(place.stories, key=normalise)
        result.ask(f"{name}: verify", "sound" if report.ok else report.text(), passed=report.ok)
    one, other = contents
    result.measured |= {"soaked": asdict(one), "left alone": asdict(other)}
    for what, left, right in (
        ("stories", one.stories_sha256, other.stories_sha256),
        ("rejected", one.rejected_sha256, other.rejected_sha256),
    ):
        found = left if left == right else first_difference(getattr(soaked, what), getattr(alone, what))
        result.ask(f"{what}: the same SHA-256 without timings", found, passed=left == right)


def _judge_growth(result: Result, held: Growth, most: int) -> None:
    def asked() -> Iterator[tuple[str, str, bool]]:
        mib = 2**20
        yield (
            f"memory grows by {most / mib:.0f} MiB at most",
            f"{held.rss / mib:+.2f} MiB, from {held.rss_then / mib:.1f} MiB, in {held.samples} samples",
            held.rss <= most,
        )
        yield (
            "open descriptors do not grow",
            f"{held.descriptors:+.0f}, {held.most_descriptors} at most",
            held.descriptors <= MOST_MORE_DESCRIPTORS,
        )
        yield (
            f"threads do not grow (by more than {MOST_MORE_THREADS:.0f})",
            f"{held.threads:+.0f}, {held.most_threads} at most",
            held.threads <= MOST_MORE_THREADS,
        )

    for text, found, passed in asked():
        result.ask(f"long session: {text}", found, passed=passed)
