"""Checks of the user's own: finds them, calls them, and reads what they answer.

A call that raises or takes too long is an answer too: that text is refused, for the reason that the check failed, and
tried again like any other. When too many calls fail it is the check that is broken, and the run stops.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import anyio

from asyncgen.config import FunctionValidator, Validation
from asyncgen.errors import ConfigError, TooManyRejections
from asyncgen.functions import described, find_function, raised_at
from asyncgen.records import Completion, Message, Verdict
from asyncgen.tasks import awake, ends_this_task
from asyncgen.validators.answers import Answer, CheckFailed, Failures, read_answer
from asyncgen.validators.apart import wait_apart
from asyncgen.validators.blocking import watched
from asyncgen.validators.judge import BUILT_IN, KINDS
from asyncgen.validators.quality import low_quality, mean
from asyncgen.validators.threads import NoThread, Threads

_log = logging.getLogger(__name__)

__all__ = ["Count", "FunctionCheck", "Functions", "load_function", "load_functions"]

Count = Callable[[str, float], object]
"""Told a validator's name and the seconds of one call."""

LEFT_BEHIND = 4
"""Calls that took too long and have not ended, beside which others are begun; ``concurrency``, if that is more."""


THREAD_PAUSE = 0.1
"""Seconds after which a thread that was not to be had is asked for again."""


def load_functions(settings: Validation) -> tuple[FunctionCheck, ...]:
    """All functions of ``settings``, in its order. Imports their modules, so it may take long.

    Raises ConfigError for one that is not there, that does not take its parameters, or whose name is taken.
    """
    taken: set[str] = set()
    return tuple(load_function(each, place, taken) for place, each in enumerate(settings.functions))


