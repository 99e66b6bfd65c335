"""What a caller asks for, checked before anything waits: errors name the argument, what was found, what is allowed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import index
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, cast

from asyncgen import seeds
from asyncgen.config import Generation
from asyncgen.records import Message, Prompt, Sampling

__all__ = ["Asked", "Asking", "Question", "WhenFull", "check_names", "check_when_full", "checked", "understood"]

Question: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, object]]
"""Messages (``[{"role": "user", "content": "Hello"}]``), rendered by the model's chat template; or a text or token ids,
which are gone on from as they stand."""

WhenFull = Literal["wait", "raise"]


class Asking(TypedDict, total=False):
    """What may be said about an answer. What is left out, or None, is as the engine's configuration says."""

    temperature: float | None
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None
    """Keep this many likeliest tokens; 0 keeps all."""
    top_p: float | None
    """Keep the likeliest tokens that together reach this probability; 1 keeps all."""
    min_p: float | None
    """Drop tokens less likely than this share of the likeliest one's probability; 0 drops none."""
    repetition_penalty: float | None
    """Above 1 makes tokens that prompt or answer hold less likely; 1 changes nothing."""
    max_new_tokens: int | None
    """Longest answer, in tokens."""
    stop: str | Sequence[str] | None
    """What ends the answer, and is no part of it."""
    seed: int | None
    """0 to 2**63 - 1. With the same seed the answer is the same, whoever else asks for what (on a CPU in float32, to
    the bit). Left out, one is drawn; ``completion.prompt.seed`` tells which."""
    logprobs: bool | None
    """Whether ``completion.logprobs`` is to say how likely the model found each token."""
    shared: int | None
    """The first so many messages are the same in many calls: they are computed once."""
    priority: int | None
    """Of those who wait, the highest goes first, but for the few that are next already; 0 if it is left out."""
    timeout: float | None
    """Seconds for all of it, the waiting included; left out, there is no end."""
    when_full: WhenFull | None
    """Whether to ``wait`` where the engine has as many requests as it may have, or to ``raise`` EngineFull. Not for
    ``map``, which waits."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, understood."""

    prompt: Prompt
    priority: int
    timeout: float | None
    when_full: WhenFull


_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_ROLES = ("system", "user", "assistant")
_KNOWN = tuple(Asking.__annotations__)


def understood(
    question: object,
    asking: Asking,
    defaults: Generation,
    when_full: WhenFull,
    *,
    place: int | None = None,
    streamed: bool = False,
) -> Asked:
    """The question as a prompt, and how to wait for its answer. In a series it has a ``place``, from 0: its index, from
    which its seed follows. Raises TypeError or ValueError.
    """
    check_names(asking)
    said: dict[str, Any] = {name: value for name, value in asking.items() if value is not None}
    given = _given(question)
    messages = given if isinstance(given, tuple) and not isinstance(given[0], int) else ()
    chosen = {name: _number(name, said.get(name, getattr(defaults, name))) for name in _NUMBERS}
    top_k = said.get("top_k", defaults.top_k)
    _check_whole("top_k", top_k, 0, 2**31)
    seed = said["seed"] if "seed" in said else secrets.randbits(63)
    new = said.get("max_new_tokens", defaults.max_new_tokens)
    shared, priority = said.get("shared", 0), said.get("priority", 0)
    _check_whole("seed", seed, 0, 2**63)
    if place is not None and "seed" in said:
        seed = seeds.sampling_seed(seed, place, 1)
    _check_whole("max_new_tokens", new, 1, 2**31)
    _check_whole("shared", shared, 0, max(1, len(messages)))
    _check_whole("priority", priority, -(2**31), 2**31)
    prompt = Prompt(
        index=place or 0,
        messages=messages,
        given=None if messages else cast("str | tuple[int, ...]", given),
        seed=seed,
        max_new_tokens=new,
        sampling=Sampling(**chosen, top_k=top_k, logprobs=_flag("logprobs", said.get("logprobs", False))),
        stop=_stops(said.get("stop", defaults.stop)),
        shared=shared,
        alone=True,
        streamed=streamed,
    )
    return Asked(prompt, priority, _timeout(said.get("timeout")), check_when_full(said.get("when_full", when_full)))


