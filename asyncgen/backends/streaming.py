"""An answer's text while it is made: pieces that, joined, are the completion's text, and never more than that.

What may still change is held back: bytes that are not yet a character, the beginning of what may become a stop string,
and white space, which a completion does not end with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from asyncgen.backends.stops import Stops
from asyncgen.records import Prompt

__all__ = ["Piece", "Progress", "Reader", "TextReader", "TokenDecoder", "TokenReader"]

Piece = str | Sequence[int]
"""A few more tokens of an answer, or their text where a backend knows no tokens."""


class Progress(Protocol):
    """Is told, on the event loop, how the answer to a prompt that is streamed grows."""

    def __call__(self, prompt: Prompt, at: int, piece: Piece, /) -> object:
        """``piece`` begins at the answer's token (or character) number ``at``; what was made again comes again."""


class Reader(Protocol):
    """Makes the text of one answer from its pieces."""

    def add(self, piece: Piece) -> str:
        """The text that is certain now and was not before."""


class TextReader:
    """From pieces of text."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._held = ""
        self._begun = self._ended = False

    def add(self, piece: Piece) -> str:
        """See ``Reader.add``."""
        if self._ended:
            return ""
        held = self._held + str(piece)
        cut = self._stops.cut(held)
        self._ended = cut is not None
        certain = held[: len(held) - self._stops.undecided(held)] if cut is None else cut
        certain = certain.rstrip()
        self._held = held[len(certain) :]
        piece = certain if self._begun else certain.lstrip()
        self._begun |= bool(piece)
        return piece


class TokenDecoder:
    """The text of token ids, piece by piece. A few tokens before the new ones are decoded with them and taken away
    again, for some tokenizers write a token otherwise at the beginning of a text.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        byte_tokens: AbstractSet[int] = frozenset(),
        silent: AbstractSet[int] = frozenset(),
    ) -> None:
        """``byte_tokens`` are single bytes, of which a row of neighbours is either all text or none; what is ``silent``
        between them is never text.
        """
        self._decode, self._byte_tokens, self._silent = decode, byte_tokens, silent
        self._within_bytes = False
        self._tokens: list[int] = []
        self._read, self._known = 0, ""
        """How many of ``tokens`` are read already, and their text."""

    def add(self, piece: Sequence[int]) -> str:
        """The text that is whole with these tokens and was not before."""
        self._tokens += piece
        for token in piece:
            if token not in self._silent:
                self._within_bytes = token in self._byte_tokens
        if self._within_bytes:
            return ""
        text = self._decode(self._tokens)
        if text.endswith("\ufffd") or len(text) <= len(self._known):  # a part of a character, or no text at all
            return ""
        fresh = text[len(self._known) :]
        del self._tokens[: self._read]
        self._read = len(self._tokens)
        self._known = self._decode(self._tokens)
        return fresh


class TokenReader:
    """From token ids."""

    def __init__(self, stops: Stops, decoder: TokenDecoder) -> None:
        self._text, self._decoder = TextReader(stops), decoder

    def add(self, piece: Piece) -> str:
        """See ``Reader.add``."""
        assert not isinstance(piece, str)
        return self._text.add(self._decoder.add(piece))
