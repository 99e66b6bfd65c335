"""Where a prompt's shared beginning ends: a function of the plan alone, never of what happens to wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from asyncgen.backends.chat import Chat
from asyncgen.errors import PromptRefused
from asyncgen.records import Given, Message, conversation_of

__all__ = ["Boundaries"]

PROBES = ("0", "Zebra")
"""Two last turns that have nothing in common."""
SHORTEST = 16
"""Tokens below which sharing is not worth it."""
KEPT = 64


class Boundaries:
    """Shared beginnings by the messages that the plan shares: the tokens in which two renderings agree that continue
    them with different probes. Used from several threads at once.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._known: OrderedDict[tuple[object, ...], tuple[int, ...]] = OrderedDict()
        self._lock = Lock()

    def shared(self, given: Given, shared: int, tokens: Sequence[int]) -> int:
        """How many of a prompt's ``tokens`` are its shared beginning, of which the first ``shared`` messages are part;
        0 if there is none, or if this prompt's tokens happen to differ from it (a word that grows over the boundary).
        """
        messages = conversation_of(given)
        if messages is None or not 0 < shared < len(messages):
            return 0
        role = messages[shared]["role"]
        key = (role, *((message["role"], message["content"]) for message in messages[:shared]))
        with self._lock:
            beginning = self._known.get(key)
        if beginning is None:
            beginning = self._compute(messages[:shared], role)
            with self._lock:
                self._known[key] = beginning
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
        count = len(beginning)
        return count if SHORTEST <= count < len(tokens) and tuple(tokens[:count]) == beginning else 0

    def _compute(self, messages: Sequence[Message], role: str) -> tuple[int, ...]:
        try:
            one, other = (self._chat.encode([*messages, Message(role=role, content=probe)]) for probe in PROBES)
        except PromptRefused:
            return ()
        count = 0
        for mine, theirs in zip(one, other, strict=False):
            if mine != theirs:
                break
            count += 1
        return one[:count]