class _Checked(tuple[Any, ...]):
    """Token ids or messages that ``checked`` has seen."""

    __slots__ = ()


def checked(question: Question) -> Question:
    """The same, which need not be looked at again each time it is asked. Raises TypeError or ValueError."""
    given = _given(question)
    return given if isinstance(given, str) else _Checked(given)


def check_names(asking: Asking) -> None:
    """Raises TypeError for a name that means nothing."""
    if unknown := [name for name in asking if name not in _KNOWN]:
        close = get_close_matches(unknown[0], _KNOWN, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_KNOWN)}"
        raise TypeError(f"unknown argument {unknown[0]!r}; {hint}")


def check_when_full(value: object) -> WhenFull:
    """``value``, if it is one of the two. Raises ValueError."""
    if value not in ("wait", "raise"):
        raise ValueError(f"when_full: found {value!r}, expected 'wait' or 'raise'")
    return value


def _given(question: object) -> str | tuple[int, ...] | tuple[Message, ...]:
    """``question`` as a text, token ids or a conversation."""
    if isinstance(question, _Checked):
        return question
    if isinstance(question, str):
        if not question:
            raise ValueError("prompt: found an empty text, expected something to go on from")
        return _characters("prompt", question)
    if isinstance(question, Mapping | bytes) or not isinstance(question, Iterable):
        raise TypeError(
            f"prompt: found {type(question).__name__}, expected a text, token ids, or messages as in "
            '[{"role": "user", "content": "Hello"}]'
        )
    items = tuple(question)
    if not items:
        raise ValueError("prompt: found nothing, expected a text, token ids or at least one message")
    if isinstance(items[0], SupportsIndex) and not isinstance(items[0], bool):
        return tuple(_token(number, item) for number, item in enumerate(items))
    return tuple(_message(number, item) for number, item in enumerate(items))


def _token(number: int, item: object) -> int:
    try:
        return index(cast("SupportsIndex", item))
    except TypeError:
        raise TypeError(f"prompt[{number}]: found {type(item).__name__}, expected token ids throughout") from None


def _message(number: int, item: object) -> Message:
    where = f"messages[{number}]"
    if not isinstance(item, Mapping):
        raise TypeError(f'{where}: found {type(item).__name__}, expected {{"role": ..., "content": ...}}')
    if unknown := [key for key in item if key not in ("role", "content")]:
        raise ValueError(f"{where}: found the key {unknown[0]!r}, expected role and content")
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise ValueError(f"{where}.role: found {role!r}, expected one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise TypeError(f"{where}.content: found {type(content).__name__}, expected a text")
    return Message(role=role, content=_characters(f"{where}.content", content))


def _stops(stop: object) -> tuple[str, ...]:
    stops: tuple[object, ...] = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    for each in stops:
        if not isinstance(each, str) or not each:
            raise ValueError(f"stop: found {each!r}, expected a text of at least one character, or several of them")
        _characters("stop", each)
    return cast("tuple[str, ...]", stops)


def _characters(name: str, text: str) -> str:
    """``text``, if a tokenizer can read it. Python's texts may hold halves of characters, as JSON does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: found {text[error.start]!r} at {error.start}, which is half of a character"
        ) from None
    return text


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: found {value!r}, expected True or False")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: found {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: found a number of {len(str(abs(value)))} digits, which is too large") from None


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    seconds = _number("timeout", value)
    if not seconds >= 0:
        raise ValueError(f"timeout: found {value!r}, expected seconds, 0 or more")
    return seconds


def _check_whole(name: str, value: object, least: int, below: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: found {value!r}, expected a whole number")
    if not least <= value < below:
        raise ValueError(f"{name}: found {value}, expected at least {least} and below {below}")
