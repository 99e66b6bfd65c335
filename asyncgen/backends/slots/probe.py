"""Decides, by trying and not by a list, whether the in-flight engine can run a model; describes its attention layers.

Three parts, the cheapest first: what the model declares (``declared``), what its attention layers ask for
(``observed``), and a few rows generated and compared with the model's own forward pass (``trial``): a dozen forward
passes of at most a hundred tokens a row.
"""

from __future__ import annotations

from typing import Any

import torch

from asyncgen.backends.loading import Loaded
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.declared import check_declared
from asyncgen.backends.slots.observed import OBSERVING, observe
from asyncgen.backends.slots.passes import NAME
from asyncgen.backends.slots.trial import check_same, try_out
from asyncgen.backends.slots.unsupported import Unsupported

__all__ = ["Unsupported", "probe"]

_SEEDS = (20_260, 20_261)
"""A fault shows with any tokens. A tie between experts that rounding decides does not come twice."""
_TOKENS = 64


def probe(loaded: Loaded, reach: int) -> list[LayerShape]:
    """The model's attention layers, in order; leaves the model with the engine's attention.

    ``reach`` is the longest sequence, prompt and answer, that will ever be computed. Raises Unsupported, and then, or
    on any other exception, the model attends as it did before.
    """
    model = loaded.model
    check_declared(model, reach)
    before = model.config._attn_implementation  # noqa: SLF001  # transformers has no public way to read it
    try:
        return _compute(model, before, reach, loaded.embeddings)
    except (Unsupported, torch.OutOfMemoryError):
        model.set_attn_implementation(before)
        raise
    except Exception as error:  # code of others, called in a way it may never have been tried in
        model.set_attn_implementation(before)
        raise Unsupported(f"a trial run failed: {type(error).__name__}: {' '.join(str(error).split())}") from error
    except BaseException:
        model.set_attn_implementation(before)
        raise


@torch.inference_mode()
def _compute(model: Any, before: str, reach: int, embeddings: int) -> list[LayerShape]:
    ids = _tokens(_SEEDS[0], embeddings)
    model.set_attn_implementation(OBSERVING)
    layers = observe(model, torch.tensor(ids[: min(16, reach)], device=model.device), reach)
    try:
        _try(model, before, layers, reach, ids)
    except Unsupported:
        _try(model, before, layers, reach, _tokens(_SEEDS[1], embeddings))
    return layers


def _try(model: Any, before: str, layers: list[LayerShape], reach: int, ids: list[int]) -> None:
    model.set_attn_implementation(NAME)
    told = try_out(model, layers, reach, ids)
    model.set_attn_implementation(before)
    check_same(model, told)
    model.set_attn_implementation(NAME)


def _tokens(seed: int, embeddings: int) -> list[int]:
    """Random, and the same at every load."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(embeddings, (_TOKENS,), generator=generator).tolist()
    return ids
