"""How each row of a batch is sampled, as tensors, and what follows from it that the host must know beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from asyncgen.records import Sampling

__all__ = ["DTYPES", "Needs", "SamplingParameters"]

DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int64,
    "top_p": torch.float64,
    "log_min_p": torch.float64,
    "penalty": torch.float32,
}
"""The number format of each column of ``SamplingParameters``."""

_COLDEST = torch.finfo(torch.float32).tiny
"""A temperature above 0 that float32 cannot hold must not turn into 0, which means something else."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the rows of a batch ask for together, so that no device is asked for it.

    It decides what is computed, never what comes out: a row's result is the same beside neighbours that need more.
    """

    sampled: bool = False
    """Some row has a temperature above 0. The filters below count for such rows only."""
    largest_k: int = 0
    top_p: bool = False
    min_p: bool = False
    penalty: bool = False
    logprobs: bool = False

    @classmethod
    def of(cls, samplings: Iterable[Sampling]) -> Needs:
        """What these rows need."""
        rows = tuple(samplings)
        warm = [row for row in rows if row.temperature > 0]
        return cls(
            sampled=bool(warm),
            largest_k=max((row.top_k for row in warm), default=0),
            top_p=any(row.top_p < 1 for row in warm),
            min_p=any(row.min_p > 0 for row in warm),
            penalty=any(row.repetition_penalty != 1 for row in rows),
            logprobs=any(row.logprobs for row in rows),
        )

    def covers(self, other: Needs) -> bool:
        """Whether what is computed for these does for the others as well."""
        return all(getattr(self, each.name) >= getattr(other, each.name) for each in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class SamplingParameters:
    """One value for each of B rows; the filters of a row of temperature 0 are neutral."""

    temperature: Tensor
    """float32 [B]; 0 takes the likeliest token."""
    top_k: Tensor
    """int64 [B]; 0 keeps all."""
    top_p: Tensor
    """float64 [B]; 1 keeps all."""
    log_min_p: Tensor
    """float64 [B]; minus infinity drops none."""
    penalty: Tensor
    """float32 [B]; 1 changes nothing."""

    @staticmethod
    def numbers(samplings: Sequence[Sampling]) -> dict[str, list[int] | list[float]]:
        """The columns of rows that are sampled so, as the host has them."""
        warm = [row.temperature > 0 for row in samplings]
        return {
            "temperature": [max(row.temperature, _COLDEST) if row.temperature > 0 else 0.0 for row in samplings],
            "top_k": [row.top_k if on else 0 for row, on in zip(samplings, warm, strict=True)],
            "top_p": [row.top_p if on else 1.0 for row, on in zip(samplings, warm, strict=True)],
            "log_min_p": [
                math.log(row.min_p) if on and row.min_p > 0 else -math.inf
                for row, on in zip(samplings, warm, strict=True)
            ],
            "penalty": [row.repetition_penalty for row in samplings],
        }

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> SamplingParameters:
        """The parameters of rows that are sampled so."""
        columns = cls.numbers(samplings)
        return cls(**{name: torch.tensor(columns[name], dtype=DTYPES[name], device=device) for name in columns})

    @torch.inference_mode()
    def write(self, places: Tensor, samplings: Sequence[Sampling]) -> None:
        """Gives the rows at ``places`` (int64 [n]) these parameters, in place."""
        news = SamplingParameters.of(samplings, self.temperature.device)
        for column in fields(self):
            getattr(self, column.name).index_copy_(0, places, getattr(news, column.name))

    def select(self, rows: Tensor) -> SamplingParameters:
        """A copy of the rows ``rows`` (int64 [n])."""
        return SamplingParameters(*(getattr(self, column.name).index_select(0, rows) for column in fields(self)))
