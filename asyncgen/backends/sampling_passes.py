"""The sampler's passes over all logits: what they find (``Passes``), and torch's way to find it.

The vocabulary is cut into blocks of ``BLOCK`` token ids, the last of which may be shorter. A row's passes depend on
nothing but the row, to the bit: they work along a row in an order that its length alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from asyncgen.backends.noise import gumbel, token_keys
from asyncgen.backends.truncation import nucleus_logit

__all__ = ["BLOCK", "BLOCK_IDS", "Passes", "Survey", "TorchPasses"]

BLOCK = 128
BLOCK_IDS = 1 << 32
"""Blocks are hashed as tokens from here on, which no vocabulary reaches."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one look at all logits of B rows tells. Valid until the passes that made it look again."""

    logits: Tensor
    """[B, V], which were looked at."""
    temperature: Tensor | None
    """float32 [B] above 0, or None where only the maxima were wanted."""
    maxima: Tensor
    """The largest logit of each block, float32 [B, blocks]. Not finite where a logit is NaN."""
    best: Tensor
    """float32 [B]: the largest of these."""
    masses: Tensor | None
    """The blocks' sums of exp(logit / temperature), float32 [B, blocks], each relative to something that is for the
    passes alone to know."""


class Passes(Protocol):
    """What the sampler leaves to whoever knows the device. Not for two threads at once."""

    settles: bool
    """Whether ``nucleus`` is to be called for the rows whose candidates do not suffice, because the host need not know
    which these are."""
    buffers: dict[str, Tensor]
    """Work space by its name, made when first needed; what it holds is never read."""

    def survey(self, logits: Tensor, temperature: Tensor | None, maxima: Tensor | None = None) -> Survey:
        """Looks at logits [B, V] of float32, bfloat16 or float16; ``maxima`` if they are known already."""
        ...

    def above(self, survey: Survey, edge: Tensor) -> Survey:
        """The masses without logits below the row's ``edge``, float32 [B]; at least those of ``survey`` are left out.

        ``survey`` is the latest one.
        """
        ...

    def totals(self, survey: Survey) -> Tensor:
        """The rows' sums of exp((logit - best) / temperature), of what is left: float64 [B]."""
        ...

    def own_softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima, and the logarithm of the rows' sums of exp(logit - best): float64 [B]."""
        ...

    def penalised(self, logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
        """Logits of tokens seen divided by the penalty, or multiplied if negative (Keskar et al. 2019): float32."""
        ...

    def nucleus(
        self, survey: Survey, edge: Tensor, totals: Tensor, top_p: Tensor, ceiling: Tensor, rows: Tensor
    ) -> Tensor:
        """The smallest logit that top-p keeps, float32 [B], looking at every token: ``truncation.nucleus_logit``.

        ``survey`` is the latest one, ``edge`` what it leaves out, ``ceiling`` [B] a logit of the row that is known not
        to be below. Means something in the rows marked by bool [B] alone.
        """
        ...

    def choose(
        self, survey: Survey, warm: Tensor | None, edge: Tensor | None, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        """The tokens picked, int64 [B]: by noise where ``warm`` (bool [B]; None: nowhere), else the first likeliest.

        ``edge`` is what the survey leaves out. Where a row's best logit is not finite any token comes out.
        """
        ...


class TorchPasses:
    """In torch: the fastest on a CPU.

    Owns work buffers of 4 bytes a logit: one, another if some row truncates, a third if some row penalises. Masses are
    relative to the row's best logit.
    """

    settles = False

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._rows, self._vocabulary, self._device = rows, vocabulary, device
        self._blocks = -(-vocabulary // BLOCK)
        self._keys = token_keys(self._blocks * BLOCK, device).view(self._blocks, BLOCK)
        self._block_keys = token_keys(self._blocks, device, BLOCK_IDS)
        self._within = torch.arange(BLOCK, device=device)
        self.buffers: dict[str, Tensor] = {}

    def survey(self, logits: Tensor, temperature: Tensor | None, maxima: Tensor | None = None) -> Survey:
        """As promised by ``Passes``; leaves exp((logit - best) / temperature) in the work buffer."""
        maxima = self._maxima(logits) if maxima is None else maxima
        best = maxima.amax(-1)
        masses = None if temperature is None else self._masses(logits, best, temperature)
        return Survey(logits, temperature, maxima, best, masses)

    def above(self, survey: Survey, edge: Tensor) -> Survey:
        """As promised by ``Passes``; the work buffer is as the survey left it."""
        work = self._buffer("work", len(edge))
        # Compared into float32, this is one vectorised pass; a bool mask and masked_fill take ten times as long.
        mask = torch.ge(survey.logits, edge[:, None], out=self._buffer("mask", len(edge))[:, : self._vocabulary])
        work[:, : self._vocabulary].mul_(mask)
        return replace(survey, masses=self._block_sums(work))

    def totals(self, survey: Survey) -> Tensor:
        """As promised by ``Passes``."""
        assert survey.masses is not None, "masses were surveyed"
        return survey.masses.sum(-1, dtype=torch.float64)

    def own_softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As promised by ``Passes``."""
        maxima = self._maxima(logits)
        return maxima, self._masses(logits, maxima.amax(-1)).sum(-1, dtype=torch.float64).log_()

    def penalised(self, logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
        """As promised by ``Passes``; valid until it is called again."""
        vocabulary, each = self._vocabulary, penalty[:, None]
        above = self._buffer("penalised", len(logits))[:, :vocabulary]
        below = self._buffer("work", len(logits))[:, :vocabulary]
        above.copy_(logits).clamp_(min=0).div_(each)
        below.copy_(logits).clamp_(max=0).mul_(each)
        above.add_(below)
        return torch.where(seen, above, logits, out=above)

    def nucleus(
        self,
        survey: Survey,
        edge: Tensor,  # noqa: ARG002  # the work buffer holds no mass below it
        totals: Tensor,
        top_p: Tensor,
        ceiling: Tensor,  # noqa: ARG002
        rows: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """As promised by ``Passes``, of all rows."""
        return nucleus_logit(survey.best, totals * top_p, lambda logit: self._masses_at(survey.logits, logit))

    def choose(
        self, survey: Survey, warm: Tensor | None, edge: Tensor | None, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        """As promised by ``Passes``."""
        blocks = survey.maxima.argmax(-1)
        if warm is not None:
            assert survey.masses is not None, "masses were surveyed"
            noisy = survey.masses.to(torch.float64).log_().add_(gumbel(seeds, positions, self._block_keys))
            blocks = torch.where(warm, noisy.argmax(-1), blocks)
        tokens = blocks[:, None] * BLOCK + self._within
        inside = survey.logits.gather(-1, tokens.clamp(max=self._vocabulary - 1)).to(torch.float32)
        dropped = tokens >= self._vocabulary
        values = inside.to(torch.float64)
        if warm is not None:
            assert survey.temperature is not None, "it is needed wherever a row is sampled"
            scores = (inside - survey.best[:, None]).div_(survey.temperature[:, None])
            noisy = gumbel(seeds, positions, self._keys[blocks]).add_(scores)
            values = torch.where(warm[:, None], noisy, values)
        if edge is not None:
            dropped = dropped | (inside < edge[:, None])
        place = values.masked_fill_(dropped, -torch.inf).argmax(-1)
        return tokens.gather(-1, place[:, None])[:, 0]

    def _buffer(self, name: str, rows: int) -> Tensor:
        """float32 [rows, blocks x BLOCK], with anything in it."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self._rows, self._blocks * BLOCK, device=self._device)
        return self.buffers[name][:rows]

    def _maxima(self, logits: Tensor) -> Tensor:
        whole, rest = divmod(self._vocabulary, BLOCK)
        maxima = logits[:, : whole * BLOCK].view(len(logits), whole, BLOCK).amax(-1)
        if rest:
            maxima = torch.cat((maxima, logits[:, whole * BLOCK :].amax(-1, keepdim=True)), dim=-1)
        return maxima.to(torch.float32)

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

    def _block_sums(self, work: Tensor) -> Tensor:
        return work.view(-1, self._blocks, BLOCK).sum(-1)

    def _masses_at(self, logits: Tensor, edge: Tensor) -> Tensor:
        """What ``above`` would leave in each row, float64 [B], without touching the work buffer."""
        mask = self._buffer("mask", len(logits))
        torch.ge(logits, edge[:, None], out=mask[:, : self._vocabulary])
        mask[:, self._vocabulary :].zero_()
        return self._block_sums(mask.mul_(self._buffer("work", len(logits)))).sum(-1, dtype=torch.float64)
