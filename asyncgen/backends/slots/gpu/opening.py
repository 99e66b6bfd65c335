"""Makes the decoder with fixed shapes for a model on a GPU: measures, allocates, captures, checks.

Where that is not possible (no Triton, a model that cannot be captured, too little memory for its shapes) the reason is
given, and the plain decoder does.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from asyncgen.backends.loading import Loaded
from asyncgen.backends.memory import free_bytes, is_out_of_memory
from asyncgen.backends.sampling import Sampler
from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.cache import PAGE, LayerShape
from asyncgen.backends.slots.compiling import Compiling
from asyncgen.backends.slots.fusing import Fusing
from asyncgen.backends.slots.gpu.check import check_fixed
from asyncgen.backends.slots.gpu.decoder import STEPS, FixedDecoder
from asyncgen.backends.slots.gpu.lanes import Attention
from asyncgen.backends.slots.gpu.recording import Called, Captured, Recorder, return_stream, take_stream
from asyncgen.backends.slots.gpu.sizing import Memory, Wanted, divided, fewer, page_bytes, widths_for
from asyncgen.backends.slots.passes import Prefill, forward
from asyncgen.backends.slots.prefixes import Room
from asyncgen.backends.slots.unsupported import Unsupported

_log = logging.getLogger(__name__)

__all__ = ["Change", "Fixed", "Means", "open_fixed", "tidy"]

_SEED = 20_262


class Change(Protocol):
    """What makes a model's own code faster."""

    def on(self) -> None:
        """From now on."""

    def off(self) -> None:
        """The model's code is what it was."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a decoder is made with: the GPU's own, or, for a test, what a CPU can do."""

    attention: Attention
    sampler: Callable[[int, int, torch.device], Sampler]
    captured: bool = True
    """Whether passes are captured as CUDA graphs, where there is a GPU."""
    fused: bool = True
    """Whether linear layers that get the same tensor are one product (``fusing``)."""
    compiled: bool = False
    """Whether layers are compiled (``compiling``)."""
    pointwise: Callable[[Any], Change] | None = None
    """Kernels for what a model does between its products (``pointwise``), where layers are not compiled."""
    steps: int = STEPS
    """Steps of a group."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A decoder that is ready."""

    decoder: FixedDecoder
    prefix_room: Room
    memory: Memory
    notice: str = ""
    """What a user should know about it; empty if nothing."""


@torch.inference_mode()
def open_fixed(
    loaded: Loaded, layers: Sequence[LayerShape], wanted: Wanted, means: Means, *, needs: Needs, vocabulary: int
) -> Fixed:
    """A decoder of as many slots as are wanted and memory holds; ``needs`` is how most rows are sampled. Where layers
    cannot be compiled they are as they were, and a notice says so.

    Raises Unsupported; out of memory if not even one row fits.
    """
    notice = ""
    if means.compiled:
        try:
            return _open(loaded, layers, wanted, means, needs, vocabulary)
        except Unsupported as reason:
            notice = f"the model's layers are not compiled, which is slower: {reason}"
        means = replace(means, compiled=False)
        tidy(loaded.device)
    return replace(_open(loaded, layers, wanted, means, needs, vocabulary), notice=notice)


def _open(
    loaded: Loaded, layers: Sequence[LayerShape], wanted: Wanted, means: Means, needs: Needs, vocabulary: int
) -> Fixed:
    stream = take_stream(loaded.device) if loaded.device.type == "cuda" else None
    opening = _Opening(loaded, layers, wanted, means, needs, vocabulary, stream)
    changes = opening.changes()
    for change in changes:
        change.on()
    try:
        found = _largest(opening)
    except BaseException:
        for change in reversed(changes):
            change.off()
        if stream is not None:
            return_stream(stream)
        raise
    if stream is not None:
        weakref.finalize(found.decoder, return_stream, stream)
    return found


def _largest(opening: _Opening) -> Fixed:
    slots = opening.wanted.slots
    while slots > 0:
        found = opening.attempt(slots)
        if isinstance(found, Fixed):
            return found
        _log.info("%d slots do not fit into memory", slots)
        slots = found
        tidy(opening.loaded.device)
    raise torch.OutOfMemoryError(f"not even one row of {opening.wanted.max_new_tokens} new tokens fits into memory")


