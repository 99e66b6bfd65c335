"""Where an output's files lie, and the few system calls that make a change to them last."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from asyncgen.errors import ConfigError

__all__ = ["Places", "free_name", "make_folder", "read_before", "size_of", "sync_folder"]

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Places:
    """The four files of one output: what is beside ``stories.jsonl`` is named after it."""

    stories: Path
    rejected: Path
    manifest: Path
    lock: Path

    @classmethod
    def of(cls, output_path: Path) -> Places:
        """The files of the output at ``output_path``; links are followed, so that one output has one lock.

        Only ``.jsonl`` is taken off: ``a.json`` and ``a.jsonl`` are two outputs. Raises ConfigError if the path is
        a directory, a device or anything else that is not a file, or where another output's rejects would go.
        """
        try:
            path = output_path.resolve()
            mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        except RuntimeError as error:
            raise ConfigError(f"output_path: {output_path} is a link that leads to itself") from error
        except OSError:
            mode = stat.S_IFREG
        if path.name.endswith(".rejected.jsonl"):
            raise ConfigError(
                f"output_path: {path.name} is where the rejects of another output would go",
                hint="name it something else than NAME.rejected.jsonl",
            )
        if not stat.S_ISREG(mode):
            raise ConfigError(f"output_path: {path} is not a regular file", hint="name a file such as stories.jsonl")
        stem = path.name.removesuffix(".jsonl") or path.name
        places = cls(path, *(path.with_name(stem + end) for end in (".rejected.jsonl", ".run.json", ".lock")))
        if _is_something_else(places.rejected):
            raise ConfigError(
                f"output_path: {places.rejected} is not a regular file", hint="rejects are written there: remove it"
            )
        return places

    def free_aside(self) -> Path:
        """A name beside the rejected file at which there is nothing: ``stories.rejected.1.jsonl``."""
        return _free(self.rejected, self.rejected.name.removesuffix(".jsonl"), ".jsonl")


def free_name(path: Path, end: str) -> Path:
    """A name beside ``path`` at which there is nothing: ``stories.jsonl.cut.1`` for ``cut``."""
    return _free(path, f"{path.name}.{end}")


def _free(beside: Path, name: str, ending: str = "") -> Path:
    names = (beside.with_name(f"{name}.{number}{ending}") for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def _is_something_else(path: Path) -> bool:
    """Whether something is there that is no file; what cannot be looked at is met again when it is opened."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def size_of(path: Path) -> int:
    """Bytes of the file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_before(path: Path, end: int) -> bytes:
    """The line that ends at byte ``end`` > 0, its newline included; read in blocks from there to the line's start."""
    blocks: list[bytes] = []
    with path.open("rb") as file:
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            block = file.read(end - start)
            # The newline that ends this line is no line's start.
            newline = block.rfind(b"\n", 0, len(block) if blocks else len(block) - 1)
            blocks.append(block[newline + 1 :])
            if newline >= 0:
                break
            end = start
    return b"".join(reversed(blocks))


def sync_folder(folder: Path) -> None:
    """Makes new and renamed names in ``folder`` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> bool:
    """Makes ``folder`` and what is missing above it, for good; whether there was anything to make."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)
    return bool(missing)
