"""What the host writes for each group of prompts: which token goes where, and which rows begin with it.

Plain numbers, decided purely; nothing here is torch's (``inbox`` says why). A long prompt, or prefix, comes in chunks
of the packed pass's T tokens; T is a multiple of a page, so each chunk begins one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asyncgen.backends.sampling_parameters import DTYPES, SamplingParameters
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu.inbox import Numbers, Place
from asyncgen.backends.slots.gpu.lanes import ROWS, TILE

__all__ = ["Piece", "Widths", "chunks", "lane_numbers", "lane_places", "packed_numbers", "packed_places", "row_numbers"]


@dataclass(frozen=True, slots=True)
class Widths:
    """The fixed sizes of a packed pass."""

    tokens: int
    """Packed tokens: a multiple of PAGE."""
    rows: int
    """Rows that may begin in it."""
    pages: int
    """Pages that a row may have."""
    prefix_pages: int
    """Pages that a prefix may have."""
    slots: int
    prefixes: int
    """Prefixes at a time."""

    @property
    def tiles(self) -> int:
        """Tiles of packed tokens, at most: each prompt may leave one unfilled."""
        return self.tokens // TILE + self.rows

    @property
    def lane_tiles(self) -> int:
        """Tiles of slots, at most: each prefix may leave one unfilled."""
        return -(-self.slots // ROWS) + self.prefixes


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one prompt, or of a prefix, that are computed in one pass."""

    tokens: Sequence[int]
    position: int
    """Of the first token, in the whole text."""
    pages: Sequence[int]
    """The pages of the whole prompt or prefix."""
    start: int = 0
    """The first token's place in these pages: a multiple of PAGE."""


def chunks(tokens: Sequence[int], position: int, pages: Sequence[int], width: int) -> Iterator[Piece]:
    """A prompt in pieces of at most ``width`` tokens."""
    for start in range(0, len(tokens), width):
        yield Piece(tokens[start : start + width], position + start, pages, start)


def packed_places(widths: Widths) -> dict[str, Place]:
    """What a packed pass is told; see ``Packed`` and ``State`` for what most of it means."""
    tokens, rows, tiles = widths.tokens, widths.rows, widths.tiles
    return {
        "token_ids": Place((tokens,), torch.int64),
        "positions": Place((tokens,), torch.int64),
        "pages": Place((tokens,)),
        "offsets": Place((tokens,)),
        "tile_start": Place((tiles,), fill=-1),
        "tile_first": Place((tiles,)),
        "tile_end": Place((tiles,)),
        "packed_prefix": Place((1,), fill=-1),
        "shared_row": Place((1,), torch.int64, fill=widths.prefixes),
        "shared_pages": Place((1, widths.prefix_pages)),
        "shared_length": Place((1,)),
        "earlier": Place((widths.pages,)),
        "earlier_length": Place((1,)),
        "keep": Place((rows,), torch.int64),
        "slots": Place((rows,), fill=widths.slots),
        "lengths": Place((rows,)),
        "starts": Place((rows,)),
        "limits": Place((rows,)),
        "seeds": Place((rows,), torch.int64),
        "prefix": Place((rows,), fill=-1),
        "table": Place((rows, widths.pages)),
        **{name: Place((rows,), dtype) for name, dtype in DTYPES.items()},
    }


def packed_numbers(pieces: Sequence[Piece]) -> Numbers:
    """Pieces, one after another."""
    numbers: dict[str, list[int]] = {
        name: [] for name in ("token_ids", "positions", "pages", "offsets", "tile_start", "tile_first", "tile_end")
    }
    first = 0
    for piece in pieces:
        count = len(piece.tokens)
        places = range(piece.start, piece.start + count)
        numbers["token_ids"] += piece.tokens
        numbers["positions"] += range(piece.position, piece.position + count)
        numbers["pages"] += [piece.pages[place // PAGE] for place in places]
        numbers["offsets"] += [place % PAGE for place in places]
        tiles = range(first, first + count, TILE)
        numbers["tile_start"] += tiles
        numbers["tile_first"] += [first] * len(tiles)
        numbers["tile_end"] += [first + count] * len(tiles)
        first += count
    return {**numbers}


def row_numbers(seats: Sequence[Seat], pieces: Sequence[Piece], widths: Widths, prefix: int, start: int) -> Numbers:
    """The rows that begin at the end of each piece, behind a prefix of ``start`` tokens."""
    table = np.zeros((len(seats), widths.pages), np.int32)
    for row, seat in zip(table, seats, strict=True):
        row[: len(seat.pages)] = seat.pages
    return {
        "keep": np.cumsum([len(piece.tokens) for piece in pieces]) - 1,
        "slots": [seat.slot for seat in seats],
        "lengths": [len(seat.own) for seat in seats],
        "starts": [start] * len(seats),
        "limits": [seat.row.prompt.max_new_tokens for seat in seats],
        "seeds": [seat.row.prompt.seed for seat in seats],
        "prefix": [prefix] * len(seats),
        "table": table.ravel(),
        **SamplingParameters.numbers([seat.sampling for seat in seats]),
    }


def lane_places(widths: Widths) -> dict[str, Place]:
    """What the steps are told: whose row has been ended by the host, and which slots have the same prefix."""
    return {
        "alive": Place((widths.slots,)),
        "tile_prefix": Place((widths.lane_tiles,), fill=-1),
        "tile_slots": Place((widths.lane_tiles, ROWS), fill=-1),
    }


def lane_numbers(prefix_of: dict[int, int], slots: int) -> Numbers:
    """``prefix_of``: each row's slot, and its prefix (-1: none)."""
    alive = [0] * slots
    members: dict[int, list[int]] = {}
    for slot, prefix in sorted(prefix_of.items()):
        alive[slot] = 1
        if prefix >= 0:
            members.setdefault(prefix, []).append(slot)
    tile_prefix, tile_slots = [], []
    for prefix, those in members.items():
        filled = those + [-1] * (-len(those) % ROWS)
        tile_prefix += [prefix] * (len(filled) // ROWS)
        tile_slots += filled
    return {"alive": alive, "tile_prefix": tile_prefix, "tile_slots": tile_slots}
