"""What was measured, written to disk after every measurement: whoever kills the program loses one at most.

A measurement that fails is kept with its traceback, and the rest goes on. One that would not end in time is named as
not measured. When the device answers no more (a faulty kernel leaves a process without it), ``Gone`` ends the process;
the next one goes on behind what is on disk.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.environment import ROOT
from benchmarks.on_gpu.device import alive, hardware, tidy

__all__ = ["Gone", "Results", "facts"]

VERSIONS = ("torch", "triton", "transformers", "tokenizers", "anyio", "pydantic", "numpy")


class Gone(Exception):
    """The device answers no more."""


def facts(device: torch.device, commit: str = "") -> dict[str, Any]:
    """Where, when and with what it is measured. ``commit`` is for machines without the repository's history."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or _git("rev-parse", "--short", "HEAD") or "unknown",
        "changes": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        "hardware": hardware(device) | {"cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: found for name in VERSIONS if (found := _version(name))},
    }


class Results:
    """The results of one part, as they grow in ``file``."""

    def __init__(self, part: str, folder: Path, about: Mapping[str, Any], seconds: float, *, resume: bool) -> None:
        self.part, self._end = part, monotonic() + seconds
        self.device = torch.device("cpu")
        """Asked for a sign of life after a failure."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"gpu-{part}-{about['date']}-{about['commit']}.json"
        self._before: dict[str, Any] = {}
        if resume and self.file.exists():
            self._before = json.loads(self.file.read_text(encoding="utf-8"))
        self.found: dict[str, Any] = dict(self._before.get("results", {}))
        self.failed: dict[str, str] = dict(self._before.get("failed", {}))
        self.missing: dict[str, str] = {}
        self.seconds: dict[str, float] = dict(self._before.get("seconds", {}))
        self._about = dict(about)
        self.say(f"{part}: {seconds:.0f} s at most")
        self.write()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - monotonic()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{datetime.now(UTC):%H:%M:%S} {self.part}: {text}", flush=True)

    def measure(self, name: str, work: Callable[[], Any], *, needs: float = 0.0) -> Any:
        """What ``work`` returns, which is kept under ``name``; None if it fails, or if fewer than ``needs`` seconds are
        left, or if an earlier process did it.
        """
        if name in self._before.get("seconds", {}):
            return None
        if self.left < needs:
            self.leave(name, f"{self.left:.0f} s were left, and it takes about {needs:.0f} s")
            return None
        began = monotonic()
        self.seconds[name] = -1.0  # on disk while it goes on: one that takes the process along is not tried again
        self.write()
        found = None
        try:
            found = work()
        except Exception as error:  # noqa: BLE001  # the rest goes on
            self.failed[name] = "".join(traceback.format_exception(error))
            self.say(f"{name}: FAILED: {' '.join(str(error).split())[:300]}")
        else:
            self.found[name] = found
            self.say(f"{name}: {json.dumps(found, default=str)[:600]}")
        self.seconds[name] = round(monotonic() - began, 2)
        self.write()
        if name in self.failed:
            if not alive(self.device):
                raise Gone(name)
            tidy(self.device)
        return found

    def measure_again(self, name: str, work: Callable[[], Any]) -> Any:
        """The same for what later measurements stand on: it is done, whatever an earlier process did."""
        self._before.get("seconds", {}).pop(name, None)
        return self.measure(name, work)

    def leave(self, name: str, why: str) -> None:
        """Names what is not measured, unless it was."""
        if name not in self.seconds:
            self.missing[name] = f"not measured: {why}"
            self.say(f"{name}: {self.missing[name]}")
            self.write()

    def done(self, name: str) -> bool:
        """Whether an earlier process did it, or broke down over it."""
        return name in self._before.get("seconds", {})

    def keep(self, name: str, found: Any) -> None:
        """Keeps what follows from measurements."""
        self.found[name] = found
        self.say(f"{name}: {json.dumps(found, default=str)[:1500]}")
        self.write()

    def write(self) -> None:
        """Puts everything on disk."""
        whole = {
            "environment": self._about,
            "results": self.found,
            "failed": self.failed,
            "not measured": self.missing,
            "seconds": self.seconds,
        }
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(whole, indent=1, default=str) + "\n", encoding="utf-8")
        beside.replace(self.file)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
