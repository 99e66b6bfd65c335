"""The per-record sampler: what a row picks is a function of its logits, parameters, seed and position alone.

The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): with independent noise ``g = -log(-log(u))``, u uniform in
(0, 1), the argmax of ``score + g`` is distributed as ``softmax(score)``. The noise is a hash (``noise``). So that not
the whole vocabulary needs noise, a row picks twice: a block of 128 token ids, whose score is the logarithm of its
tokens' total mass, and then a token of that block. P(block) x P(token | block) is the softmax, whatever was dropped.

Order: repetition penalty, temperature, top-k, top-p, min-p (``truncation``), noise. Rows do not influence each other,
to the bit: every step is elementwise or along a row, in an order that the row's length decides. (torch's ``exp`` and
``log`` must give a value the same bits wherever it stands in a tensor; a test watches.)

Everything is a function of tensors with shapes known beforehand, and the host never waits for a device, except in
``Sampler.settle`` where rows are settled by torch. What passes over all logits is left to ``sampling_passes``, or on a
GPU to the kernels of ``sampling_triton``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.sampling_passes import BLOCK, Passes, Survey, TorchPasses
from asyncgen.backends.truncation import kth_logit, largest, min_p_logit, nucleus_among

__all__ = ["Needs", "Picked", "Sampler", "SamplingParameters"]

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

    ``passes`` look at all logits: torch's, unless others are given. Not for two threads at once.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device, passes: Passes | None = None) -> None:
        self._rows, self._vocabulary = rows, vocabulary
        self._candidates = min(vocabulary, _CANDIDATES if vocabulary < _MANY_TOKENS else _MANY_CANDIDATES)
        self._passes = passes or TorchPasses(rows, vocabulary, device)

    @property
    def penalty_bytes(self) -> int:
        """Work space that is taken when a row has a penalty for the first time."""
        return 0 if "penalised" in self.buffers else 4 * self._rows * BLOCK * -(-self._vocabulary // BLOCK)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The passes' work space."""
        return self._passes.buffers

    def pick(
        self,
        logits: Tensor,
        seeds: Tensor,
        positions: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        seen: Tensor | None = None,
    ) -> Picked:
        """``draw`` and ``settle``: for the CPU, where looking costs nothing, or passes that leave nothing to settle."""
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
        few; rows for which these do not suffice are ``unsettled``, unless the passes settle them.
        """
        raw, maxima, log_mass = logits, None, None
        if needs.logprobs:  # before anything else is put into the buffer
            maxima, log_mass = self._passes.own_softmax(logits)
            model_best = maxima.amax(-1)
        if needs.penalty:
            assert seen is not None, "a repetition penalty needs the tokens seen"
            logits, maxima = self._passes.penalised(logits, seen, parameters.penalty), None
        warm = temperature = edge = None
        if needs.sampled:
            warm = parameters.temperature > 0
            temperature = torch.where(warm, parameters.temperature, 1.0)
        survey = self._passes.survey(logits, temperature, maxima)
        broken = ~(survey.best.abs() < torch.inf)
        unsettled = torch.zeros_like(broken)
        if needs.sampled and (needs.largest_k or needs.top_p or needs.min_p):
            edge, unsettled = self._edge(survey, parameters, needs, every_token)
            survey = self._passes.above(survey, edge)
        tokens = self._passes.choose(survey, warm, edge, seeds, positions).masked_fill_(broken, 0)
        logprobs = None if log_mass is None else _logprobs(raw, tokens, model_best, log_mass)
        return Picked(tokens, broken, unsettled & ~broken, logprobs)

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

        The host waits for the device, unless the passes leave nothing to settle.
        """
        if not needs.top_p or self._passes.settles or not picked.unsettled.any():
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

    def _edge(
        self, survey: Survey, parameters: SamplingParameters, needs: Needs, every_token: bool
    ) -> tuple[Tensor, Tensor]:
        """The smallest logit that a row keeps, float32 [B], and which rows are unsettled; see ``Passes.above``."""
        logits, best, temperature = survey.logits, survey.best, survey.temperature
        assert temperature is not None, "filters are for rows that are sampled"
        edge, unsettled = torch.full_like(best, -torch.inf), torch.zeros_like(best, dtype=torch.bool)
        few = self._candidates if needs.top_p and not every_token else 0
        if count := min(self._vocabulary, max(needs.largest_k, few)):
            likeliest = largest(logits, count).to(torch.float32)
        if needs.largest_k:
            edge = kth_logit(likeliest, parameters.top_k)
        if needs.top_p:
            survey = self._passes.above(survey, edge) if needs.largest_k else survey
            totals, truncates = self._passes.totals(survey), parameters.top_p < 1
            if every_token:
                found = self._passes.nucleus(survey, edge, totals, parameters.top_p, best, truncates)
            else:
                # No more of them than always, whatever a neighbour's top-k: they decide how the row is settled.
                scores = (likeliest[:, :few] - best[:, None]).div_(temperature[:, None])
                found, enough = nucleus_among(likeliest[:, :few], scores, edge, totals * parameters.top_p)
                unsettled = truncates & ~enough if few < self._vocabulary else unsettled
                if self._passes.settles:
                    found = self._passes.nucleus(survey, edge, totals, parameters.top_p, found, unsettled)
                    unsettled = torch.zeros_like(unsettled)
            edge = torch.where(truncates, torch.maximum(edge, found), edge)
        if needs.min_p:
            edge = torch.maximum(edge, min_p_logit(best, temperature, parameters.log_min_p))
        return edge, unsettled


def _logprobs(logits: Tensor, tokens: Tensor, best: Tensor, log_mass: Tensor) -> Tensor:
    chosen = logits.gather(-1, tokens[:, None])[:, 0].to(torch.float64)
    return chosen.sub_(best).sub_(log_mass).to(torch.float32)
