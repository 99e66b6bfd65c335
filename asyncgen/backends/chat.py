"""Messages to token ids, and generated tokens to text. Knows a tokenizer when it is given one, and nothing of models.

A tokenizer with a chat template renders with it, exactly as the model was trained. One without gets a plain format::

    {system message}

    User: {question}

    Assistant: {answer}

    User: {question}

    Assistant:

A model that follows it writes its answer and, not knowing where to end, often the next question too; so its text ends
before the next ``User:`` at the start of a line, as with a stop string of the user's.

A template that asks for today's date is told a fixed one: a record is a function of (config, seed, index), not of the
day it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from asyncgen.errors import PromptRefused
from asyncgen.records import Message

__all__ = ["PLAIN_STOP", "Chat", "cut_at_stop", "render_plain"]

PLAIN_STOP = "\nUser:"
"""Ends an answer in the plain format."""

_PLAIN_NOTICE = (
    "The model has no chat template: prompts are written as 'User: ...' and 'Assistant: ...' turns, "
    "and a text ends where the next 'User:' begins."
)
_SYSTEM_NOTICE = (
    "Without a system_prompt, the model's chat template inserts a system message of its own; "
    "set system_prompt to choose what it says."
)
_DAY = "01 Jan 2026"
_CODES = {
    "%Y": "2026", "%y": "26", "%m": "01", "%-m": "1", "%d": "01", "%-d": "1", "%e": " 1", "%j": "001",
    "%B": "January", "%b": "Jan", "%A": "Thursday", "%a": "Thu", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{code}', '{value}')" for code, value in _CODES.items())
    + " }}{%- endmacro -%}"
)
"""Put before a template, it hides transformers' ``strftime_now`` (which takes no argument that could set the day)."""
_TAIL_TOKENS = 8
"""Tokens decoded beyond a stop string's own bytes, so that it never begins at the edge of what is decoded."""


def render_plain(messages: Sequence[Message]) -> str:
    """The plain format of the module's docstring, ready for the answer."""
    labels = {"user": "User: ", "assistant": "Assistant: "}
    turns = [labels.get(message["role"], "") + message["content"].strip() for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """``text`` before the first occurrence of any of ``stops``; None if there is none."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)] if found else None


def _with_fixed_day(template: str) -> str:
    return _FIXED_CLOCK + template if "strftime_now" in template else template


class Chat:
    """One tokenizer, used from several threads at once."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        """``tokenizer`` is a transformers one, and is this object's own from now on; ``stops`` are the user's."""
        self._tokenizer = tokenizer
        self._lock = Lock()
        # The Rust tokenizer is safe to share as long as nobody changes its padding and truncation; we want neither.
        self._rust = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._rust is not None:
            self._rust.no_padding()
            self._rust.no_truncation()
        self.has_template = bool(tokenizer.chat_template)
        self._template = _with_fixed_day(tokenizer.get_chat_template()) if self.has_template else ""
        self.stops = tuple(stops) if self.has_template else (*stops, PLAIN_STOP)
        self._ends_stops: dict[int, bool] = {}
        self._prefix = () if self.has_template else self._special_prefix()
        self._tail = max((len(stop.encode()) for stop in self.stops), default=0) + _TAIL_TOKENS

    def notices(self, system_prompt: str | None) -> tuple[str, ...]:
        """What a user with this system prompt should know about how prompts are rendered."""
        if not self.has_template:
            return (_PLAIN_NOTICE,)
        return (_SYSTEM_NOTICE,) if system_prompt is None and self._inserts_system_message() else ()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text, up to where the answer begins. Raises PromptRefused if the template does."""
        if not self.has_template:
            return render_plain(messages)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                date_string=_DAY,
            )
        except Exception as error:  # a template is a stranger's program: 1 / 0, 'a' * 10**12, its own raise_exception
            raise self._refused(messages, error) from error
        assert isinstance(text, str)
        return text

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids: special tokens once, where the template or the tokenizer puts them."""
        return (*self._prefix, *self._encode(self.render(messages)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def stops_at(self, tokens: Sequence[int]) -> bool:
        """Whether the last token completed a stop string; decodes only the end, and only after tokens that can."""
        if not self.stops or not self._may_end_a_stop(tokens[-1]):
            return False
        tail = self.decode(tokens[-self._tail :])
        return any(stop in tail for stop in self.stops)

    def _may_end_a_stop(self, token: int) -> bool:
        """Whether a stop string's last character may come with this token: asked for every token of every row, so each
        token is decoded once. A token that is not a text by itself (part of a character, say) may.
        """
        known = self._ends_stops.get(token)
        if known is None:
            text = self.decode([token])
            known = not text or "\ufffd" in text or any(stop[-1].isspace() or stop[-1] in text for stop in self.stops)
            self._ends_stops[token] = known
        return known

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        if self._rust is not None:
            ids: list[int] = self._rust.encode(text, add_special_tokens=special).ids
            return ids
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _special_prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of a text (usually nothing or a begin-of-text token). What it would put
        behind is left out: the text goes on.
        """
        plain, full = self._encode("a"), self._encode("a", special=True)
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
        return ()

    def _inserts_system_message(self) -> bool:
        """Whether what leads up to a system message is there without one too, and more than the question follows."""
        try:
            given = self.render([Message(role="system", content="SYSTEM"), Message(role="user", content="QUESTION")])
            absent = self.render([Message(role="user", content="QUESTION")])
        except PromptRefused:  # it knows no system role, or wants a longer conversation
            return False
        header, found, _ = given.partition("SYSTEM")
        return bool(found) and absent.startswith(header) and not absent.startswith("QUESTION", len(header))

    @staticmethod
    def _refused(messages: Sequence[Message], error: Exception) -> PromptRefused:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        system = any(message["role"] == "system" for message in messages)
        return PromptRefused(
            f"prompt refused: the model's chat template does not take the conversation (roles: {roles}): {error}",
            hint="set system_prompt to null: some templates know no system role"
            if system
            else "the template may want user and assistant turns to alternate, beginning with the user",
        )
