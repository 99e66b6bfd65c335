"""Every slot's row, as the device knows it: what a step reads and changes, without the host.

There is one element more than slots, the last one nobody's: what fills a shape is written there. The device ends a row
itself (end of text, length), so that its slot does nothing more; the host, which reads a group of steps later, may end
it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncgen.backends.sampling import Picked
from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.slots.gpu.recording import WARM_UPS
from asyncgen.records import Sampling

__all__ = ["BROKEN", "NOTHING", "State"]

NOTHING, BROKEN = -1, -2
"""In place of a token: the slot had no row that goes on; its logits were not finite."""

PARAMETERS = ("temperature", "top_k", "top_p", "log_min_p", "penalty")


@dataclass(frozen=True, slots=True)
class Shape:
    """How large everything is."""

    slots: int
    pages: int
    """Pages that a row may have."""
    steps: int
    """Steps of a group."""


class State:
    """The slots' tensors, S + 1 elements each; int32 where nothing else is said."""

    def __init__(self, shape: Shape, vocabulary: int, eos_ids: Iterable[int], device: torch.device) -> None:
        slots, lines = shape.slots + 1, 1 + max(shape.steps, WARM_UPS)

        def zeros(*sizes: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        self.live = zeros(slots, dtype=torch.bool)
        """bool: whether the row goes on."""
        self.tokens = zeros(slots, dtype=torch.int64)
        """int64: the latest token, which is not in the cache yet."""
        self.lengths = zeros(slots)
        """Its own tokens in the cache."""
        self.starts = zeros(slots)
        """Tokens of its prefix."""
        self.drawn = zeros(slots, dtype=torch.int64)
        """int64: tokens sampled."""
        self.limits = zeros(slots)
        """Tokens to sample at most."""
        self.seeds = zeros(slots, dtype=torch.int64)
        """int64."""
        self.prefix = torch.full_like(self.lengths, -1)
        """Its prefix among the shared ones; -1: none."""
        self.table = zeros(slots, shape.pages)
        """[S + 1, P]: its pages, in the order of its own tokens."""
        self.parameters = SamplingParameters.of([Sampling()] * slots, device)
        self.codes = torch.full((lines, slots), NOTHING, dtype=torch.int32, device=device)
        """[lines, S + 1]: what each row got in each step of a group, a token or a code above; the first line is for
        rows that begin before its first step. There are lines enough for the steps of a recorder, too."""
        self.logprobs = zeros(lines, slots, dtype=torch.float32)
        """float32, like ``codes``, where a row asks for them."""
        self.line = torch.ones(1, dtype=torch.int64, device=device)
        """int64 [1]: the line that the next step writes."""
        self._ends = zeros(vocabulary, dtype=torch.bool)
        self._ends[torch.tensor([token for token in eos_ids if token < vocabulary], dtype=torch.int64)] = True
        self.seen: Tensor | None = None
        """bool [S + 1, V]: tokens of prompt and answer of rows with a penalty, once there are such rows."""
        self._vocabulary = vocabulary

    @property
    def read_by_host(self) -> tuple[Tensor, Tensor]:
        """What the host reads after each group."""
        return self.codes, self.logprobs

    def begin(self, rows: Mapping[str, Tensor], parameters: SamplingParameters, picked: Picked, needs: Needs) -> None:
        """Rows [R] begin with the tokens they picked. ``rows`` has their slots, and what these hold."""
        slots = rows["slots"].long()
        for name in ("lengths", "starts", "limits", "seeds", "prefix", "table"):
            getattr(self, name).index_copy_(0, slots, rows[name])
        for name in PARAMETERS:
            getattr(self.parameters, name).index_copy_(0, slots, getattr(parameters, name))
        self.tokens.index_copy_(0, slots, picked.tokens)
        self.drawn.index_fill_(0, slots, 1)
        if needs.penalty:
            # No plain True: it would be copied from the host, which a capture forbids.
            self.penalise().index_put_((slots, picked.tokens), torch.ones_like(picked.broken))
        self.codes[0].index_copy_(0, slots, torch.where(picked.broken, BROKEN, picked.tokens).int())
        if picked.logprobs is not None:
            self.logprobs[0].index_copy_(0, slots, picked.logprobs)
        goes_on = ~(picked.broken | self._ends[picked.tokens]) & (rows["limits"] > 1)
        self.live.index_copy_(0, slots, goes_on)

    def take(self, picked: Picked, needs: Needs) -> None:
        """The rows of all S slots go on by what they picked, those that are live."""
        slots = len(picked.tokens)
        live, tokens, drawn = self.live[:slots], self.tokens[:slots], self.drawn[:slots]
        codes = torch.where(picked.broken, BROKEN, picked.tokens).masked_fill_(~live, NOTHING)
        self.codes[:, :slots].index_copy_(0, self.line, codes[None].int())
        if picked.logprobs is not None:
            self.logprobs[:, :slots].index_copy_(0, self.line, picked.logprobs[None])
        tokens.copy_(torch.where(live, picked.tokens, tokens))
        if needs.penalty:
            seen, places = self.penalise()[:slots], picked.tokens[:, None]
            seen.scatter_(1, places, seen.gather(1, places) | live[:, None])
        self.lengths[:slots] += live
        drawn += live
        live &= ~(picked.broken | self._ends[picked.tokens]) & (drawn < self.limits[:slots])
        self.line += 1

    def start_group(self) -> None:
        """Empties the lines."""
        self.codes.fill_(NOTHING)
        self.line.fill_(1)

    def reset(self) -> None:
        """No slot has a row."""
        self.live.fill_(False)
        self.start_group()

    @property
    def penalty_bytes(self) -> int:
        """What ``penalise`` allocates, if it has not yet."""
        return 0 if self.seen is not None else len(self.tokens) * self._vocabulary

    def penalise(self) -> Tensor:
        """``seen``, made if need be; from now on every token is marked there."""
        if self.seen is None:
            shape = (len(self.tokens), self._vocabulary)
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.tokens.device)
        return self.seen

    def see(self, prompts: Mapping[int, Sequence[int]]) -> None:
        """The rows that begin in these slots have seen their prompts' tokens, and no others. The host does not wait."""
        seen = self.penalise()
        slots = np.fromiter(prompts, np.int64, len(prompts))
        places = np.concatenate([slot * self._vocabulary + np.asarray(ids) for slot, ids in prompts.items()])
        seen.index_fill_(0, self._sent(slots), False)
        seen.view(-1).index_fill_(0, self._sent(places), True)

    def _sent(self, numbers: NDArray[np.int64]) -> Tensor:
        """The numbers on the device."""
        here, device = torch.from_numpy(numbers), self.tokens.device
        return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here
