"""The per-record sampler: what a row picks is a function of its logits, parameters, seed and position alone.

The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): with independent noise ``g = -log(-log(u))``, u uniform in
(0, 1), the argmax of ``score + g`` is distributed as ``softmax(score)``. The noise is a hash (``noise``). So that not
the whole vocabulary needs noise, a row picks twice: a block of 128 token ids, whose score is the logarithm of its
tokens' total mass, and then a token of that block. P(block) x P(token | block) is the softmax, whatever was dropped.

Order: repetition penalty, temperature, top-k, top-p, min-p (``truncation``), noise. Rows do not influence each other,
to the bit: every step is elementwise or along a row, in an order that the row's length decides. (torch's ``exp`` and
``log`` must give a value the same bits wherever it stands in a tensor; a test watches.)

Everything is a function of tensors with shapes known beforehand, and the host never waits for a device, except in
``Sampler.settle``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncgen.backends.noise import gumbel, token_keys
from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.truncation import kth_logit, largest, min_p_logit, nucleus_among, nucleus_logit

__all__ = ["Needs", "Picked", "Sampler", "SamplingParameters"]

_BLOCK = 128
_BLOCK_IDS = 1 << 32
"""Blocks are hashed as tokens from here on, which no vocabulary reaches."""
_CANDIDATES, _MANY_CANDIDATES, _MANY_TOKENS = 64, 128, 32_768
"""Likeliest tokens among which a row's top-p is looked for first, and that in vocabularies of at least so many tokens,
where looking at every token is dearer."""


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """What B rows picked."""

    tokens: Tensor
    """int64 [B]."""
    broken: Tensor
    """bool [B]: the row's logits hold NaN or plus infinity, or nothing finite; its token is 0. (Minus infinity is a
    token that is ruled out.)"""
    unsettled: Tensor
    """bool [B]: the row's top-p reaches beyond its largest candidates, and its token means nothing (``settle``)."""
    logprobs: Tensor | None
    """float32 [B], if some row asks for them: log-probability of the token by the model's own softmax, before penalty,
    temperature and filters."""


