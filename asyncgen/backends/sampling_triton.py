"""The sampler's passes (``sampling_passes.Passes``) by triton's kernels, for a GPU.

Nothing waits for the device and no shape depends on values, so that a draw can be captured in a CUDA graph, once it has
been made with such logits before (compiling a kernel loads it, which a capture forbids). Each pass reads the logits as
they are, once: one finds the maxima and masses of all blocks, another the masses above an edge, reading only blocks
that reach it. No work space but for a penalty: 4 bytes a logit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from asyncgen.backends import sampling_kernels as kernels
from asyncgen.backends.sampling_passes import BLOCK, BLOCK_IDS, Survey

__all__ = ["TritonPasses"]

_TILE = 16
"""Blocks that a program looks at together: 2048 logits, 16 a thread."""
_NUCLEUS_TILE, _NUCLEUS_WARPS = 32, 8
_CHOOSE_WARPS = 8
_LOWEST = {torch.float32: -0x7F7FFFFF - 1, torch.bfloat16: -0x7F7F - 1, torch.float16: -0x7BFF - 1}
"""``truncation``'s rank of the smallest finite number of a kind; of 16 bits, there are fewer to halve."""


class TritonPasses:
    """For up to ``rows`` rows of ``vocabulary`` logits, which may lie further apart, on their device's current stream.

    Masses are relative to each block's best.
    """

    settles = True

    def __init__(self, rows: int, vocabulary: int) -> None:
        assert kernels.HASHED_FROM == BLOCK_IDS, "kernels hash blocks as torch does"
        self._rows, self._vocabulary = rows, vocabulary
        self._blocks = -(-vocabulary // BLOCK)
        self._row = 1 << max(self._blocks - 1, 0).bit_length()
        self.buffers: dict[str, Tensor] = {}

    def survey(self, logits: Tensor, temperature: Tensor | None, maxima: Tensor | None = None) -> Survey:
        """As promised by ``Passes``; finds maxima and masses always, for it is one pass."""
        logits = _rows(logits)
        maxima = torch.empty(len(logits), self._blocks, dtype=torch.float32, device=logits.device)
        masses = self._survey(logits, temperature, maxima, None)
        return Survey(logits, temperature, maxima, maxima.amax(-1), masses)

    def above(self, survey: Survey, edge: Tensor) -> Survey:
        """As promised by ``Passes``."""
        return replace(survey, masses=self._survey(survey.logits, survey.temperature, survey.maxima, edge))

    def totals(self, survey: Survey) -> Tensor:
        """As promised by ``Passes``."""
        totals = torch.empty_like(survey.best, dtype=torch.float64)
        with _current(totals):
            kernels.sum_rows[len(totals),](
                survey.maxima,
                survey.masses,
                self._blocks,
                survey.temperature,
                survey.best,
                totals,
                WARM=survey.temperature is not None,
                BLOCKS=self._row,
                num_warps=4,
            )
        return totals

    def own_softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As promised by ``Passes``."""
        survey = self.survey(logits, None)
        return survey.maxima, self.totals(survey).log_()

    def penalised(self, logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
        """As promised by ``Passes``; valid until it is called again."""
        logits, seen, out = _rows(logits), _rows(seen), self._buffer(logits)
        with _current(out):
            kernels.penalise[-(-self._vocabulary // (_TILE * BLOCK)), len(out)](
                logits,
                logits.stride(0),
                seen.view(torch.uint8),
                seen.stride(0),
                penalty.contiguous(),
                out,
                out.stride(0),
                self._vocabulary,
                TILE=_TILE * BLOCK,
                num_warps=4,
            )
        return out

    def nucleus(
        self, survey: Survey, edge: Tensor, totals: Tensor, top_p: Tensor, ceiling: Tensor, rows: Tensor
    ) -> Tensor:
        """As promised by ``Passes``; in rows that are not marked, ``ceiling``."""
        found = torch.empty_like(survey.best)
        kind = survey.logits.dtype
        with _current(found):
            kernels.nucleus[len(found),](
                survey.logits,
                survey.logits.stride(0),
                self._vocabulary,
                self._blocks,
                survey.maxima,
                survey.temperature,
                edge,
                survey.best,
                totals,
                top_p.contiguous(),
                ceiling,
                rows.view(torch.uint8),
                found,
                LOWEST=_LOWEST[kind],
                MASK=0x7FFFFFFF if kind is torch.float32 else 0x7FFF,
                BLOCK=BLOCK,
                TILE=_NUCLEUS_TILE,
                num_warps=_NUCLEUS_WARPS,
            )
        return found

    def choose(
        self, survey: Survey, warm: Tensor | None, edge: Tensor | None, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        """As promised by ``Passes``."""
        tokens = torch.empty(len(seeds), dtype=torch.int64, device=seeds.device)
        with _current(tokens):
            kernels.choose[len(tokens),](
                survey.logits,
                survey.logits.stride(0),
                self._vocabulary,
                self._blocks,
                survey.maxima,
                survey.masses,
                survey.best,
                None if warm is None else warm.view(torch.uint8),
                survey.temperature,
                edge,
                seeds.contiguous(),
                positions.contiguous(),
                tokens,
                WARM=warm is not None,
                EDGED=edge is not None,
                BLOCK=BLOCK,
                BLOCKS=self._row,
                num_warps=_CHOOSE_WARPS,
            )
        return tokens

    def _survey(self, logits: Tensor, temperature: Tensor | None, maxima: Tensor, edge: Tensor | None) -> Tensor:
        """The masses, above ``edge`` if there is one; else writes ``maxima``."""
        masses = torch.empty_like(maxima)
        with _current(logits):
            kernels.survey[-(-self._blocks // _TILE), len(logits)](
                logits,
                logits.stride(0),
                self._vocabulary,
                self._blocks,
                temperature,
                edge,
                maxima,
                masses,
                WARM=temperature is not None,
                EDGED=edge is not None,
                BLOCK=BLOCK,
                TILE=_TILE,
                num_warps=4,
            )
        return masses

    def _buffer(self, logits: Tensor) -> Tensor:
        """float32 [B, V] with anything in it, in rows that begin where loads can be wide."""
        if "penalised" not in self.buffers:  # once and for all: a graph goes on using it
            shape = (self._rows, self._blocks * BLOCK)
            self.buffers["penalised"] = torch.empty(shape, dtype=torch.float32, device=logits.device)
        return self.buffers["penalised"][: len(logits), : self._vocabulary]


def _current(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the tensor's device the current one, to which triton sends kernels."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]  # torch is typed in parts


def _rows(values: Tensor) -> Tensor:
    """[B, V] whose rows are without gaps; they may lie apart."""
    return values if values.stride(1) == 1 else values.contiguous()
