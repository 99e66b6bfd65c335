"""What the sampler should do, in float64 and slowly; and how far counted picks are from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncgen.backends.sampling import Needs, Picked, Sampler, SamplingParameters
from asyncgen.records import Sampling

CPU = torch.device("cpu")


def kept_tokens(logits: Tensor, sampling: Sampling) -> Tensor:
    """bool [V]: which tokens of one row's float64 logits the filters leave."""
    scores = logits / sampling.temperature
    keep = torch.ones(len(logits), dtype=torch.bool)
    if sampling.top_k:
        keep &= scores >= scores.sort(descending=True).values[min(sampling.top_k, len(scores)) - 1]
    if sampling.top_p < 1:
        likeliest, order = scores.masked_fill(~keep, -torch.inf).sort(descending=True)
        before = torch.cat((torch.zeros(1, dtype=torch.float64), likeliest.softmax(-1).cumsum(-1)[:-1]))
        last = int((before < sampling.top_p).sum()) - 1
        keep &= scores >= scores[order[last]]
    if sampling.min_p:
        probabilities = scores.softmax(-1)
        keep &= probabilities >= sampling.min_p * probabilities.max()
    return keep


def probabilities(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """float64 [V]: how likely one row with these logits picks each token."""
    exact = logits.to(torch.float64)
    if seen is not None:
        penalty = sampling.repetition_penalty
        exact = torch.where(seen, torch.where(exact > 0, exact / penalty, exact * penalty), exact)
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(exact.argmax(), len(exact)).to(torch.float64)
    return (exact / sampling.temperature).masked_fill(~kept_tokens(exact, sampling), -torch.inf).softmax(-1)


def pick(
    logits: Tensor,
    samplings: Sequence[Sampling],
    seeds: Tensor | Sequence[int],
    positions: Tensor | Sequence[int] | None = None,
    *,
    seen: Tensor | None = None,
    sampler: Sampler | None = None,
    needs: Needs | None = None,
) -> Picked:
    """Picks for rows ``samplings`` of ``logits`` [B, V], from a sampler whose buffers are poisoned."""
    sampler = sampler or Sampler(len(logits), logits.shape[-1], CPU)
    with torch.inference_mode():
        for buffer in sampler.buffers.values():
            buffer.fill_(torch.nan)
    return sampler.pick(
        logits,
        torch.as_tensor(seeds),
        torch.zeros(len(logits), dtype=torch.int64) if positions is None else torch.as_tensor(positions),
        SamplingParameters.of(samplings, CPU),
        needs or Needs.of(samplings),
        seen,
    )


def unlikeliness(counts: Tensor, expected: Tensor) -> float:
    """The chance that counts [V] of independent picks are as far from ``expected`` probabilities [V] (chi-square).

    Tokens that should be picked fewer than ten times count together. A token that cannot be picked makes it 0.
    """
    if counts[expected == 0].any():
        return 0.0
    wanted = expected * counts.sum()
    rare = wanted < 10
    wanted = torch.cat((wanted[~rare], wanted[rare].sum()[None]))
    found = torch.cat((counts[~rare], counts[rare].sum()[None])).to(torch.float64)
    if wanted[-1] < 10:  # too few to say anything of
        found[-2] += found[-1]
        wanted[-2] += wanted[-1]
        found, wanted = found[:-1], wanted[:-1]
    if len(wanted) < 2:
        return 1.0
    distance = ((found - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64), distance / 2))