class Sampler:
    """Picks tokens for up to ``rows`` rows of ``vocabulary`` logits on ``device`` (one that knows float64).

    Owns work buffers of 4 bytes a logit: one, another if some row truncates, a third if some row penalises. They are
    made when first needed, and what they hold is never read. Not for two threads at once.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._rows, self._vocabulary, self._device = rows, vocabulary, device
        self._blocks = -(-vocabulary // _BLOCK)
        self._candidates = min(vocabulary, _CANDIDATES if vocabulary < _MANY_TOKENS else _MANY_CANDIDATES)
        self._keys = token_keys(self._blocks * _BLOCK, device).view(self._blocks, _BLOCK)
        self._block_keys = token_keys(self._blocks, device, _BLOCK_IDS)
        self._within = torch.arange(_BLOCK, device=device)
        self.buffers: dict[str, Tensor] = {}

    def pick(
        self,
        logits: Tensor,
        seeds: Tensor,
        positions: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        seen: Tensor | None = None,
    ) -> Picked:
        """``draw`` and ``settle``: for the CPU, where looking costs nothing."""
        picked = self.draw(logits, seeds, positions, parameters, needs, seen)
        return self.settle(picked, logits, seeds, positions, parameters, needs, seen)

    @torch.inference_mode()
    def draw(
        self,
        logits: Tensor,
        seeds: Tensor,
        positions: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        seen: Tensor | None = None,
        *,
        every_token: bool = False,
    ) -> Picked:
        """Each row's pick, from logits [B, V] of float32, bfloat16 or float16, which are only read.

        ``seeds`` and ``positions`` are int64 [B] (position: tokens the record has generated so far). ``seen`` bool
        [B, V] marks the tokens of the row's prompt and answer; it is needed if ``needs.penalty``. Of equally likely
        tokens, temperature 0 takes the first. Unless told to look at ``every_token``, top-p looks at the likeliest
        few; rows for which these do not suffice are ``unsettled``.
        """
        raw, maxima = logits, self._maxima(logits)
        model_best = maxima.amax(-1)
        # Before anything else is put into the buffer.
        log_mass = self._masses(logits, model_best).sum(-1, dtype=torch.float64).log_() if needs.logprobs else None
        if needs.penalty:
            assert seen is not None, "a repetition penalty needs the tokens seen"
            logits = self._penalised(logits, seen, parameters.penalty)
            maxima = self._maxima(logits)
        best = maxima.amax(-1)
        broken = ~best.isfinite()
        blocks, unsettled = maxima.argmax(-1), torch.zeros_like(broken)
        if needs.sampled:
            warm = parameters.temperature > 0
            temperature = torch.where(warm, parameters.temperature, 1.0)
            masses = self._masses(logits, best, temperature)
            edge = None
            if needs.largest_k or needs.top_p or needs.min_p:
                edge, unsettled = self._edge(logits, best, temperature, parameters, needs, masses, every_token)
                masses = self._masses_above(logits, edge)
            noisy = masses.to(torch.float64).log_().add_(gumbel(seeds, positions, self._block_keys))
            blocks = torch.where(warm, noisy.argmax(-1), blocks)
        tokens = blocks[:, None] * _BLOCK + self._within
        inside = logits.gather(-1, tokens.clamp(max=self._vocabulary - 1)).to(torch.float32)
        dropped = tokens >= self._vocabulary
        values = inside.to(torch.float64)
        if needs.sampled:
            scores = (inside - best[:, None]).div_(temperature[:, None])
            noisy = gumbel(seeds, positions, self._keys[blocks]).add_(scores)
            if edge is not None:
                dropped = dropped | (inside < edge[:, None])
            values = torch.where(warm[:, None], noisy, values)
        place = values.masked_fill_(dropped, -torch.inf).argmax(-1)
        chosen = tokens.gather(-1, place[:, None])[:, 0].masked_fill_(broken, 0)
        return Picked(chosen, broken, unsettled & ~broken, _logprobs(raw, chosen, model_best, log_mass))

    @torch.inference_mode()
    def settle(
        self,
        picked: Picked,
        logits: Tensor,
        seeds: Tensor,
        positions: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        seen: Tensor | None = None,
    ) -> Picked:
        """The same with all rows settled: those that are not are drawn again, alone, looking at every token.

        The host waits for the device.
        """
        if not needs.top_p or not picked.unsettled.any():
            return picked
        rows = picked.unsettled.nonzero()[:, 0]
        again = self.draw(
            logits.index_select(0, rows),
            seeds.index_select(0, rows),
            positions.index_select(0, rows),
            parameters.select(rows),
            needs,
            None if seen is None else seen.index_select(0, rows),
            every_token=True,
        )
        logprobs = picked.logprobs
        if logprobs is not None and again.logprobs is not None:
            logprobs = logprobs.index_copy(0, rows, again.logprobs)
        unsettled = torch.zeros_like(picked.unsettled)
        return Picked(picked.tokens.index_copy(0, rows, again.tokens), picked.broken, unsettled, logprobs)

    def _buffer(self, name: str, rows: int) -> Tensor:
        """float32 [rows, blocks x 128], with anything in it."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self._rows, self._blocks * _BLOCK, device=self._device)
        return self.buffers[name][:rows]

    def _maxima(self, logits: Tensor) -> Tensor:
        """The largest logit of each block, float32 [B, blocks]."""
        whole, rest = divmod(self._vocabulary, _BLOCK)
        maxima = logits[:, : whole * _BLOCK].view(len(logits), whole, _BLOCK).amax(-1)
        if rest:
            maxima = torch.cat((maxima, logits[:, whole * _BLOCK :].amax(-1, keepdim=True)), dim=-1)
        return maxima.to(torch.float32)

    def _penalised(self, logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
        """Logits of tokens seen divided by the penalty, or multiplied if negative (Keskar et al. 2019)."""
        vocabulary, each = self._vocabulary, penalty[:, None]
        above = self._buffer("penalised", len(logits))[:, :vocabulary]
        below = self._buffer("work", len(logits))[:, :vocabulary]
        above.copy_(logits).clamp_(min=0).div_(each)
        below.copy_(logits).clamp_(max=0).mul_(each)
        above.add_(below)
        return torch.where(seen, above, logits, out=above)

    def _masses(self, logits: Tensor, best: Tensor, temperature: Tensor | None = None) -> Tensor:
        """The blocks' sums of exp(score), float32 [B, blocks]; leaves exp(score) in the work buffer.

        score = (logit - best) / temperature: differences keep their digits whatever the offset, and cannot overflow.
        """
        work = self._buffer("work", len(logits))
        scores = torch.sub(logits, best[:, None], out=work[:, : self._vocabulary])
        if temperature is not None:
            scores.div_(temperature[:, None])
        scores.exp_()
        work[:, self._vocabulary :].zero_()
        return self._block_sums(work)

    def _masses_above(self, logits: Tensor, edge: Tensor) -> Tensor:
        """The same without the logits below the row's ``edge`` [B]; the work buffer is as ``_masses`` left it."""
        work = self._buffer("work", len(logits))
        # Compared into float32, this is one vectorised pass; a bool mask and masked_fill take ten times as long.
        mask = torch.ge(logits, edge[:, None], out=self._buffer("mask", len(logits))[:, : self._vocabulary])
        work[:, : self._vocabulary].mul_(mask)
        return self._block_sums(work)

    def _block_sums(self, work: Tensor) -> Tensor:
        return work.view(-1, self._blocks, _BLOCK).sum(-1)

    def _edge(
        self,
        logits: Tensor,
        best: Tensor,
        temperature: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        masses: Tensor,
        every_token: bool,
    ) -> tuple[Tensor, Tensor]:
        """The smallest logit that a row keeps, float32 [B], and which rows are unsettled; see ``_masses_above``."""
        edge, unsettled = torch.full_like(best, -torch.inf), torch.zeros_like(best, dtype=torch.bool)
        few = self._candidates if needs.top_p and not every_token else 0
        if count := min(self._vocabulary, max(needs.largest_k, few)):
            likeliest = largest(logits, count).to(torch.float32)
        if needs.largest_k:
            edge = kth_logit(likeliest, parameters.top_k)
        if needs.top_p:
            masses = self._masses_above(logits, edge) if needs.largest_k else masses
            wanted = masses.sum(-1, dtype=torch.float64).mul_(parameters.top_p)
            if every_token:
                found = nucleus_logit(best, wanted, lambda logit: self._masses_at(logits, logit))
            else:
                # No more of them than always, whatever a neighbour's top-k: they decide how the row is settled.
                scores = (likeliest[:, :few] - best[:, None]).div_(temperature[:, None])
                found, enough = nucleus_among(likeliest[:, :few], scores, edge, wanted)
                unsettled = (parameters.top_p < 1) & ~enough if few < self._vocabulary else unsettled
            edge = torch.where(parameters.top_p < 1, torch.maximum(edge, found), edge)
        if needs.min_p:
            edge = torch.maximum(edge, min_p_logit(best, temperature, parameters.log_min_p))
        return edge, unsettled

    def _masses_at(self, logits: Tensor, edge: Tensor) -> Tensor:
        """What ``_masses_above`` would leave in each row, float64 [B], without touching the work buffer."""
        mask = self._buffer("mask", len(logits))
        torch.ge(logits, edge[:, None], out=mask[:, : self._vocabulary])
        mask[:, self._vocabulary :].zero_()
        return self._block_sums(mask.mul_(self._buffer("work", len(logits)))).sum(-1, dtype=torch.float64)


def _logprobs(logits: Tensor, tokens: Tensor, best: Tensor, log_mass: Tensor | None) -> Tensor | None:
    if log_mass is None:
        return None
    chosen = logits.gather(-1, tokens[:, None])[:, 0].to(torch.float64)
    return chosen.sub_(best).sub_(log_mass).to(torch.float32)
