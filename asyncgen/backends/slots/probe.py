"""Decides, by trying and not by a list, whether the in-flight engine can run a model; describes its attention layers.

Three parts, the cheapest first: what the model declares (``declared``), what its attention layers ask for
(``observed``), and a few rows generated and compared with the model's own forward pass (``trial``): a dozen forward
passes of at most a hundred tokens a row.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch

from asyncgen.backends.loading import Loaded
from asyncgen.backends.memory import is_out_of_memory
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.declared import check_declared
from asyncgen.backends.slots.observed import OBSERVING, observe
from asyncgen.backends.slots.packed import Packing
from asyncgen.backends.slots.passes import NAME
from asyncgen.backends.slots.trial import check_same, try_out
from asyncgen.backends.slots.unsupported import Unsupported

__all__ = ["Unsupported", "probe"]

_SEEDS = (20_260, 20_261)
"""A fault shows with any tokens. A tie between experts that rounding decides does not come twice."""
_TOKENS = 64


def probe(loaded: Loaded, reach: int) -> list[LayerShape]:
    """The model's attention layers, in order; leaves the model with the engine's attention and products.

    ``reach`` is the longest sequence, prompt and answer, that will ever be computed. Raises Unsupported, and then, or
    on any other exception, the model computes as it did before.
    """
    check_declared(loaded.model, reach)
    with torch.inference_mode(), _Changes(loaded.model) as changes:
        try:
            return _compute(loaded.model, changes, reach, loaded.embeddings)
        except Unsupported:
            raise
        except Exception as error:  # code of others, called in a way it may never have been tried in
            if is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())
            raise Unsupported(f"a trial run failed: {type(error).__name__}: {text}") from error


class _Changes:
    """What the engine changes of a model, so that it can be taken back: it is, if the block ends with an exception."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._attention = model.config._attn_implementation  # noqa: SLF001  # transformers has no public way to read it
        self._packing = Packing(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.undo()

    def make(self) -> None:
        """The engine's attention, and its products."""
        self._model.set_attn_implementation(NAME)
        self._packing.on()

    def undo(self) -> None:
        """The model as it was."""
        self._packing.off()
        self._model.set_attn_implementation(self._attention)


def _compute(model: Any, changes: _Changes, reach: int, embeddings: int) -> list[LayerShape]:
    ids = _tokens(_SEEDS[0], embeddings)
    model.set_attn_implementation(OBSERVING)
    layers = observe(model, torch.tensor(ids[: min(16, reach)], device=model.device), reach)
    try:
        _try(model, changes, layers, reach, ids)
    except Unsupported:
        _try(model, changes, layers, reach, _tokens(_SEEDS[1], embeddings))
    return layers


def _try(model: Any, changes: _Changes, layers: list[LayerShape], reach: int, ids: list[int]) -> None:
    changes.make()
    told = try_out(model, layers, reach, ids)
    changes.undo()
    check_same(model, told)
    changes.make()


def _tokens(seed: int, embeddings: int) -> list[int]:
    """Random, and the same at every load."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(embeddings, (_TOKENS,), generator=generator).tolist()
    return ids
