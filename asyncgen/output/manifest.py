"""``stories.run.json``: what made an output, how far it is, and up to where both files are on the disk for good.

It is written before the first record and replaced whole, so a crash leaves the old one or the new one and never
records without one. Therefore a manifest that is missing beside records, or cannot be read, was lost by a person or a
disk. Then nothing on disk says under which configuration the records were made, and resuming could mix two: it is
refused. (A line tells its seed, but not the temperature.) A newer format is refused too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from asyncgen.errors import ResumeRefused
from asyncgen.output.places import sync_folder
from asyncgen.output.points import points
from asyncgen.output.recovery import Mark

__all__ = ["FORMAT", "Manifest", "State", "Timings", "Totals", "hardware", "read", "replace", "versions"]

FORMAT = 1
State = Literal["running", "stopped", "complete"]
"""``running`` on disk of a run that is over: it was killed, or its disk failed."""

_HINT = "put it back, or give another output_path; the records themselves have not been touched"
_PACKAGES = ("asyncgen", "torch", "transformers")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Synced(_Part):
    """Sizes in bytes up to which the files are on the disk for good."""

    stories: int = 0
    rejected: int = 0


class Totals(_Part):
    """Records within the synced sizes."""

    accepted: int = 0
    rejected: int = 0
    reasons: dict[str, int] = {}
    """Kind of reason -> how often, over all attempts of the rejected indices."""


class Timings(_Part):
    """When and how long. Wall-clock times are for people; nothing is computed from them."""

    began: str = ""
    updated: str = ""
    seconds: float = 0.0
    """Time with the output open, over all runs."""
    runs: int = 0
    """Times it was opened."""


class Manifest(_Part):
    """The file, as it is on disk."""

    format: int = FORMAT
    state: State = "running"
    synced: Synced = Synced()
    totals: Totals = Totals()
    timings: Timings = Timings()
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    notes: list[str] = []
    """What changed between runs and did not change the plan, one text each."""
    facts: dict[str, Any] = {}
    """What the run says of itself."""
    fingerprint: dict[str, Any] = {}
    config: dict[str, Any] = {}

    @property
    def mark(self) -> Mark:
        """The synced place."""
        return Mark(self.synced.stories, self.synced.rejected, self.totals.accepted, self.totals.rejected)

    @property
    def seed(self) -> int:
        """The seed of the run that began this output."""
        return int(self.fingerprint.get("seed", 0))


def read(path: Path) -> Manifest | None:
    """The manifest, None if there is none. Raises ResumeRefused if it cannot be read or is of a newer format."""
    if path.exists() and not path.is_file():
        raise ResumeRefused(f"{path} is not a regular file, so it is no manifest of asyncgen", hint=_HINT)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(data)
        number = found.get("format") if isinstance(found, dict) else None
        if type(number) is not int:
            raise ValueError("no format")  # noqa: TRY301  # one message for all of them
        if number > FORMAT:
            raise ResumeRefused(
                f"{path} is of format {number}; this asyncgen knows up to {FORMAT}", hint="update asyncgen"
            )
        manifest = Manifest.model_validate(found)
        int(manifest.seed)  # raises like the rest if it is no number
        _text_of(manifest)  # nor is it one of ours if it could not be written again
    except (ValidationError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ResumeRefused(f"{path} cannot be read: it is not a manifest of asyncgen", hint=_HINT) from error
    return manifest


def replace(path: Path, manifest: Manifest) -> None:
    """Puts ``manifest`` in the place of the old one, for good: at any moment one of them is there, whole.

    Raises OSError, and then the old one stands. Only the holder of the output's lock may call this.
    """
    new = path.with_name(path.name + ".new")
    text = _text_of(manifest)
    try:
        new.unlink(missing_ok=True)
        with new.open("xb") as file:  # never through a link that somebody left there
            file.write(text.encode() + b"\n")
            file.flush()
            points.at("manifest written")
            os.fsync(file.fileno())
        points.at("manifest synced")
        new.replace(path)
        points.at("manifest replaced")
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def _text_of(manifest: Manifest) -> str:
    """Raises ValueError for what no file can hold: half a surrogate pair, a number that is none."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=True, allow_nan=False)


def versions() -> dict[str, str]:
    """Versions of Python and of what decides texts, as far as installed; imports none of it."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine, as far as Python knows it."""
    return {"system": sys.platform, "machine": platform.machine(), "cpus": os.cpu_count()}