def load_function(settings: FunctionValidator, place: int, taken: set[str]) -> FunctionCheck:
    """The ``place``-th function of the configuration; its name, which must not be among ``taken``, is added there.

    Raises what ``load_functions`` does.
    """
    key = f"validation.functions[{place}]"
    name = settings.name or settings.function.rpartition(":")[2]
    if name in taken or name in (BUILT_IN, *KINDS):
        whose = "another one is" if name in taken else "a built-in check is"
        raise ConfigError(f"{key}: {whose} called {name!r} too", hint="give this one another name with `name`")
    taken.add(name)
    function = find_function(settings.function, f"{key}.function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"{key}.function: is a generator function; a check returns what it finds", hint="no `yield`")
    _check_parameters(function, settings, key)
    return FunctionCheck(name, function, settings, key)


def _check_parameters(function: Callable[..., Any], settings: FunctionValidator, key: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built in C and does not say; a call will tell
    try:
        signature.bind(None, **settings.parameters)
    except TypeError as error:
        odd = [name for name in settings.parameters if name not in signature.parameters]
        close = get_close_matches(odd[0], signature.parameters, n=1) if odd else []
        meant = f"; did you mean {close[0]!r}?" if close else ""
        name = settings.function.rpartition(":")[2]
        raise ConfigError(
            f"{key}.parameters: {name}{signature} does not fit: {error}{meant}",
            hint="a check is called with a completion, and with its parameters by name",
        ) from None


class Functions:
    """All checks of the user's, asked one after another, in the order of the configuration."""

    def __init__(self, checks: Sequence[FunctionCheck], settings: Validation, built_in_weight: float) -> None:
        self._checks = checks
        self._settings = settings
        self._built_in_weight = built_in_weight
        self.concurrency = sum(check.concurrency for check in checks)
        """Texts that can be in them at once, if each is as busy as it may be."""
        self.asking = 0
        """Texts that are in them now."""

    @property
    def to_mend(self) -> tuple[str, ...]:
        """Those that stopped the run, by their names in ``input_files``."""
        return tuple(check.key for check in self._checks if check.given_up)

    @property
    def blocked(self) -> Mapping[str, float]:
        """Seconds for which each kept everybody else from the event loop; those that did not are left out."""
        return {check.name: check.blocked for check in self._checks if check.blocked}

    async def ask(self, verdict: Verdict, count: Count) -> Verdict:
        """``verdict``, which accepts a text, or the first check's reasons against it; and the whole quality score.

        Raises TooManyRejections when one of them fails too often.
        """
        self.asking += 1
        try:
            return await self._ask(verdict, count)
        finally:
            self.asking -= 1

    async def _ask(self, verdict: Verdict, count: Count) -> Verdict:
        scores = [(self._built_in_weight, verdict.quality)]
        reasons: tuple[str, ...] = ()
        for check in self._checks:
            answer = await check(verdict.completion, count)
            if answer.score is not None:
                scores.append((check.weight, answer.score))
            if reasons := tuple(f"{check.name}: {reason}" for reason in answer.reasons):
                break
        quality = mean(scores) if math.fsum(weight for weight, _ in scores[1:]) else verdict.quality
        if not reasons and quality < self._settings.min_quality:
            reasons = (low_quality(quality, self._settings),)
        return Verdict(verdict.completion, reasons, quality, verdict.word_count)


class FunctionCheck:
    """One function: at most ``concurrency`` calls at once, none longer than ``timeout``, plain ones in threads."""

    def __init__(self, name: str, function: Callable[..., Any], settings: FunctionValidator, key: str) -> None:
        self.name = name
        self.key = key
        self.weight = settings.weight
        self.concurrency = settings.concurrency
        self._timeout = settings.timeout
        self._function = partial(function, **settings.parameters)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        self._slots = anyio.Semaphore(settings.concurrency)
        self._threads = Threads(name)
        self._most_left_behind = max(LEFT_BEHIND, settings.concurrency)
        self._failures = Failures()
        self.blocked = 0.0
        """Seconds for which it kept everybody else from the event loop."""
        self.given_up = False
        """Whether it failed so often that it stopped the run."""

    async def __call__(self, completion: Completion, count: Count) -> Answer:
        """What the function says, or that it failed. Raises TooManyRejections when it does so too often, and when there
        is no thread to call it in.
        """
        async with self._slots:
            await self._wait_while_stuck()
            counted = _Once(partial(count, self.name), time.monotonic())
            try:
                answer = await self._call_when_possible(completion, counted)
            except NoThread as error:
                raise TooManyRejections(
                    f"the check {self.name!r} was not called for {self._timeout:g} s: the system gives no thread: "
                    f"{error}",
                    hint="allow the process more threads or memory, or ask for fewer of either, then run again",
                ) from error
            except Exception as error:  # noqa: BLE001  # whatever it is: this text's check failed
                _log.debug("the check %r failed", self.name, exc_info=error)
                said = self._said(error)
                self._failed(error, said)
                return Answer((said,))
            finally:
                counted()
            self._failures.add(failed=False)
            return answer

    def _blocked(self, seconds: float) -> None:
        self.blocked += seconds

    async def _call_when_possible(self, completion: Completion, given_up: Callable[[], object]) -> Answer:
        """As ``_call``; where the system gives no thread it waits for one, since that says nothing about the text.

        Raises NoThread, once, when none came for as long as a call may take.
        """
        waited = 0.0
        while True:
            try:
                return await self._call(_copied(completion), given_up)
            except NoThread:
                if waited >= self._timeout and not self.given_up:
                    self.given_up = True
                    raise
            await anyio.sleep(THREAD_PAUSE)
            waited += THREAD_PAUSE

    async def _call(self, completion: Completion, given_up: Callable[[], object]) -> Answer:
        """What the function answers. Raises CheckFailed, or what the function raises."""
        with anyio.CancelScope() as scope, awake(self._timeout, scope.cancel):
            try:
                if self._is_async:
                    return read_answer(await self._wait(partial(self._function, completion), given_up))
                value = await self._threads.run(partial(self._function, completion))
                return read_answer(await self._wait(lambda: value, given_up) if inspect.isawaitable(value) else value)
            except BaseException as error:
                # sys.exit() must not end the program, nor a cancellation of the function's own making this task.
                if isinstance(error, Exception) or ends_this_task(error):
                    raise
                raise CheckFailed(f"raised {described(error)}") from error
        raise CheckFailed(f"took longer than {self._timeout:g} s")

    async def _wait(self, begin: Callable[[], Awaitable[object]], given_up: Callable[[], object]) -> object:
        return await wait_apart(lambda: watched(begin(), self._blocked), self.name, given_up)

    def _failed(self, error: Exception, said: str) -> None:
        if self._failures.add(failed=True) and not self.given_up:
            self.given_up = True  # one error is enough: others may end before the run does
            raise TooManyRejections(
                f"the check {self.name!r} failed in {self._failures.failed} of its last {self._failures.calls} calls; "
                f"the last one {said}",
                hint="mend the function, then run again",
            ) from error

    def _said(self, error: Exception) -> str:
        """The error as the end of a sentence that begins with the name of the check, and where it was raised."""
        return _said(error) + raised_at(error.__cause__ or error, self._function.func)

    async def _wait_while_stuck(self) -> None:
        """Calls that took too long leave their threads behind; there must not be ever more of them. When there are too
        many, one may take as long again to end.
        """
        with anyio.CancelScope() as scope, awake(self._timeout, scope.cancel):
            await self._threads.wait_until_fewer(self._most_left_behind)
            return
        if not self.given_up:
            self.given_up = True
            raise TooManyRejections(
                f"the check {self.name!r} has {self._threads.abandoned} calls that took longer than "
                f"{self._timeout:g} s and have still not ended",
                hint="give the function a time limit of its own, then run again",
            )


class _Once:
    """Counts a call when it ends or when it is given up, whichever comes first: that is progress too."""

    def __init__(self, count: Callable[[float], object], began: float) -> None:
        self._count, self._began, self._counted = count, began, False

    def __call__(self) -> None:
        if not self._counted:
            self._counted = True
            self._count(time.monotonic() - self._began)


def _copied(completion: Completion) -> Completion:
    """The completion for a function of the user's, which may change what it is given: no record has that."""
    prompt = completion.prompt
    messages = tuple(Message(role=each["role"], content=each["content"]) for each in prompt.messages)
    return replace(completion, prompt=replace(prompt, messages=messages, selected_words=dict(prompt.selected_words)))


def _said(error: Exception) -> str:
    """An error as the end of a sentence that begins with the name of the check."""
    return str(error) if isinstance(error, CheckFailed) else f"raised {described(error)}"
