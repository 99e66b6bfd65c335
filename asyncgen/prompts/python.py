"""Prompts from an async generator function of the user's: found, checked before it is called, and called at an item.

    async def function(start: int, **parameters):    # begins at item ``start``, from 0
        yield "a prompt's text"                      # or a mapping like a line of a JSONL source

A function without ``start`` is called from its beginning, and the items before are discarded. It runs on the event
loop, in one task from its first step to its closing.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from asyncgen.config import Config, PythonSource
from asyncgen.errors import ConfigError, DataError
from asyncgen.functions import described, find_function, raised_at
from asyncgen.prompts.items import KEYS, ready_prompt
from asyncgen.records import Prompt
from asyncgen.tasks import awake, ends_this_task
from asyncgen.text_files import check_text, found

_log = logging.getLogger(__name__)

__all__ = ["PythonItems"]

_EXPECTED = "expected is `async def function(start: int, ...)` with `yield`"


class PythonItems:
    """The function of a source, ready to be called; making one imports the user's module, so it belongs into a thread.

    Raises ConfigError if the function is not there, is not an async generator function, or does not take the
    configured parameters; DataError for a system prompt that is not text.
    """

    def __init__(self, source: PythonSource, config: Config, where: str, tell: Callable[[str], object]) -> None:
        self.where = f"{where}: {source.function}"
        self._config = config
        self._name = source.name or source.kind
        self._parameters = source.parameters
        self._timeout = source.timeout
        self._tell = tell
        if config.system_prompt is not None:
            check_text(config.system_prompt, "system_prompt")
        self._function = find_function(source.function, where)
        _check_kind(self._function, self.where)
        self.takes_start = "start" in inspect.signature(self._function).parameters
        self._check_call()
        self.let_go = 0
        """Items that were made again, and let go."""

    async def read(self, position: int) -> AsyncGenerator[Prompt, None]:
        """The prompts from item ``position`` on. Raises DataError, which names the item, for a bad one and for what
        the function raises.
        """
        if position and not self.takes_start:
            self._tell(f"{self.where}: has no parameter `start`, its first {position} items are made again and let go")
        arguments = copy.deepcopy(self._parameters)
        generator = self._function(**({"start": position} if self.takes_start else {}), **arguments)
        number = position if self.takes_start else 0
        try:
            while True:
                try:
                    async with asyncio.timeout(None) as limit:  # in this task, unlike ``wait_for``
                        with awake(self._timeout, partial(_expire, limit)):
                            item = await anext(generator)
                except StopAsyncIteration:
                    if limit.expired():  # it caught the cancellation, and returned
                        raise self._late(number) from None
                    return
                except BaseException as error:
                    if isinstance(error, TimeoutError) and limit.expired():
                        raise self._late(number) from error
                    if ends_this_task(error):
                        raise
                    if _is_being_closed():
                        self._tell_of_cleaning(error)
                    raise self._failed(number, error) from error
                if number >= position:
                    yield self._prompt(item, number)
                else:
                    self.let_go += 1
                    if number % 64 == 0:
                        await anyio.lowlevel.checkpoint()  # the function may never wait for anything
                number += 1
        finally:
            try:
                await generator.aclose()
            except BaseException as error:
                if ends_this_task(error):
                    raise
                self._tell_of_cleaning(error)  # nobody asks it for items any more, so nothing is lost

    def _prompt(self, item: object, number: int) -> Prompt:
        place = f"{self.where}: item {number}"
        return ready_prompt(_object(item, place), place, self._config, number, self._name)

    def _late(self, number: int) -> DataError:
        return DataError(
            f"{self.where} (source {self._name!r}): item {number}: it did not come within {self._timeout:g} s",
            hint=f"raise timeout, or mend the cause; started again, the same run goes on at item {number}",
        )

    def _failed(self, number: int, error: BaseException) -> DataError:
        _log.debug("%s: item %d raised", self.where, number, exc_info=error)
        text = f"{described(error)}{raised_at(error, self._function)}"
        return DataError(
            f"{self.where} (source {self._name!r}): item {number}: the function raised {text}",
            hint=f"mend the cause and start the same run again: it goes on at item {number}",
        )

    def _tell_of_cleaning(self, error: BaseException) -> None:
        self._tell(f"{self.where}: cleaning up failed: {described(error)}")

    def _check_call(self) -> None:
        if "start" in self._parameters:
            raise ConfigError(f"{self.where}: `start` is given by asyncgen; it must not be among the parameters")
        signature = inspect.signature(self._function)
        try:
            signature.bind(**({"start": 0} if self.takes_start else {}), **self._parameters)
        except TypeError as error:
            given = ", ".join(self._parameters) or "none"
            raise ConfigError(
                f"{self.where}: does not take the configured parameters ({given}): {error}; its signature is "
                f"{signature}"
            ) from error


def _check_kind(function: Callable[..., Any], where: str) -> None:
    if inspect.isasyncgenfunction(function):
        return
    if inspect.isgeneratorfunction(function):
        raise ConfigError(f"{where}: is a plain generator function; {_EXPECTED}", hint="write `async def`")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: is a coroutine function, which returns; {_EXPECTED}", hint="yield each prompt")
    kind = "a class" if inspect.isclass(function) else "not an async generator function"
    raise ConfigError(f"{where}: is {kind}; {_EXPECTED}")


def _expire(limit: asyncio.Timeout) -> None:
    limit.reschedule(asyncio.get_running_loop().time())


def _is_being_closed() -> bool:
    """Whether this task was cancelled from outside, whatever the function made of that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _object(item: object, place: str) -> dict[str, Any]:
    """The item as a line of a JSONL source would hold it, sharing nothing with what the function keeps."""
    try:
        if isinstance(item, str):
            return {"prompt": str.__str__(item)}  # a subclass may have methods of its own
        if isinstance(item, Mapping):
            pairs = [(str.__str__(str(key)), value) for key, value in item.items()]
            return {key: json.loads(json.dumps(value)) if key in KEYS else None for key, value in pairs}
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {described(error)}") from error
    except BaseException as error:  # nothing is awaited here, so it is no cancellation
        raise DataError(f"{place}: reading it raised {described(error)}") from error
    raise DataError(f'{place}: found {found(item)}; an item is a text, or a mapping with "prompt" or "messages"')
