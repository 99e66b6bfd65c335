"""Which decoder a model gets: that with fixed shapes on a GPU, else the plain one; made with the memory there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from asyncgen.backends.loading import Loaded
from asyncgen.backends.memory import free_bytes, is_out_of_memory
from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.base import SlotDecoder
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.backends.slots.gpu.opening import Fixed, Means, open_fixed, tidy
from asyncgen.backends.slots.gpu.sizing import Wanted
from asyncgen.backends.slots.prefixes import Room
from asyncgen.backends.slots.sizing import size
from asyncgen.backends.slots.unsupported import Unsupported
from asyncgen.config import AutoBackend, Config, SlotsBackend
from asyncgen.errors import ModelError

_log = logging.getLogger(__name__)

__all__ = ["Decoders", "FixedDecoders", "PlainDecoders", "open_decoders"]


class Decoders(Protocol):
    """Where each run gets its decoder."""

    notice: str
    """What a user should know about it; empty if nothing."""

    @property
    def wanted(self) -> int:
        """Slots that were asked for; more than there are, if memory is short."""

    @property
    def slots(self) -> int:
        """Slots, which may become fewer when a decoder is made."""

    @property
    def prefix_room(self) -> Room:
        """Room for shared beginnings."""

    def decoder(self) -> SlotDecoder:
        """One without rows; any earlier one is not used any more."""


class PlainDecoders:
    """A new decoder each time. What is computed follows the rows that run: best on a CPU, and works everywhere."""

    def __init__(self, loaded: Loaded, layers: Sequence[LayerShape], wanted: Wanted, notice: str = "") -> None:
        self._loaded, self._layers = loaded, layers
        self._size = size(
            layers,
            item_bytes=loaded.model.dtype.itemsize,
            rows=wanted.rows,
            max_new_tokens=wanted.max_new_tokens,
            context_length=wanted.context_length,
            free_bytes=free_bytes(loaded.device),
            gpu=loaded.device.type == "cuda",
        )
        self.notice = notice

    @property
    def wanted(self) -> int:
        """See ``Decoders``."""
        return self._size.wanted

    @property
    def slots(self) -> int:
        """See ``Decoders``."""
        return self._size.slots

    @property
    def prefix_room(self) -> Room:
        """See ``Decoders``."""
        return Room(self._size.prefix_tokens)

    def decoder(self) -> Decoder:
        """See ``Decoders``. If its memory is not to be had after all (a limit of the process, say), half of it."""
        while True:
            try:
                return Decoder(
                    self._loaded.model,
                    self._layers,
                    slots=self._size.slots,
                    pages=self._size.pages,
                    vocabulary=_logits_width(self._loaded),
                )
            except Exception as error:
                if not is_out_of_memory(error) or self._size.slots <= 1:
                    raise
            # Out here the exception is gone, whose traceback kept what was allocated alive.
            self._size = self._size.halved()
            _log.info("the memory for the cache is not to be had: %d slots", self._size.slots)


class FixedDecoders:
    """The same decoder each time: its memory and what was captured are kept."""

    def __init__(self, fixed: Fixed, wanted: int) -> None:
        self._fixed, self._wanted = fixed, wanted
        self.notice = fixed.notice

    @property
    def wanted(self) -> int:
        """See ``Decoders``."""
        return self._wanted

    @property
    def slots(self) -> int:
        """See ``Decoders``."""
        return self._fixed.decoder.slots

    @property
    def prefix_room(self) -> Room:
        """See ``Decoders``."""
        return self._fixed.prefix_room

    def decoder(self) -> SlotDecoder:
        """See ``Decoders``."""
        self._fixed.decoder.clear()
        return self._fixed.decoder


def open_decoders(loaded: Loaded, layers: Sequence[LayerShape], config: Config, means: Means | None = None) -> Decoders:
    """What suits this model on its device; ``means`` are those that a GPU has, if nothing else is said.

    Raises ModelError if there is not enough memory for a single row.
    """
    generation = config.generation
    wanted = Wanted(generation.batch_size, generation.max_new_tokens, loaded.context_length)
    notice = ""
    try:
        means = means or _means(loaded, config)
        if means is not None:
            needs, vocabulary = Needs.of([generation.sampling]), _logits_width(loaded)
            fixed = open_fixed(loaded, layers, wanted, means, needs=needs, vocabulary=vocabulary)
            return FixedDecoders(fixed, wanted.slots)
    except Unsupported as reason:
        _check_device(loaded.device, reason)
        notice = f"steps are computed one by one, not captured, which is slower: {reason}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if means is not None:
        tidy(loaded.device)  # what was made and does not work is memory again
    plain = PlainDecoders(loaded, layers, wanted, notice)
    if plain.slots == 0:
        raise ModelError(
            f"not enough memory: not even one row of {generation.max_new_tokens} new tokens fits",
            hint="lower generation.max_new_tokens, or take a smaller model",
        )
    return plain


def _means(loaded: Loaded, config: Config) -> Means | None:
    """What there is for fixed shapes; None where they are of no use. Raises Unsupported."""
    options = config.backend
    if loaded.device.type != "cuda" or not isinstance(options, AutoBackend | SlotsBackend) or not options.cuda_graphs:
        return None
    try:
        from asyncgen.backends.slots.gpu.triton_means import triton_means  # noqa: PLC0415  # imports triton
    except ImportError as error:
        raise Unsupported(f"a package is missing ({error})") from error
    return triton_means(compiled=options.compile)


def _check_device(device: torch.device, reason: Unsupported) -> None:
    """Some failures leave a device on which nothing works any more in this process. Raises ModelError then."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise ModelError(
            f"the device {device} failed while a step was made ready: {reason}",
            hint="set backend.cuda_graphs to false, and please report it",
        ) from error


def _logits_width(loaded: Loaded) -> int:
    """A model's last layer may be wider than its embedding, for the sake of round numbers."""
    head = loaded.model.get_output_embeddings()
    return loaded.embeddings if head is None else int(head.weight.shape[0])
