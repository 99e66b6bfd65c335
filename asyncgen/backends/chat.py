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
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, cast

from asyncgen.backends.stops import Stops
from asyncgen.backends.streaming import TokenDecoder, TokenReader
from asyncgen.errors import PromptRefused
from asyncgen.records import Given, Message, Prompt, conversation_of

__all__ = ["PLAIN_STOP", "Chat", "render_plain"]

_KNOWN = 256
"""Sets of stop strings that are remembered."""

PLAIN_STOP = "\nUser:"
"""Ends an answer in the plain format."""

_PLAIN_NOTICE = (
    "The model has no chat template: prompts are written as 'User: ...' and 'Assistant: ...' turns, "
    "and a text ends where the next 'User:' begins."
)
_SYSTEM_NOTICE = (
    "Without a system message, the model's chat template inserts one of its own; "
    "set system_prompt, or begin your messages with one, to choose what it says."
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


def render_plain(messages: Sequence[Message]) -> str:
    """The plain format of the module's docstring, ready for the answer."""
    labels = {"user": "User: ", "assistant": "Assistant: "}
    turns = [labels.get(message["role"], "") + message["content"].strip() for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


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
        self._stops = tuple(stops)
        self._known_stops = lru_cache(_KNOWN)(lambda texts: Stops(texts, self.decode))
        self._prefix = self._special_prefix()

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

    def encode(self, given: Given) -> tuple[int, ...]:
        """The prompt's token ids: special tokens once, where the template or the tokenizer puts them. A text is gone on
        from as it stands, and so are token ids.
        """
        if isinstance(given, str):
            return (*self._prefix, *self._encode(given))
        if (messages := conversation_of(given)) is None:
            return cast("tuple[int, ...]", given)
        prefix = () if self.has_template else self._prefix
        return (*prefix, *self._encode(self.render(messages)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def stops_of(self, prompt: Prompt) -> Stops:
        """What ends the answer to this prompt."""
        texts = self._stops if prompt.stop is None else prompt.stop
        plain = not self.has_template and prompt.given is None
        return self._known_stops((*texts, PLAIN_STOP) if plain else texts)

    def reader(self, prompt: Prompt) -> TokenReader:
        """Makes the text of the answer to ``prompt`` while its tokens come."""
        return TokenReader(self.stops_of(prompt), self._decoder())

    def texts_of(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """What each token adds to the text, nothing where it ends within a character. Joined, they are the text, unless
        the tokenizer writes pieces otherwise than the whole.
        """
        decoder = self._decoder()
        texts = [decoder.add((token,)) for token in tokens]
        known, whole = "".join(texts), self.decode(tokens)
        if texts and whole.startswith(known):
            texts[-1] += whole[len(known) :]
        return tuple(texts)

    def _decoder(self) -> TokenDecoder:
        return TokenDecoder(self.decode, byte_tokens=self._byte_tokens, silent=self._silent_tokens)

    @cached_property
    def _silent_tokens(self) -> frozenset[int]:
        """Tokens that are never text."""
        return frozenset(self._tokenizer.all_special_ids)

    @cached_property
    def _byte_tokens(self) -> frozenset[int]:
        """Tokens that stand for a byte each, where a tokenizer falls back to such (Llama 2, Gemma)."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = dict(zip(names, self._tokenizer.convert_tokens_to_ids(names), strict=True))
        return frozenset(
            token
            for name, token in ids.items()
            if token is not None and self._tokenizer.convert_ids_to_tokens(token) == name
        )

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
