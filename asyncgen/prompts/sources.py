"""Where prompts come from: one interface, asked for them by index, and what it stands on.

``open_source`` checks everything that can be wrong with the inputs before it hands out a source, so bad input ends a
run before a model loads; ``check_inputs`` does the same without opening anything. Neither loads torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedReader
from anyio import CancelScope, from_thread
from anyio.lowlevel import checkpoint

from asyncgen.config import Config, JsonlSource
from asyncgen.errors import DataError
from asyncgen.prompts.jsonl import CHUNK, Line, LineCutter, check_lines, read_prompt
from asyncgen.prompts.plan import Plan, conversation_path, features_path, vocabulary_path
from asyncgen.prompts.templates import load_template
from asyncgen.records import Prompt
from asyncgen.tasks import in_thread
from asyncgen.text_files import check_regular, check_text

__all__ = ["Inputs", "PromptSource", "check_inputs", "input_files", "open_source"]


class PromptSource(Protocol):
    """Prompts by index. Nothing about a prompt depends on where a run started or on how many were taken at once."""

    count: int | None
    """Prompts that there are; None if they never end."""

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        """The prompts of indices ``start`` to ``start + count``, that one not included, not yet prepared.

        Fewer than ``count``, or none, if the source ends there. Any start is allowed; asking for successive ones is
        what is fast.
        """


@dataclass(frozen=True, slots=True)
class Inputs:
    """What ``check_inputs`` found, as counts."""

    kind: str
    """``template`` or ``jsonl``."""
    words: int = 0
    conditions: int = 0
    examples: int = 0
    """Examples that the conversation holds."""
    prompts: int | None = None
    """Prompts in the JSONL file; None for a template, which never ends."""


def check_inputs(config: Config) -> Inputs:
    """Reads and checks all inputs of a run. Raises DataError for the first thing that is wrong."""
    source = _jsonl(config)
    if source is not None:
        return Inputs("jsonl", prompts=_check_file(source.path, config))
    plan = Plan(config)
    conditions = sum(len(group) for group in plan.conditions)
    return Inputs("template", words=len(plan.words), conditions=conditions, examples=len(plan.shots))


def input_files(config: Config) -> dict[str, Path | str]:
    """What a run's prompts depend on besides the configuration's own values: a path for a file, the text itself for
    the template. Only what is in use: no conversation without examples, nothing but ``sources[0]`` for a JSONL source.

    Keys: ``template``, ``vocabulary``, ``features``, ``conversation``; or ``sources[0]``, which may have grown since.
    """
    source = _jsonl(config)
    if source is not None:
        return {"sources[0]": source.path}
    template = load_template(config.template)
    inputs: dict[str, Path | str] = {"template": template.text}
    if template.words:
        inputs["vocabulary"] = vocabulary_path(config)
    if template.has_condition:
        inputs["features"] = features_path(config)
    if config.shots:
        inputs["conversation"] = conversation_path(config)
    return inputs


@asynccontextmanager
async def open_source(config: Config) -> AsyncIterator[PromptSource]:
    """The configured source, its inputs checked to the end. Raises DataError before anything is handed out."""
    source = _jsonl(config)
    if source is None:
        yield _TemplatePrompts(await in_thread(Plan, config))
        return
    count = await in_thread(_check_file, source.path, config, from_thread.check_cancelled)
    try:
        file = await aiofiles.open(source.path, "rb")
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read: {error.strerror}") from error
    try:
        yield _JsonlPrompts(file, source.path, config, count)
    finally:
        with CancelScope(shield=True):
            await file.close()


def _jsonl(config: Config) -> JsonlSource | None:
    source = config.sources[0] if config.sources else None
    return source if isinstance(source, JsonlSource) else None


def _check_file(path: Path, config: Config, tick: Callable[[], object] = lambda: None) -> int:
    if config.system_prompt is not None:
        check_text(config.system_prompt, "system_prompt")
    check_regular(path, "prompts")
    return check_lines(path, config, tick)


class _TemplatePrompts:
    """Prompts of the plan, without end."""

    count: int | None = None

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        await checkpoint()
        return tuple([self._plan.prompt(index) for index in range(start, start + count)])


class _JsonlPrompts:
    """Prompts of a JSON Lines file, read as they are asked for: at most a chunk's lines are held."""

    def __init__(self, file: AsyncBufferedReader, path: Path, config: Config, count: int) -> None:
        # Lines that are appended while the run goes on were not checked: they are for the next one.
        self.count: int | None = count
        self._checked = count
        self._file = file
        self._path = path
        self._config = config
        self._rewind()

    def _rewind(self) -> None:
        self._cutter = LineCutter(self._path)
        self._lines: deque[Line] = deque()
        self._next = 0
        self._ended = False

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        await checkpoint()
        if start < self._next:
            await self._file.seek(0)
            self._rewind()
        prompts: list[Prompt] = []
        while len(prompts) < count and self._next < self._checked:
            if not self._lines:
                if self._ended:
                    break
                await self._read()
                continue
            line = self._lines.popleft()
            self._next = line.number
            if line.number > start:
                prompts.append(read_prompt(line, self._path, self._config))
        return tuple(prompts)

    async def _read(self) -> None:
        chunk = await self._file.read(CHUNK)
        self._lines.extend(self._cutter.feed(chunk))
        self._ended = not chunk
