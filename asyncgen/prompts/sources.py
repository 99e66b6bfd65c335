"""Where prompts come from: one interface, asked for them by index, over one source or several mixed by weight.

``open_source`` checks everything that can be wrong with the inputs before it hands out a source, so bad input ends a
run before a model loads. Neither it nor ``check_inputs`` loads torch. ``mixing`` decides which item of which source an
index is; ``ahead`` fetches items before they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import anyio
from anyio import from_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asyncgen import seeds
from asyncgen.config import Config, JsonlSource, PythonSource, Source
from asyncgen.errors import AsyncgenError, DataError
from asyncgen.prompts.ahead import Ahead, Items
from asyncgen.prompts.inputs import Inputs, code_of, name_of, sources_of, where
from asyncgen.prompts.jsonl import Checked, check_lines, read_items
from asyncgen.prompts.mixing import End, Mixing, Place
from asyncgen.prompts.plan import Plan
from asyncgen.prompts.python import PythonItems
from asyncgen.records import Prompt
from asyncgen.tasks import as_raised, in_thread, tell_nobody

__all__ = ["PromptSource", "Sources", "open_source"]

Record = Callable[[Sequence[End]], Awaitable[None]]
"""Makes the ends so far last, before anything is planned by them."""


class PromptSource(Protocol):
    """Prompts by index. Nothing about a prompt depends on where a run started or on how many were taken at once."""

    @property
    def count(self) -> int | None:
        """Prompts that there are; None if that is not known, or if they never end."""

    @property
    def waited(self) -> Mapping[str, float]:
        """Seconds for which ``take`` waited for an item, by source, a wait that goes on included."""

    @property
    def let_go(self) -> int:
        """Items so far that were made again only to come to those that are due: a sign of life while ``take`` waits."""

    @property
    def to_mend(self) -> str | None:
        """After a failure the name of the input that caused it, if that is code of the user's."""

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        """The prompts of indices ``start`` and following, ``count`` at most, not yet prepared.

        Waits for the first one only, so fewer may come; none if the sources end there. Any start is allowed; asking
        for successive ones is what is fast. Raises what a source raised, once all items before that were taken.
        """


@asynccontextmanager
async def open_source(
    config: Config, tell: Callable[[str], object] = tell_nobody, checked: Sequence[Inputs] = ()
) -> AsyncIterator[Sources]:
    """The configured sources, their inputs checked to the end. Raises DataError or ConfigError before anything is
    handed out. ``tell`` is told sentences that a user should read once. ``checked`` is what ``check_inputs`` found a
    moment ago: JSONL files are then not read again to count their prompts.
    """
    files = [each.file for each in checked] or [None] * len(sources_of(config))
    with as_raised():
        async with anyio.create_task_group() as group:
            parts = [
                _Part(name_of(source), await _open(source, number, config, group, tell, file))
                for number, (source, file) in enumerate(zip(sources_of(config), files, strict=True))
            ]
            try:
                yield Sources(config, parts, tell)
            finally:
                for part in parts:
                    part.items.close()


async def _open(
    source: Source,
    number: int,
    config: Config,
    group: TaskGroup,
    tell: Callable[[str], object],
    checked: Checked | None,
) -> Items:
    if isinstance(source, JsonlSource):
        if checked is None:
            checked = await in_thread(check_lines, source.path, config, from_thread.check_cancelled)
        return Ahead(partial(read_items, source.path, config, checked, source=name_of(source)), group, checked.prompts)
    if isinstance(source, PythonSource):
        found = await in_thread(PythonItems, source, config, where(number), tell)
        return Ahead(found.read, group, let_go=lambda: found.let_go)
    return _TemplateItems(await in_thread(Plan, config))


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    items: Items


