"""What a GPU has for the decoder with fixed shapes. Raises ImportError where Triton is missing."""

from __future__ import annotations

import torch

from asyncgen.backends.sampling import Sampler
from asyncgen.backends.sampling_triton import TritonPasses
from asyncgen.backends.slots.gpu.opening import Means
from asyncgen.backends.slots.gpu.pointwise import Pointwise
from asyncgen.backends.slots.gpu.triton_attention import TritonAttention

__all__ = ["triton_means"]


def triton_means(*, compiled: bool = False) -> Means:
    """Attention and sampling by Triton's kernels, in captured steps; the model's layers ``compiled`` or as they are."""
    return Means(TritonAttention(), _sampler, compiled=compiled, pointwise=Pointwise)


def _sampler(rows: int, vocabulary: int, device: torch.device) -> Sampler:
    return Sampler(rows, vocabulary, device, TritonPasses(rows, vocabulary))
