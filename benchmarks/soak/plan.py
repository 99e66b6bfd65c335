"""The run that is soaked: its configuration and how to start a session of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from benchmarks.environment import ROOT
from tests.faults.stress import CONTEXT, INJECTED, Orders
from tests.faults.tally import Tally

__all__ = ["ENDLESS", "Place", "Scale"]

ENDLESS = 10**9
"""``num_stories`` until it is known how many the time allows."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a soak is. Shares are of records, items or texts; poison is 1 % in all."""

    seconds: float
    """Time under faults; making the plan once more without comes on top."""
    longest: float = 14.0
    """Seconds after which a session is ended, at most."""
    timeout: float = 15.0
    """Of a check. A sound one answers within a thirtieth of it, or a busy machine would decide what is rejected."""
    hangs: float = 0.000_07
    """Texts at which each check hangs. Each holds the window up for ``timeout``, so they are few."""
    raises: float = 0.002
    """Texts at which each check raises."""
    fails: float = 0.002_8
    """Texts in whose place there is an error."""
    too_long: float = 0.009
    """Prompts of the Python source, a third of all, that are beyond the context."""
    pace: float = 0.06
    """Seconds that a batch of eight takes."""
    window: int = 2048
    kills_at_the_end: int = 5
    """Sessions that are killed after the goal is set."""
    look: float = 0.5
    """Seconds between two looks at a session."""
    most_growth: int = 4 * 2**20
    """Bytes by which memory may differ between the first and the last third of the long session: a heap wanders."""

    @property
    def text(self) -> str:
        """In words, for the record."""
        poison = 2 * self.hangs + 2 * self.raises + self.fails + self.too_long / 3
        return (
            f"{self.seconds:.0f} s of echo under SIGKILL, SIGTERM, SIGINT, failing sources, a slow disk, slow checks, "
            f"a jumping clock and {poison:.1%} poison; a third of it in one session"
        )

    def config(self) -> dict[str, object]:
        """The configuration's values."""
        checks = {"raises": self.raises, "hangs": self.hangs, "most": self.timeout / 30}
        place, common = "tests.faults.stress", {"timeout": self.timeout, "concurrency": 32}
        source = {"kind": "python", "name": "mine", "function": f"{place}:prompts"}
        return {
            "output_path": "stories.jsonl",
            "backend": {"kind": "echo", "bad_share": 0.25, "distinct": 2_000_000, "context_length": CONTEXT},
            "generation": {"batch_size": 8},
            "sources": [
                {"kind": "template", "weight": 2},
                {**source, "parameters": {"too_long": self.too_long}},
            ],
            "max_attempts": 2,
            "max_rejection_rate": 1.0,
            "window": self.window,
            "watchdog": 60.0 + 2 * self.timeout,
            "validation": {
                "functions": [
                    {"function": f"{place}:slowly", "parameters": checks, **common},
                    {
                        "function": f"{place}:plainly",
                        "parameters": {**checks, "hanging": 1.5 * self.timeout},
                        **common,
                    },
                ]
            },
        }


@dataclass(slots=True)
class Place:
    """A folder with the output, and a temporary folder beside it that is the sessions' own."""

    folder: Path
    scale: Scale
    disturbed: bool = True
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True)
        self.temporary.mkdir()
        self.tally = Tally(self.folder / "tally", INJECTED)
        (self.output / "soak.yaml").write_text(yaml.safe_dump(self.scale.config()), encoding="utf-8")

    @property
    def output(self) -> Path:
        """The output's folder."""
        return self.folder / "output"

    @property
    def temporary(self) -> Path:
        """``TMPDIR``."""
        return self.folder / "tmp"

    @property
    def stories(self) -> Path:
        """The file of stories."""
        return self.output / "stories.jsonl"

    @property
    def rejected(self) -> Path:
        """The file of rejections."""
        return self.output / "stories.rejected.jsonl"

    @property
    def messages(self) -> Path:
        """What the last session said."""
        return self.folder / "messages"

    def start(self, goal: int, orders: Orders) -> subprocess.Popen[bytes]:
        """Begins a session of ``goal`` stories."""
        orders = replace(orders, tally=str(self.folder / "tally"), disturbed=self.disturbed, fails=self.scale.fails)
        pace = self.scale.pace if self.disturbed else 0.0
        settings = ("--num-stories", str(goal), "--set", f"backend.seconds_per_batch={pace}")
        own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1"}
        with self.messages.open("wb") as messages:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.soaking", "run", "soak.yaml", "--plain", *settings],
                cwd=self.output,
                env=os.environ | own | orders.environment(),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                start_new_session=True,  # a Ctrl-C is for the soak, which then ends its session itself
            )

    def left_behind(self) -> list[str]:
        """Files that are neither the output's own nor of the next manifest, which is one rename old."""
        own = {"soak.yaml", "stories.jsonl", "stories.rejected.jsonl", "stories.run.json", "stories.lock"}
        found = {path.name for path in self.output.iterdir()} - own - {"stories.run.json.new"}
        return sorted(found | {path.name for path in self.temporary.iterdir()})
