"""What a run came to, as a value and in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asyncgen.metrics import Snapshot, duration

__all__ = ["Outcome", "Report"]

Outcome = Literal["complete", "stopped", "sources ended", "too many rejections"]


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
            first = f"{s.accepted_first / s.first_attempts:.0%}" if s.first_attempts else "none"
            lines.append(f"  quality   {first} of the prompts were accepted at the first attempt")
        if s.reasons:
            lines.append("  refused   " + ", ".join(f"{reason}: {count}" for reason, count in s.reasons.items()))
        lines.append(f"  stories   {self.output_path}")
        if s.rejected:
            lines.append(f"  rejected  {self.rejected_path} ({s.rejected} failed all attempts)")
        return "\n".join(lines)
