"""Top-k, top-p and min-p as one number a row: the smallest logit that is kept.

Dividing by a temperature keeps the order of logits, so each filter keeps those at or above some logit of the row. Of
equals at the edge all are kept, by every filter: what is kept does not depend on the order of tokens. The order of
filters is top-k, top-p (over what top-k left, renormalised), min-p, as in transformers.

Functions of tensors alone; nothing here waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["kth_logit", "largest", "min_p_logit", "nucleus_among", "nucleus_logit"]


def largest(values: Tensor, k: int) -> Tensor:
    """The ``k`` largest of each row of ``values`` [B, V], in falling order: [B, k]. NaN counts as the largest.

    In two stages where that is less work. With the tokens dealt into groups, the k largest are found among the k groups
    with the largest maxima: whatever exceeds the k-th of these maxima lies in one of them, and each holds at least one
    that reaches it.
    """
    vocabulary = values.shape[-1]
    groups = 1 << math.ceil(math.log2(math.sqrt(k * vocabulary)))
    if vocabulary < 2 * groups or groups < 4 * k:
        return _falling(values, k)
    best = _group_maxima(values, groups).topk(k, dim=-1, sorted=False).indices
    steps = torch.arange(0, vocabulary, groups, device=values.device)
    tokens = (best[:, None, :] + steps[:, None]).flatten(1)
    found = values.gather(1, tokens.clamp(max=vocabulary - 1))
    if vocabulary % groups:
        found = found.masked_fill_(tokens >= vocabulary, -torch.inf)
    return _falling(found, k)


def _group_maxima(values: Tensor, groups: int) -> Tensor:
    """[B, groups]: token t is in group t modulo ``groups``, which reads memory in order."""
    rounds, rest = divmod(values.shape[-1], groups)
    maxima = values[:, : rounds * groups].view(-1, rounds, groups).amax(1)
    if rest:
        maxima[:, :rest] = torch.maximum(maxima[:, :rest], values[:, rounds * groups :])
    return maxima


def _falling(values: Tensor, k: int) -> Tensor:
    """``largest`` without stages. On the CPU numpy's, which vectorises: two to eight times faster than torch's."""
    if values.device.type != "cpu":
        return values.topk(k, dim=-1).values
    array = values.to(torch.float32, copy=True).numpy()  # numpy knows no bfloat16
    edge = array.shape[-1] - k
    if 4 * k < array.shape[-1]:
        array.partition(edge, axis=-1)
        array = array[:, edge:]
    array.sort(axis=-1)
    return torch.from_numpy(array).flip(-1)[:, :k].to(values.dtype)


def kth_logit(likeliest: Tensor, top_k: Tensor) -> Tensor:
    """The smallest logit that top-k keeps, [B], from the row's largest, [B, K] K >= every top-k."""
    place = (top_k - 1).clamp(min=0, max=likeliest.shape[-1] - 1)
    return torch.where(top_k > 0, likeliest.gather(-1, place[:, None])[:, 0], -torch.inf)


def nucleus_among(likeliest: Tensor, scores: Tensor, edge: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest logit that top-p keeps, [B], and whether these candidates suffice to tell it, bool [B].

    ``likeliest`` are the row's largest logits [B, K] in falling order, ``scores`` what they become (0 for the best
    one), ``edge`` [B] the smallest that top-k left, ``wanted`` float64 [B] the sum of exp(score) to be reached.
    """
    left = likeliest >= edge[:, None]
    shares = scores.to(torch.float64).exp_().mul_(left)
    if shares.device.type != "cpu":
        # A GPU adds in an order that the number of rows decides; of whole steps, every order's sum is the same.
        shares.mul_(2.0**40).round_().mul_(2.0**-40)
    reached = shares.cumsum(-1) >= wanted[:, None]
    place = reached.logical_not().sum(-1).clamp_(max=likeliest.shape[-1] - 1)
    found = likeliest.gather(-1, place[:, None])[:, 0]
    # Nothing remains beyond the candidates if top-k left out the last of them.
    return found, reached[:, -1] | ~left[:, -1]


def nucleus_logit(best: Tensor, wanted: Tensor, mass_at: Callable[[Tensor], Tensor]) -> Tensor:
    """The same from all logits, by bisection: the largest logit with ``mass_at`` (a logit a row, [B]) >= ``wanted``.

    Float32 numbers have as many steps between them as integers of the same bits, so 32 halvings end at one of them.
    """
    low, high = _rank(torch.full_like(best, torch.finfo(torch.float32).min)), _rank(best) + 1
    for _ in range(32):
        middle = (low + high) >> 1
        enough = mass_at(_from_rank(middle)) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return _from_rank(low)


def _rank(numbers: Tensor) -> Tensor:
    """int64 that are in the same order as these float32 numbers, without gaps."""
    bits = numbers.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)


def _from_rank(ranks: Tensor) -> Tensor:
    bits = ranks.to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def min_p_logit(best: Tensor, temperature: Tensor, log_min_p: Tensor) -> Tensor:
    """The smallest logit that min-p keeps, float32 [B]: the first at or above best + temperature * log(min_p)."""
    exact = best.to(torch.float64) + temperature.to(torch.float64) * log_min_p
    near = exact.to(torch.float32)
    return torch.where(near < exact, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