@dataclass(frozen=True, slots=True)
class _Opening:
    loaded: Loaded
    layers: Sequence[LayerShape]
    wanted: Wanted
    means: Means
    needs: Needs
    vocabulary: int
    stream: torch.cuda.Stream | None
    """On which everything is queued."""

    def changes(self) -> list[Change]:
        """What makes the model's own code faster, not yet on, in the order in which it goes on."""
        model, device = self.loaded.model, self.loaded.device
        count = min(16, self.wanted.context_length)
        ids = torch.tensor(self._ids(count), device=device)

        def run() -> None:
            forward(model, ids, torch.arange(count, device=device), Prefill([count], None, device))

        found: list[Change] = [Fusing(model, run)] if self.means.fused else []
        if self.means.compiled:
            found.append(Compiling(model))
        elif self.means.pointwise is not None:
            found.append(self.means.pointwise(model))
        return found

    def _ids(self, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(_SEED)
        ids: list[int] = torch.randint(self.loaded.embeddings, (count,), generator=generator).tolist()
        return ids

    def attempt(self, slots: int) -> Fixed | int:
        """A decoder of so many slots; or, if that does not fit, how many to try next."""
        try:
            memory = divided(measured := self._measured(slots), self.wanted, slots)
            if not memory.pages:
                return fewer(measured, self.wanted, slots)
            return self._made(slots, memory)
        except Unsupported:
            raise
        except Exception as error:  # a model's code and two compilers, on a machine they may never have been tried on
            if not is_out_of_memory(error):
                text = " ".join(str(error).split())
                raise Unsupported(f"a trial failed: {type(error).__name__}: {text}") from error
        # Out here the exception is gone, whose traceback kept what was allocated alive.
        return slots // 2

    def _measured(self, slots: int) -> Memory:
        """What passes over so many slots need, found by calling them with a cache of a few pages."""
        device = self.loaded.device
        tidy(device)
        free, page = free_bytes(device), page_bytes(self.layers, self.loaded.model.dtype.itemsize)
        before = _allocated(device)
        decoder = self._decoder(slots, 1, 1, self._recorder())
        decoder.rehearse(self.needs)
        after, most = _allocated(device), _peak(device)
        # What cannot be captured is found out while there is nothing yet that it could leave behind.
        decoder.prepare(self.needs)
        state = max(0, after - before - 3 * page)
        later = 0 if self.needs.penalty else decoder.penalty_bytes
        return Memory(free, state=state, later=later, activations=most - after, page=page)

    def _made(self, slots: int, memory: Memory) -> Fixed:
        device = self.loaded.device
        tidy(device)
        decoder = self._decoder(slots, memory.pages, memory.prefix_pages, self._recorder())
        decoder.prepare(self.needs)
        check_fixed(decoder, self.loaded.model, self._ids(256), self.wanted.context_length)
        tidy(device)
        room = Room(memory.prefix_pages * PAGE, decoder.widths.prefixes, PAGE, decoder.most_prefix)
        _log.info("%d slots, %d + %d pages: %s", slots, memory.pages, memory.prefix_pages, memory)
        return Fixed(decoder, room, memory)

    def _recorder(self) -> Recorder:
        return Captured(self.stream) if self.stream and self.means.captured else Called()

    def _decoder(self, slots: int, pages: int, prefix_pages: int, recorder: Recorder) -> FixedDecoder:
        device = self.loaded.device
        return FixedDecoder(
            self.loaded.model,
            self.layers,
            widths=widths_for(slots, self.wanted),
            pages=pages,
            prefix_pages=prefix_pages,
            vocabulary=self.vocabulary,
            eos_ids=self.loaded.eos_ids,
            attention=self.means.attention,
            sampler=self.means.sampler(slots, self.vocabulary, device),
            recorder=recorder,
            stream=self.stream,
            steps=self.means.steps,
        )


def tidy(device: torch.device) -> None:
    """Gives back what nobody uses any more, so that it counts as free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
