"""transformers' continuous batching, ``generate_batch``, through its manager: only there has each request a limit."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import Any

from transformers import ContinuousBatchingConfig

from benchmarks.generation.engine import Cannot, Setting, best_of
from benchmarks.generation.huggingface import generation_config, load
from benchmarks.generation.workload import Request

__all__ = ["GenerateBatch"]

_Choice = tuple[str, int, int]
"""Attention, page size in tokens, requests at once."""
CHOICES: tuple[_Choice, ...] = (("sdpa", 256, 16), ("sdpa", 64, 32), ("paged|eager", 64, 16))
BATCH_TOKENS = 512
"""Tokens of one step: a prompt is computed in a step or two, and the mask, which has this many rows, stays small."""
TRIED = 16


class GenerateBatch:
    """Continuous batching on the CPU. What it keeps free of a device's memory is decided by the pages we ask for."""

    def __init__(self, setting: Setting) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self._setting = setting
        self._model: Any = load(setting, "sdpa")
        choices = CHOICES if setting.rows is None else (("sdpa", 256, setting.rows),)
        self._choice, rates = best_of(choices, self._serve, setting.sample[:TRIED])
        attention, page, self.rows = self._choice
        self.settings = {"attention": attention, "page": page, "requests at once": self.rows, "trials": rates}

    def run(self, requests: Sequence[Request]) -> list[int]:
        """See ``Engine.run``."""
        return self._serve(self._choice, requests)

    def close(self) -> None:
        """See ``Engine.close``."""
        del self._model
        gc.collect()

    def _serve(self, choice: _Choice, requests: Sequence[Request]) -> list[int]:
        attention, page, rows = choice
        self._model.set_attn_implementation(attention)
        longest = max(len(request.ids) + request.limit for request in requests)
        eos = -1 if self._setting.eos is None else self._setting.eos
        config = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=rows * (-(-longest // page) + 1),
            max_batch_tokens=BATCH_TOKENS,
            max_requests_per_batch=rows,
        )
        # Sorted by tokens, as generate_batch does when pages can be shared.
        order = sorted(range(len(requests)), key=lambda place: requests[place].ids, reverse=True)
        tokens: dict[str, int] = {}
        with self._model.continuous_batching_context_manager(
            generation_config=generation_config(self._setting, eos_token_id=eos, max_new_tokens=longest),
            continuous_batching_config=config,
            timeout=5,
        ) as manager:
            for place in order:
                request = requests[place]
                manager.add_request(
                    list(request.ids), request_id=str(place), max_new_tokens=request.limit, eos_token_id=eos
                )
            while len(tokens) < len(requests):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    generated = result.generated_tokens
                    tokens[result.request_id] = len(generated) - (eos in generated[-1:])
                elif result is None and not manager.is_running():
                    raise Cannot("its generation thread ended before all requests were done")
        return [tokens[str(place)] for place in range(len(requests))]
