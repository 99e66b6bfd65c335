"""What a run came to, as a value and in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asyncgen.bottleneck import SATURATED, bottleneck
from asyncgen.metrics import Snapshot, duration

__all__ = ["Outcome", "Report"]

LONG_ENOUGH = 5.0
"""Seconds from which it is worth saying what limited a run."""

Outcome = Literal["complete", "stopped", "failed", "sources ended", "too many rejections", "too many failures"]


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended."""

    outcome: Outcome
    snapshot: Snapshot
    output_path: Path
    rejected_path: Path
    notices: tuple[str, ...] = ()
    """Sentences a user should read once: fallbacks, things noted on resume."""

    @property
    def complete(self) -> bool:
        """Whether the goal was reached (without a goal: whether the sources ended)."""
        return self.outcome == "complete"

    def summary(self) -> str:
        """A few lines for a person."""
        s = self.snapshot
        goal = "" if s.goal is None else f" of {s.goal}"
        lines = [f"{self.outcome}: {s.accepted}{goal} stories, {s.new} of them made now in {duration(s.seconds)}"]
        if s.attempts:
            lines.append(
                f"  speed     {s.stories_per_second:.1f} stories/s, {s.tokens_per_second:,.0f} tokens/s; "
                f"the generator was busy {s.busy:.0%} of the time"
            )
            if s.slots:
                hits = f"; prefix hits {s.prefix_share:.0%}" if s.prefix_hits or s.prefix_misses else ""
                lines.append(f"  engine    {s.slots} slots, on average {s.fill:.0%} of them in use{hits}")
            if s.tries:
                again = f", {s.tried_again} of them again" if s.tried_again else ""
                lines.append(f"  server    {s.tries} requests{again}; {s.prompt_tokens:,} tokens of prompts")
            if limit := _limit(s):
                lines.append(f"  limit     {limit}")
            first = f"{s.first_acceptance:.0%}" if s.first_attempts else "none"
            lines.append(
                f"  accepted  {first} of the prompts at the first attempt, {s.acceptance:.0%} of {s.attempts} attempts"
            )
        if s.reasons:
            now = " (this time)" if s.accepted_before or s.rejected_before else ""
            lines.append("  refused   " + ", ".join(f"{kind} {count}" for kind, count in s.reasons.items()) + now)
        if self.outcome != "complete" and (unwritten := s.depths.get("in order", 0)):
            lines.append(f"  let go    {unwritten} texts that waited for earlier ones; they are made again, the same")
        lines.append(f"  stories   {self.output_path}")
        if s.rejected:
            earlier = f", {s.rejected_before} of them earlier" if s.rejected_before else ""
            lines.append(f"  rejected  {self.rejected_path} ({s.rejected} failed all attempts{earlier})")
        return "\n".join(lines)


def _limit(snapshot: Snapshot) -> str:
    """What kept the generator from its work, if anything did; a short run says nothing about it."""
    if snapshot.busy >= SATURATED or snapshot.seconds < LONG_ENOUGH:
        return ""
    return f"{bottleneck(snapshot)} (the generator waited for prompts {snapshot.starved:.0%} of the time)"
