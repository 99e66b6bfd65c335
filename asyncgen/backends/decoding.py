"""One batch while ``model.generate`` runs: what each row has said so far, and the two hooks that decide.

``Chooser`` (a logits processor) samples each record by itself and leaves generate's argmax no choice;
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

from asyncgen.backends.chat import Chat
from asyncgen.backends.sampling import Needs, Sampler, SamplingParameters
from asyncgen.backends.stops import NO_STOPS, Stops
from asyncgen.records import Completion, FinishReason, Prompt, Sampling

__all__ = ["Chooser", "Row", "Watch"]


@dataclass(slots=True)
class Row:
    """A prompt's answer in the making."""

    prompt: Prompt
    began: float
    """When the row was admitted, by ``perf_counter``."""
    stops: Stops = NO_STOPS
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    """None while it goes on."""
    error: str = ""
    seconds: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    """One for each token, if the prompt asks for them."""

    def end(self, reason: FinishReason, error: str = "") -> None:
        """Ends the row now."""
        self.reason, self.error, self.seconds = reason, error, perf_counter() - self.began

    def advance(self, token: int, eos_ids: frozenset[int], *, broken: bool, logprob: float | None = None) -> bool:
        """Takes the next token, or what stands in its place, and ends the row if it is the last one. Returns whether
        the token belongs to the answer.
        """
        if broken:
            self.end("error", f"logits not finite: the model computed NaN or infinity after {len(self.tokens)} tokens")
            return False
        if token in eos_ids:
            self.end("stop")
            return False
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.stops.reached(self.tokens):
            self.end("stop")
        elif len(self.tokens) >= self.prompt.max_new_tokens:
            self.end("length")
        return True

    def completion(self, chat: Chat) -> Completion:
        """What became of the prompt. Text ends before a stop string, and has no space around it."""
        reason = self.reason or "length"
        if reason == "error":
            return Completion(
                self.prompt, "", len(self.tokens), self.seconds, "error", self.error, retryable=bool(self.tokens)
            )
        text = chat.decode(self.tokens)
        cut = self.stops.cut(text)
        if cut is not None:
            text, reason = cut, "stop"
        return Completion(
            self.prompt,
            text.strip(),
            len(self.tokens),
            self.seconds,
            reason,
            retryable=reason != "cancelled",
            logprobs=tuple(self.logprobs),
            token_texts=chat.texts_of(self.tokens) if self.logprobs else (),
        )


class Chooser(LogitsProcessor):
    """Turns logits [B, V] into scores that are minus infinity but at each row's sampled token.

    ``prompts`` are the rows' token ids without padding; rows beyond them are fillers. A row whose logits are not
    finite is noted in ``broken``; its neighbours never see it.
    """

    def __init__(self, prompts: Sequence[Prompt], rows: int, *, default: Sampling, device: torch.device) -> None:
        fillers = rows - len(prompts)
        self._samplings = [prompt.sampling or default for prompt in prompts]
        self._prompts, self._device = prompts, device
        self._needs = Needs.of(self._samplings)
        self._parameters = SamplingParameters.of(self._samplings + [Sampling(0.0)] * fillers, device)
        seeds = [prompt.seed for prompt in prompts] + [0] * fillers
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._positions = torch.full_like(self._seeds, -1)
        self._sampler: Sampler | None = None
        self._seen: Tensor | None = None
        self._scores = torch.empty(0)
        self._tokens = torch.empty(0, dtype=torch.int64)
        self.broken = torch.zeros(rows, dtype=torch.bool, device=device)
        self.logprobs: Tensor | None = None
        """float32 [B] of the tokens picked last, if some row asks for them."""

    def asked_logprobs(self) -> list[float | None]:
        """Of each prompt's token picked last, if the prompt asks for it."""
        if self.logprobs is None:
            return [None] * len(self._samplings)
        found = self.logprobs.tolist()
        return [found[row] if sampling.logprobs else None for row, sampling in enumerate(self._samplings)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores for the next position. Valid until the next call."""
        logits = scores.to(self._device)
        if self._sampler is None:
            self._sampler = Sampler(logits.shape[0], logits.shape[1], self._device)
            self._scores = torch.full_like(scores, -torch.inf)
            self._seen = self._seen_in_prompts(logits) if self._needs.penalty else None
        else:
            self._scores.scatter_(1, self._tokens, -torch.inf)
            if self._seen is not None:
                self._seen.scatter_(1, self._tokens.to(self._device), True)
        self._positions += 1
        picked = self._sampler.pick(logits, self._seeds, self._positions, self._parameters, self._needs, self._seen)
        self.broken, self.logprobs = picked.broken, picked.logprobs
        self._tokens = picked.tokens[:, None].to(input_ids.device)
        return self._scores.scatter_(1, self._tokens, 0.0)

    def _seen_in_prompts(self, logits: Tensor) -> Tensor:
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=self._device)
        for row, prompt in enumerate(self._prompts):
            seen[row, list(prompt.prepared.token_ids)] = True
        return seen


class Watch(StoppingCriteria):
    """Follows the rows token by token. ``rows`` are the first of the batch's ``size``; the others are fillers.

    ``check(rows)`` is called before every token is read and may end rows, or raise to leave ``generate``;
    ``progress(tokens, rows_ended)`` after every token.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        *,
        chooser: Chooser,
        eos_ids: frozenset[int],
        check: Callable[[Sequence[Row]], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._rows = rows
        self._fillers = [True] * (size - len(rows))
        self._chooser, self._eos_ids = chooser, eos_ids
        self._check, self._progress = check, progress

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002  # generate's signature
        """Which rows have ended: bool [B]."""
        running = sum(row.reason is None for row in self._rows)
        self._check(self._rows)
        going = [(row, place) for place, row in enumerate(self._rows) if row.reason is None]
        latest, broken = input_ids[:, -1].tolist(), self._chooser.broken.tolist()
        logprobs = self._chooser.asked_logprobs()
        tokens = sum(
            row.advance(latest[place], self._eos_ids, broken=broken[place], logprob=logprobs[place])
            for row, place in going
        )
        self._progress(tokens, running - sum(row.reason is None for row in self._rows))
        ended = [row.reason is not None for row in self._rows] + self._fillers
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
