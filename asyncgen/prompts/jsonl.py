"""Ready prompts from a JSON Lines file: cutting it into lines and reading them; ``items`` says what a line may be."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.prompts.items import ready_prompt
from asyncgen.records import Prompt
from asyncgen.tasks import in_thread
from asyncgen.text_files import BOM, check_regular, check_text, decode, found, json_errors, refuse_duplicates

__all__ = ["CHUNK", "Checked", "Line", "LineCutter", "check_lines", "read_items", "read_prompt"]

CHUNK = 1 << 16
"""Bytes read at once: a few milliseconds of parsing."""
_LONGEST = 1 << 24
_DIGEST = 8


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file and where it stands."""

    number: int
    """From 1."""
    offset: int
    """Of its first byte, from 0."""
    data: bytes


class LineCutter:
    """Cuts chunks of a file into lines; blank ones are let go at the end of the file and refused within it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._number = 0
        self._offset = 0
        self._blank = 0

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that ``chunk`` completes; an empty chunk is the end of the file and completes the last one."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        if not chunk and rest:
            whole, rest = [rest], b""
        self._rest = rest
        if len(rest) > _LONGEST:
            raise DataError(f"{self._path}:{self._number + 1}: a line of more than {_LONGEST} bytes")
        return [line for data in whole if (line := self._line(data)) is not None]

    def _line(self, data: bytes) -> Line | None:
        self._number += 1
        offset = self._offset
        self._offset += len(data) + 1
        if self._number == 1 and data.startswith(BOM):
            data, offset = data.removeprefix(BOM), len(BOM)
        if not data.strip():
            self._blank = self._blank or self._number
            return None
        if self._blank:
            raise DataError(f"{self._path}:{self._blank}: a blank line; blank lines may only stand at the end")
        return Line(self._number, offset, data)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file as it was when it was checked."""

    prompts: int
    size: int
    """In bytes."""
    digests: bytes
    """Eight bytes for each chunk: 128 kB a gigabyte."""

    def is_changed(self, number: int, chunk: bytes) -> bool:
        """Whether chunk ``number``, from 0, has other bytes now; what has been added at the end is no change."""
        rest = self.size - number * CHUNK
        return rest > 0 and _digest(chunk[:rest]) != self.digests[number * _DIGEST : (number + 1) * _DIGEST]


def _digest(chunk: bytes) -> bytes:
    return blake2b(chunk, digest_size=_DIGEST).digest()


def check_lines(path: Path, config: Config, tick: Callable[[], object] = lambda: None) -> Checked:
    """Reads the whole file, keeping digests only; calls ``tick`` now and then.

    Raises DataError naming file and line for the first thing that is wrong, and for a file without prompts.
    """
    if config.system_prompt is not None:
        check_text(config.system_prompt, "system_prompt")
    check_regular(path, "prompts")
    cutter = LineCutter(path)
    count = size = 0
    digests = bytearray()
    try:
        with path.open("rb") as file:
            chunk = b"-"
            while chunk:
                tick()
                chunk = file.read(CHUNK)
                size += len(chunk)
                digests += _digest(chunk)
                for line in cutter.feed(chunk):
                    read_prompt(line, path, config)
                    count += 1
    except FileNotFoundError as error:
        raise DataError(f"prompts file not found: {path}") from error
    except OSError as error:
        raise DataError(f"prompts file {path} cannot be read: {error.strerror or error}") from error
    if not count:
        raise DataError(f"{path}: there is no prompt in it; it must hold one JSON object a line")
    return Checked(count, size, bytes(digests))


async def read_items(
    path: Path, config: Config, checked: Checked, position: int, *, source: str
) -> AsyncGenerator[Prompt, None]:
    """The prompts from line ``position`` on, from 0; a chunk's lines are held at most.

    Lines that are appended after ``check_lines`` counted are not read: they were not checked. Raises DataError for
    what has changed since.
    """
    count = checked.prompts
    files: list[BinaryIO] = []  # outside the thread: one that is opened while nobody waits any more is closed too
    cutter = LineCutter(path)
    done, number, chunk = 0, 0, b"-"
    try:
        await in_thread(lambda: files.append(path.open("rb")))
        while chunk and done < count:
            chunk = await in_thread(files[0].read, CHUNK)
            if checked.is_changed(number, chunk):
                raise DataError(
                    f"{path}:{done + 1}: changed while the run goes on, in this line or soon after it (among the "
                    f"{CHUNK} bytes from {number * CHUNK} on)",
                    hint="what was decided is kept; put the file back as it was and start the same run again",
                )
            number += 1
            for line in cutter.feed(chunk)[: count - done]:
                done = line.number
                if done > position:
                    yield read_prompt(line, path, config, source)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        for file in files:
            file.close()


def read_prompt(line: Line, path: Path, config: Config, source: str = "jsonl") -> Prompt:
    """The prompt of ``line``, whose position is its number, from 0; DataError if it is malformed."""
    text = decode(line.data, str(path), line=line.number, offset=line.offset)
    with json_errors(str(path), line.number):
        data = json.loads(text, object_pairs_hook=refuse_duplicates)
    place = f"{path}:{line.number}"
    if not isinstance(data, dict):
        raise DataError(f'{place}: found {found(data)}; a line is an object with "prompt" or "messages"')
    return ready_prompt(data, place, config, line.number - 1, source)