class Sources:
    """The sources of a run as one ``PromptSource``."""

    def __init__(self, config: Config, parts: Sequence[_Part], tell: Callable[[str], object]) -> None:
        self._seed = config.seed
        self._parts = parts
        self._tell = tell
        self._mixing = Mixing([source.weight for source in sources_of(config)])
        self._record: Record = _nobody
        self._next: int | None = None
        self._waited = dict.fromkeys([part.name for part in parts], 0.0)
        self._waits: tuple[str, float] | None = None
        self.failed: int | None = None
        """Number of the source whose next item could not be had."""

    @property
    def count(self) -> int | None:
        """See ``PromptSource``: known if all sources that have not ended are files."""
        ended = {end.source: self._mixing.items(end.index)[end.source] for end in self._mixing.ends}
        counts = [ended.get(number, part.items.count) for number, part in enumerate(self._parts)]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def waited(self) -> Mapping[str, float]:
        """See ``PromptSource``."""
        waited = dict(self._waited)
        if self._waits is not None:
            name, since = self._waits
            waited[name] += time.monotonic() - since
        return waited

    @property
    def let_go(self) -> int:
        """See ``PromptSource``."""
        return sum(part.items.let_go for part in self._parts)

    @property
    def to_mend(self) -> str | None:
        """See ``PromptSource``; a name of ``input_files``."""
        return None if self.failed is None else code_of(self.failed)

    def resume(self, ends: Sequence[End], record: Record) -> None:
        """Goes on after ``ends``, and from now on lets ``record`` make an end last before anything is planned by it.

        The end of the source that is left last is no such end: nobody took its places, and a file may yet grow.
        """
        for end in ends:
            self._mixing.end(end.source, end.index)
            self._tell_of_growth(end)
        self._record = record

    async def find_ends(self, start: int) -> None:
        """Finds the ends before index ``start`` again where nothing recorded them. A function is asked for the item
        before the one that is due; only if it has none, its items are counted from the beginning.
        """
        counts: dict[int, int] = {}
        while len(self._mixing.alive) > 1:
            wanted = self._mixing.items(start)
            for number in self._mixing.alive - counts.keys():
                if (count := await _count(self._parts[number].items, wanted[number])) is not None:
                    counts[number] = count
            short = [n for n in self._mixing.alive & counts.keys() if counts[n] < wanted[n]]
            if not short:
                return
            index, number = min((self._mixing.index_of(n, counts[n]), n) for n in short)
            self._mixing.end(number, index)

    def begin(self, index: int) -> None:
        """Starts fetching what ``index`` and its successors need."""
        ended = {end.source for end in self._mixing.ends if end.index <= index}
        for number, position in enumerate(self._mixing.items(index)):
            if number not in ended:
                self._parts[number].items.begin(position)
        self._next = index

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        """See ``PromptSource``."""
        await checkpoint()
        if start != self._next:
            self.begin(start)
        prompts: list[Prompt] = []
        while len(prompts) < count:
            index = start + len(prompts)
            place = self._mixing.place(index)
            part = self._parts[place.source]
            prompt = part.items.get(place.position)
            if prompt is not None:
                prompts.append(self._placed(prompt, index, part.name))
            elif prompts or not await self._more(place, index):
                break
        self._next = start + len(prompts)
        return tuple(prompts)

    def _placed(self, prompt: Prompt, index: int, name: str) -> Prompt:
        if prompt.index == index and prompt.source == name:
            return prompt
        return replace(prompt, index=index, seed=seeds.sampling_seed(self._seed, index, 1), source=name)

    async def _more(self, place: Place, index: int) -> bool:
        """Waits for the item of ``place``; if there is none, ends its source. False if there is no other source."""
        part = self._parts[place.source]
        self._waits = (part.name, time.monotonic())
        try:
            if await part.items.wait(place.position):
                return True
            self._check_end(place, index)
        except AsyncgenError:
            self.failed = place.source
            raise
        finally:
            self._waited = dict(self.waited)
            self._waits = None
        if len(self._mixing.alive) == 1:
            return False
        await self._record((*self._mixing.ends, End(place.source, index)))
        self._mixing.end(place.source, index)
        return True

    def _check_end(self, place: Place, index: int) -> None:
        """Raises DataError for an end before one that is recorded: whoever recorded that had the items in between."""
        last = max((end.index for end in self._mixing.ends), default=0)
        if index < last:
            name, had = self._parts[place.source].name, self._mixing.items(last)[place.source]
            raise DataError(
                f"source {name!r} gave at least {had} items before this run was stopped, and gives only "
                f"{place.position} now",
                hint="let it give the same items as before, or give another output_path",
            )

    def _tell_of_growth(self, end: End) -> None:
        part = self._parts[end.source]
        used = self._mixing.items(end.index)[end.source]
        if part.items.count is not None and part.items.count > used:
            self._tell(
                f"source {part.name!r} ended after {used} prompts, at index {end.index}, and gave its places to the "
                f"others; the {part.items.count - used} that were added since are not used"
            )


class _TemplateItems:
    """``Items`` of the plan: without end, and with nothing to wait for."""

    count: int | None = None
    let_go = 0

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def begin(self, position: int) -> None:
        """There is nothing to fetch."""

    def close(self) -> None:
        """There is nothing to end."""

    def get(self, position: int) -> Prompt | None:
        """The prompt of the plan, whose index is the position: words, condition and examples go by it."""
        return self._plan.prompt(position)

    async def wait(self, position: int) -> bool:  # noqa: ARG002  # any is here
        """Returns at once."""
        await checkpoint()
        return True


async def _count(items: Items, wanted: int) -> int | None:
    """The number of items if it is known or less than ``wanted``; else None."""
    if items.count is not None or wanted == 0:
        return items.count
    if await items.wait(wanted - 1):
        items.get(wanted - 1)
        return None
    number = 0
    while await items.wait(number):
        items.get(number)
        number += 1
    return number


async def _nobody(ends: Sequence[End]) -> None:
    """Records nothing: whoever resumes finds the ends again."""
