"""What a step must know of every slot, as tensors on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncgen.backends.sampling import Picked
from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.records import Sampling

__all__ = ["State"]


class State:
    """One element a slot, int64 where nothing else is said. Slots that never have a row keep their zeros."""

    def __init__(self, size: int, vocabulary: int, device: torch.device) -> None:
        self.tokens = torch.zeros(size, dtype=torch.int64, device=device)
        """The latest token, which is not in the cache yet."""
        self.lengths = torch.zeros_like(self.tokens)
        """The row's own tokens in the cache."""
        self.starts = torch.zeros_like(self.tokens)
        """Tokens of its prefix."""
        self.drawn = torch.zeros_like(self.tokens)
        """Tokens sampled."""
        self.seeds = torch.zeros_like(self.tokens)
        self.parameters = SamplingParameters.of([Sampling()] * size, device)
        self._seen: Tensor | None = None  # bool [size, vocabulary], from the first penalty on
        self._vocabulary = vocabulary

    def seat(self, slots: Tensor, seats: Sequence[Seat], start: int) -> None:
        """Begins rows, whose own prompts are in the cache, behind a prefix of ``start`` tokens; slots int64 [n]."""
        device = slots.device
        self.lengths[slots] = torch.tensor([seat.length for seat in seats], device=device)
        self.starts[slots] = start
        self.drawn[slots] = 0
        self.seeds[slots] = torch.tensor([seat.row.prompt.seed for seat in seats], device=device)
        self.parameters.write(slots, [seat.sampling for seat in seats])
        for seat in seats:
            if seat.sampling.repetition_penalty != 1:
                if self._seen is None:
                    shape = (len(self.tokens), self._vocabulary)
                    self._seen = torch.zeros(shape, dtype=torch.bool, device=device)
                prompt = torch.tensor(seat.row.prompt.prepared.token_ids, device=device)
                self._seen[seat.slot] = False
                self._seen[seat.slot, prompt] = True

    def seen(self, slots: Tensor, needs: Needs) -> Tensor | None:
        """The tokens of prompt and answer, bool [n, vocabulary], if some row has a penalty."""
        return self._seen[slots] if self._seen is not None and needs.penalty else None

    def take(self, slots: Tensor, picked: Picked) -> None:
        """Records the tokens that rows have picked."""
        self.tokens[slots] = picked.tokens
        self.drawn[slots] += 1
        if self._seen is not None:
            self._seen[slots, picked.tokens] = True
