"""One batch while ``model.generate`` runs: what each row has said so far, and the two hooks that decide.

``Chooser`` (a logits processor) adds each record's own noise, so that generate's argmax picks what we sampled;
``Watch`` (a stopping criterion) reads the tokens that were picked and says which rows have ended. Rows that hold no
prompt (fillers) end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from asyncgen.backends.chat import Chat, cut_at_stop
from asyncgen.backends.sampling import SamplingParameters, perturb, token_keys
from asyncgen.records import Completion, FinishReason, Prompt

__all__ = ["Chooser", "Row", "Watch"]


@dataclass(slots=True)
class Row:
    """A prompt's answer in the making."""

    prompt: Prompt
    began: float
    """When the row was admitted, by ``perf_counter``."""
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    """None while it goes on."""
    error: str = ""
    seconds: float = 0.0

    def end(self, reason: FinishReason, error: str = "") -> None:
        """Ends the row now."""
        self.reason, self.error, self.seconds = reason, error, perf_counter() - self.began

    def completion(self, chat: Chat) -> Completion:
        """What became of the prompt. Text ends before a stop string, and has no space around it."""
        reason = self.reason or "length"
        if reason == "error":
            return Completion(
                self.prompt, "", len(self.tokens), self.seconds, "error", self.error, retryable=bool(self.tokens)
            )
        text = chat.decode(self.tokens)
        cut = cut_at_stop(text, chat.stops)
        if cut is not None:
            text, reason = cut, "stop"
        return Completion(self.prompt, text.strip(), len(self.tokens), self.seconds, reason)


class Chooser(LogitsProcessor):
    """Turns logits [B, V] into scores whose argmax is each row's sampled token.

    A row whose logits are not finite is noted in ``broken`` and gets harmless scores; its neighbours never see it.
    """

    def __init__(self, seeds: Sequence[int], parameters: SamplingParameters, device: torch.device) -> None:
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._parameters = parameters
        self._step = 0
        self.broken = torch.zeros(len(seeds), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores for the next position."""
        device = self._seeds.device
        logits = scores.to(device)
        # A logit may be -inf (a token ruled out); NaN, +inf, or nothing finite at all is an error.
        self.broken = ~logits.amax(dim=-1).isfinite()
        logits = logits.masked_fill(self.broken[:, None], 0.0)
        positions = torch.full_like(self._seeds, self._step)
        self._step += 1
        keys = token_keys(logits.shape[-1], device)
        return perturb(logits, self._seeds, positions, keys, self._parameters).to(input_ids.device)


class Watch(StoppingCriteria):
    """Follows the rows token by token. ``rows`` are the first of the batch's ``size``; the others are fillers.

    ``check`` is called after every token and may raise to leave ``generate``; ``progress(tokens, rows_ended)``
    after every token too.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        *,
        chooser: Chooser,
        chat: Chat,
        eos_ids: frozenset[int],
        check: Callable[[], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._rows = rows
        self._fillers = [True] * (size - len(rows))
        self._chooser, self._chat, self._eos_ids = chooser, chat, eos_ids
        self._check, self._progress = check, progress

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002  # generate's signature
        """Which rows have ended: bool [B]."""
        self._check()
        going = [(row, place) for place, row in enumerate(self._rows) if row.reason is None]
        before = sum(len(row.tokens) for row, _ in going)
        latest, broken = input_ids[:, -1].tolist(), self._chooser.broken.tolist()
        for row, place in going:
            self._advance(row, latest[place], broken=broken[place])
        self._progress(
            sum(len(row.tokens) for row, _ in going) - before, sum(row.reason is not None for row, _ in going)
        )
        ended = [row.reason is not None for row in self._rows] + self._fillers
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _advance(self, row: Row, token: int, *, broken: bool) -> None:
        if broken:
            row.end("error", f"logits not finite: the model computed NaN or infinity after {len(row.tokens)} tokens")
            return
        if token in self._eos_ids:
            row.end("stop")
            return
        row.tokens.append(token)
        if self._chat.stops_at(row.tokens):
            row.end("stop")
        elif len(row.tokens) >= row.prompt.max_new_tokens:
            row.end("length")
