"""What a GPU has for the decoder with fixed shapes. Raises ImportError where Triton is missing."""

from __future__ import annotations

from asyncgen.backends.slots.gpu.opening import Means

__all__ = ["triton_means"]


def triton_means(*, captured: bool) -> Means:
    """Triton's attention and sampling; steps ``captured`` as CUDA graphs, or called one by one."""
    raise ImportError("not there yet")
